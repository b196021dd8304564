"""Diagnose an encoder: measure on the model itself what its layers see and what its vectors depend on.

Shapes: B batch, L tokens, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers, get_text_config, layer_kinds
from bellm.backbone.attention import get_open_layers, open_layers
from bellm.backbone.hooks import causal_copy, shared_copy
from bellm.backbone.leakage import LayerLeakage, measure_leakage
from bellm.backbone.states import token_states
from bellm.encoder import Encoder
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import fallback_token_id
from bellm.layer_spec import format_layers
from bellm.multiview import MultiViewEncoder
from bellm.saved_encoder import FINGERPRINT_TEXTS, SavedEncoder
from bellm.tensors.similarity import relative_distance, tolerances

Status = Literal["pass", "warn", "fail", "skip"]
TokenIds = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Check:
    """One property of an encoder, and whether it holds."""

    name: str
    status: Status
    finding: str
    """What was measured, in words."""
    advice: str = ""
    """What to do about a warning or a failure; empty for a pass."""
    value: float | None = None
    """The measured difference, where there is one; `limit` is the largest allowed."""
    limit: float | None = None


@dataclass(frozen=True)
class LayerDiagnosis:
    """What one layer is, and what it sees."""

    layer: int
    kind: str
    is_open: bool
    leakage: LayerLeakage


@dataclass(frozen=True)
class Diagnosis:
    """All layers and all checks of one encoder."""

    subject: str
    layers: tuple[LayerDiagnosis, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.status != "fail" for check in self.checks)


def diagnose(encoder: Encoder | MultiViewEncoder, *, saved: SavedEncoder | None = None) -> Diagnosis:
    """Examine an encoder: its layers, its invariances, its agreement with transformers, its settings.

    Of a multi-view encoder every view is examined, and its own vectors.

    Differences are relative: the largest ‖a - b‖ / ‖a‖ over tokens. Load the model in float32 for exact answers.
    `saved` is what the folder it came from says of it, for the fingerprint.
    """
    if isinstance(encoder, MultiViewEncoder):
        return Diagnosis(repr(encoder), (), tuple(_view_checks(encoder.for_fingerprint())))
    token_ids = encoder.tokenize(FINGERPRINT_TEXTS).ids
    examined = examine(encoder.model, token_ids, fallback_token_id(encoder.tokenizer))
    checks = (*examined.checks, *_encoder_checks(encoder, saved))
    return replace(examined, subject=repr(encoder), checks=checks)


@torch.inference_mode()
def examine(model: PreTrainedModel, token_ids: TokenIds, pad_id: int) -> Diagnosis:
    """Examine a model without a tokenizer: what its layers see, and its invariances on texts of token ids."""
    opened, samples = get_open_layers(model), _SampleTexts(model, token_ids, pad_id)
    layers = tuple(
        LayerDiagnosis(layer.index, layer.kind, layer.index in opened, leakage)
        for layer, leakage in zip(get_layers(model), measure_leakage(model), strict=True)
    )
    leak = _open_layers_leak(layers, tolerances(model.dtype).leakage)
    checks = (
        leak,
        *_batching(samples),
        _backends(samples),
        _packed(model),
        _closed(samples),
        _transformers_switch(samples),
    )
    return Diagnosis(type(model).__name__, layers, checks)


@dataclass(frozen=True)
class _SampleTexts:
    """A model and some texts of different lengths to run it on."""

    model: PreTrainedModel
    token_ids: TokenIds
    pad_id: int

    def states(
        self, model: PreTrainedModel, token_ids: TokenIds | None = None, *, left: bool = False, other_pad: bool = False
    ) -> list[Tensor]:
        """States of the real tokens of each text, (L, D), run as one batch; all texts unless given."""
        pad_id = self.pad_id
        if other_pad:
            vocabulary = self.model.get_input_embeddings().weight.shape[0]
            pad_id = (pad_id + vocabulary // 2) % vocabulary
        ids_BL, mask_BL = pad_rows(token_ids or self.token_ids, pad_id, model.device, left=left)
        hidden_BLD = token_states(model, ids_BL, mask_BL)
        return [hidden_LD[mask_L.bool()].float() for hidden_LD, mask_L in zip(hidden_BLD, mask_BL, strict=True)]

    def run_unpadded(self, model: PreTrainedModel) -> list[Tensor]:
        """States of each text run by itself, without padding."""
        return [self.states(model, [ids])[0] for ids in self.token_ids]

    def compare(self, name: str, states: list[Tensor], expected: list[Tensor], finding: str, advice: str) -> Check:
        """Pass when two runs agree within rounding."""
        distance = relative_distance(torch.cat(states), torch.cat(expected))
        return _within(name, distance, tolerances(self.model.dtype).states, finding, advice)


def _within(name: str, value: float, limit: float, finding: str, advice: str) -> Check:
    """Pass up to a limit, else fail."""
    holds = value <= limit
    return Check(name, "pass" if holds else "fail", finding, "" if holds else advice, value, limit)


def _unless(problem: str | None, name: str, finding: str, advice: str, status: Status = "fail") -> Check:
    """Pass where there is no problem."""
    return Check(name, status, problem, advice) if problem else Check(name, "pass", finding)


def _open_layers_leak(layers: Sequence[LayerDiagnosis], limit: float) -> Check:
    leak = max((row.leakage.future for row in layers if not row.is_open), default=0.0)
    blind = [row.layer for row in layers if row.is_open and row.leakage.future <= limit]
    leaky = [row.layer for row in layers if not row.is_open and row.leakage.future > limit]
    wrong = [("open but causal", blind), ("closed but leaking", leaky)]
    check = _unless(
        "; ".join(f"{fault}: {format_layers(indices)}" for fault, indices in wrong if indices),
        "open layers, and only they, see the future",
        f"open: {format_layers([row.layer for row in layers if row.is_open])}; largest leak of a closed layer",
        "These layers do not heed their mask. Choose other layers, try attention='eager', or take another model: its "
        "vectors are not what the map says.",
    )
    return replace(check, value=leak, limit=limit)


def _batching(samples: _SampleTexts) -> Iterator[Check]:
    model = samples.model
    batch = samples.states(model)
    yield samples.compare(
        "padding is never attended",
        samples.states(model, other_pad=True),
        batch,
        "other ids in the padding change no token",
        "The attention mask is lost on the way to a layer. Do not trust batches: embed with max_batch_tokens=1, and "
        "report the model.",
    )
    yield samples.compare(
        "alone equals in a batch",
        batch,
        samples.run_unpadded(model),
        "each text alone, without padding, against one padded batch",
        "Padded and unpadded batches take different paths: padding is attended, or an unpadded batch falls back to "
        "causal attention. Try attention='eager', and report the model.",
    )
    name, causal = "left padding equals right padding", causal_copy(model)
    untouched = samples.compare(
        name,
        samples.states(causal, left=True),
        samples.states(causal),
        "the untouched causal model differs already: not all of its layers skip padding on the left",
        "bellm pads on the right, so its vectors are safe. Do not pad on the left yourself.",
    )
    if untouched.status == "fail":
        yield replace(untouched, status="warn")
    else:
        yield samples.compare(
            name,
            samples.states(model, left=True, other_pad=True),
            batch,
            "the same batch padded on either side, with other ids",
            "Positions shift with the padding, or it is attended. Pad on the right, as bellm does, or pass "
            "position_ids.",
        )
    yield samples.compare(
        "order does not matter",
        samples.states(model, samples.token_ids[::-1])[::-1],
        batch,
        "the same batch in reverse",
        "A text's states depend on its neighbours in the batch. Embed with max_batch_tokens=1, and report the model.",
    )


def _backends(samples: _SampleTexts) -> Check:
    name = "eager equals sdpa"
    runs = []
    for backend in ("eager", "sdpa"):
        model = shared_copy(samples.model)
        try:
            model.set_attn_implementation(backend)
        except (ValueError, ImportError):
            return Check(name, "skip", f"{type(model).__name__} does not run with {backend}")
        runs.append(samples.states(model))
    advice = "The backends disagree: use attention='eager', the reference."
    return samples.compare(name, runs[0], runs[1], "one batch on both", advice)


def _packed(model: PreTrainedModel) -> Check:
    name, check = "packed equals padded", check_packing(model, anew=True)
    if not check.packed_model:
        return Check(name, "skip", f"texts run in padded batches: {check.reason}")
    finding = "vectors of texts laid end to end that share their prefixes, against padded batches"
    finding += f"; attention by {check.packed_model.kernel}" + "".join(
        f", not by {refusal}" for refusal in check.refused
    )
    return Check(name, "pass", finding, "", check.distance, check.limit)


def _closed(samples: _SampleTexts) -> Check:
    causal = causal_copy(samples.model)
    difference = 0.0
    for ids, states_LD in zip(samples.token_ids, samples.run_unpadded(open_layers(causal, ())), strict=True):
        ids_1L = torch.tensor([list(ids)], device=causal.device)
        direct_1LD = get_decoder(causal)(input_ids=ids_1L, use_cache=False).last_hidden_state
        difference = max(difference, (states_LD - direct_1LD[0].float()).abs().max().item())
    leak = max(layer.future for layer in measure_leakage(causal))
    return _within(
        "no open layer equals the plain model",
        max(difference, leak if leak > tolerances(causal.dtype).leakage else 0.0),
        0.0,
        "with K=0, and closed again, against transformers called directly, texts alone",
        "Closing a layer does not give the causal model back. Reload the model, and report it.",
    )


def _transformers_switch(samples: _SampleTexts) -> Check:
    name = "all open equals transformers' switch"
    openable = [layer.index for layer in get_layers(samples.model) if layer.can_open]
    switched = causal_copy(samples.model)
    config = get_text_config(switched)
    setattr(config, "is_causal", False)  # noqa: B010 - configurations are untyped
    if isinstance(window := getattr(config, "sliding_window", None), int):
        # transformers' bidirectional window reaches W tokens either side, its causal one and its flash kernel W-1.
        setattr(config, "sliding_window", window - 1)  # noqa: B010
    try:
        leakages = measure_leakage(switched)
        expected = samples.run_unpadded(switched)
    except (AttributeError, TypeError, RuntimeError) as error:
        return Check(name, "skip", f"transformers' own is_causal=False fails here: {error}")
    if causal := [index for index in openable if leakages[index].future <= tolerances(switched.dtype).leakage]:
        return Check(name, "skip", f"transformers' own is_causal=False leaves layers {format_layers(causal)} causal")
    return samples.compare(
        name,
        samples.run_unpadded(open_layers(causal_copy(samples.model), openable)),
        expected,
        "every attention layer open, texts alone, against config.is_causal=False",
        "bellm and transformers disagree on what bidirectional means here; report the model.",
    )


def _view_checks(encoder: MultiViewEncoder) -> Iterator[Check]:
    for number, embedder in enumerate(encoder.embedders, 1):
        if isinstance(embedder, Encoder | MultiViewEncoder):
            for check in diagnose(embedder).checks:
                yield replace(check, name=f"view {number}: {check.name}")
    yield _one_vector(encoder, tolerances(encoder.dtype_name).states)


def _one_vector(encoder: Encoder | MultiViewEncoder, limit: float) -> Check:
    single = encoder.encode(FINGERPRINT_TEXTS[::-1], max_batch_tokens=1)[::-1]
    return _within(
        "encode gives one vector for one text",
        relative_distance(single, encoder.encode(FINGERPRINT_TEXTS)),
        limit,
        "one at a time in reverse against one batch",
        "Vectors depend on batch mates; see the checks above for the cause.",
    )


def _encoder_checks(encoder: Encoder, saved: SavedEncoder | None) -> Iterator[Check]:
    config, has_template = encoder.config, bool(encoder.tokenizer.chat_template)
    expected, actual = format_layers(config.bidirectional), format_layers(get_open_layers(encoder.model))
    differ = f"the settings say {expected} open, the model has {actual}" if expected != actual else None
    yield _unless(differ, "the model is what the settings say", f"{expected} open", "Load the encoder again.")
    yield _one_vector(encoder, tolerances(encoder.model.dtype).states)
    kinds = sorted(layer_kinds(encoder.model).items())
    yield Check("kinds of layers", "pass", "; ".join(f"{kind}: {layers}" for kind, layers in kinds))
    yield _unless(
        config.no_op_reason(encoder.num_layers),
        "the open layers reach the vector",
        f"pooling {config.pooling} of state {config.layer}",
        "Open lower layers too (last:8), or pool the mean.",
        "warn",
    )
    yield _unless(
        "prompt 'chat' was asked for" if config.prompt.name == "chat" else None,
        "no chat template around texts",
        f"the tokenizer has {'one; it is' if has_template else 'none; none is'} not applied",
        "Vectors of other libraries may lack the template.",
        "warn",
    )
    if saved is not None:
        yield _within(
            "fingerprint",
            relative_distance(encoder.fingerprint(), saved.fingerprint),
            tolerances(saved.dtype, encoder.dtype_name).fingerprint,
            "vectors as on the day of saving",
            "The weights are not those that were saved. Restore them or save again.",
        )
