"""Diagnose an encoder: measure on the model itself what its layers see and what its vectors depend on.

Shapes: B batch, L tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm import layer_spec, saving
from bellm.backbone.architecture import get_decoder, get_layers, get_text_config
from bellm.backbone.attention import get_open_layers, open_layers
from bellm.backbone.hooks import causal_copy, shared_copy
from bellm.backbone.leakage import LayerLeakage, measure_leakage, sample_token_ids
from bellm.backbone.states import token_states
from bellm.encoder import Encoder
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import fallback_token_id
from bellm.tensors.tolerances import relative_distance, tolerances

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    status: Status
    finding: str
    """What was measured, in words."""
    advice: str = ""
    """What to do about a warning or a failure."""
    value: float | None = None
    """The measured difference, where there is one."""
    limit: float | None = None
    """What it may be."""


@dataclass(frozen=True)
class LayerSight:
    """One row of the leak matrix."""

    layer: int
    kind: str
    is_open: bool
    sight: LayerLeakage


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor found."""

    subject: str
    layers: tuple[LayerSight, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return all(check.status != "fail" for check in self.checks)


def diagnose(encoder: Encoder, *, saved: saving.SavedEncoder | None = None) -> Diagnosis:
    """Examine an encoder: its layers, its invariances, its agreement with transformers, its settings.

    Differences are relative: the largest ‖a - b‖ / ‖a‖ over tokens. Load the model in float32 for exact answers.

    Args:
        encoder: The encoder as it is used.
        saved: What the folder it came from says of it, for the fingerprint.
    """
    texts = encoder.tokenize(saving.FINGERPRINT_TEXTS).ids
    rows, checks = examine(encoder.model, texts, fallback_token_id(encoder.tokenizer))
    checks += [_settings(encoder, rows), _vectors(encoder), _kinds(rows), _no_op(encoder), _chat_template(encoder)]
    if saved is not None:
        checks.append(_fingerprint(encoder, saved))
    return Diagnosis(repr(encoder), rows, tuple(checks))


@torch.inference_mode()
def examine(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], pad_id: int
) -> tuple[tuple[LayerSight, ...], list[Check]]:
    """Examine a model without a tokenizer: what its layers see, and its invariances on texts of token ids."""
    measured = measure_leakage(model, sample_token_ids(model))
    chosen = set(get_open_layers(model))
    rows = tuple(
        LayerSight(layer.number, layer.kind, layer.number in chosen, sight)
        for layer, sight in zip(get_layers(model), measured, strict=True)
    )
    case = _Case(model, texts, pad_id, tolerances(model.dtype).states)
    return rows, [_directions(rows, tolerances(model.dtype).leakage), *(check(case) for check in _STATE_CHECKS)]


@dataclass(frozen=True)
class _Case:
    """A model and some token ids of different lengths to try it on."""

    model: PreTrainedModel
    texts: Sequence[Sequence[int]]
    pad_id: int
    limit: float

    def states(
        self, model: PreTrainedModel, texts: Sequence[Sequence[int]], *, left: bool = False, pad_id: int | None = None
    ) -> list[Tensor]:
        """States of the real tokens of each text, run as one batch."""
        ids_BL, mask_BL = pad_rows(texts, self.pad_id if pad_id is None else pad_id, model.device, left=left)
        hidden_BLD = token_states(model, ids_BL, mask_BL)
        return [hidden_LD[mask_L.bool()].float() for hidden_LD, mask_L in zip(hidden_BLD, mask_BL, strict=True)]

    def alone(self, model: PreTrainedModel) -> list[Tensor]:
        """States of each text run by itself, without padding."""
        return [self.states(model, [text])[0] for text in self.texts]

    def compare(self, name: str, found: list[Tensor], wanted: list[Tensor], said: str, advice: str) -> Check:
        """Pass when two runs agree within rounding."""
        value = relative_distance(torch.cat(found), torch.cat(wanted))
        status: Status = "pass" if value <= self.limit else "fail"
        return Check(name, status, said, "" if status == "pass" else advice, value, self.limit)


def _padding(case: _Case) -> Check:
    return case.compare(
        "padding is never attended",
        case.states(case.model, case.texts, pad_id=_another(case)),
        case.states(case.model, case.texts),
        "other ids in the padding change no token",
        "The attention mask is lost on the way to a layer. Do not trust batches: embed with max_batch_tokens=1, and "
        "report the model.",
    )


def _batch(case: _Case) -> Check:
    return case.compare(
        "alone equals in a batch",
        case.states(case.model, case.texts),
        case.alone(case.model),
        "each text alone, without padding, against one padded batch",
        "Padded and unpadded batches take different paths: padding is attended, or an unpadded batch falls back to "
        "causal attention. Try attention='eager', and report the model.",
    )


def _left(case: _Case) -> Check:
    name = "left padding equals right padding"
    plain = causal_copy(case.model)
    upstream = relative_distance(
        torch.cat(case.states(plain, case.texts, left=True)), torch.cat(case.states(plain, case.texts))
    )
    if upstream > case.limit:
        return Check(
            name,
            "warn",
            "the untouched causal model differs already: not all of its layers skip padding on the left",
            "bellm pads on the right, so its vectors are safe. Do not pad on the left yourself.",
            upstream,
            case.limit,
        )
    return case.compare(
        name,
        case.states(case.model, case.texts, left=True, pad_id=_another(case)),
        case.states(case.model, case.texts),
        "the same batch padded on either side, with other ids",
        "Positions shift with the padding, or it is attended. Pad on the right, as bellm does, or pass position_ids.",
    )


def _order(case: _Case) -> Check:
    return case.compare(
        "order does not matter",
        case.states(case.model, case.texts[::-1])[::-1],
        case.states(case.model, case.texts),
        "the same batch in reverse",
        "A text's states depend on its neighbours in the batch. Embed with max_batch_tokens=1, and report the model.",
    )


def _backends(case: _Case) -> Check:
    name = "eager equals sdpa"
    runs = []
    for backend in ("eager", "sdpa"):
        model = shared_copy(case.model)
        try:
            model.set_attn_implementation(backend)
        except (ValueError, ImportError):
            return Check(name, "skip", f"{type(model).__name__} does not run with {backend}")
        runs.append(case.states(model, case.texts))
    return case.compare(
        name, runs[0], runs[1], "one batch on both", "The backends disagree: use attention='eager', the reference."
    )


def _packed(case: _Case) -> Check:
    name, proof = "packed equals padded", check_packing(case.model)
    if not proof.twin:
        return Check(name, "skip", f"texts run in padded batches: {proof.reason}")
    said = "vectors of texts laid end to end that share their beginnings, against padded batches"
    return Check(name, "pass", said, "", proof.distance, proof.limit)


def _closed(case: _Case) -> Check:
    plain = causal_copy(case.model)
    difference = 0.0
    for text, ours_LD in zip(case.texts, case.alone(open_layers(plain, ())), strict=True):
        ids_1L = torch.tensor([list(text)], device=plain.device)
        untouched_1LD = get_decoder(plain)(input_ids=ids_1L, use_cache=False).last_hidden_state
        difference = max(difference, (ours_LD - untouched_1LD[0].float()).abs().max().item())
    leak = max(sight.future for sight in measure_leakage(plain, sample_token_ids(plain)))
    good = difference == 0 and leak <= tolerances(plain.dtype).leakage
    return Check(
        "no open layer equals the plain model",
        "pass" if good else "fail",
        "with K=0, and closed again, against transformers called directly, texts alone",
        "" if good else "Closing a layer does not give the causal model back. Reload the model, and report it.",
        max(difference, leak if leak > tolerances(plain.dtype).leakage else 0.0),
        0.0,
    )


def _official(case: _Case) -> Check:
    name = "all open equals transformers' switch"
    numbers = [layer.number for layer in get_layers(case.model) if layer.can_open]
    official = causal_copy(case.model)
    config = get_text_config(official)
    setattr(config, "is_causal", False)  # noqa: B010 - configurations are untyped
    if isinstance(window := getattr(config, "sliding_window", None), int):
        # transformers' bidirectional window reaches W tokens either side, its causal one and its flash kernel W-1.
        setattr(config, "sliding_window", window - 1)  # noqa: B010
    try:
        seen = {
            number
            for number, sight in enumerate(measure_leakage(official, sample_token_ids(official)))
            if sight.future > tolerances(official.dtype).leakage
        }
        wanted = case.alone(official)
    except (AttributeError, TypeError, RuntimeError) as error:
        return Check(name, "skip", f"transformers' own is_causal=False fails here: {error}")
    if missing := set(numbers) - seen:
        return Check(
            name,
            "skip",
            f"transformers' own is_causal=False leaves layers {layer_spec.format_layers(sorted(missing))} causal",
        )
    return case.compare(
        name,
        case.alone(open_layers(causal_copy(case.model), numbers)),
        wanted,
        "every attention layer open, texts alone, against config.is_causal=False",
        "bellm and transformers disagree on what bidirectional means here; report the model.",
    )


_STATE_CHECKS: tuple[Callable[[_Case], Check], ...] = (
    _padding,
    _batch,
    _left,
    _order,
    _backends,
    _packed,
    _closed,
    _official,
)


def _directions(rows: Sequence[LayerSight], limit: float) -> Check:
    blind = [row.layer for row in rows if row.is_open and row.sight.future <= limit]
    leaky = [row.layer for row in rows if not row.is_open and row.sight.future > limit]
    chosen = layer_spec.format_layers([row.layer for row in rows if row.is_open])
    name = "open layers, and only they, see the future"
    leak = max((row.sight.future for row in rows if not row.is_open), default=0.0)
    if not blind and not leaky:
        return Check(name, "pass", f"open: {chosen}; largest leak of a closed layer", "", leak, limit)
    said = [f"open but causal: {layer_spec.format_layers(blind)}"] if blind else []
    said += [f"closed but leaking: {layer_spec.format_layers(leaky)}"] if leaky else []
    return Check(
        name,
        "fail",
        "; ".join(said),
        "These layers do not heed their mask. Choose other layers, try attention='eager', or take another model: its "
        "vectors are not what the map says.",
        leak,
        limit,
    )


def _settings(encoder: Encoder, rows: Sequence[LayerSight]) -> Check:
    asked = layer_spec.format_layers(encoder.config.bidirectional)
    found = layer_spec.format_layers([row.layer for row in rows if row.is_open])
    name = "the model is what the settings say"
    if asked == found:
        return Check(name, "pass", f"{asked} open")
    return Check(name, "fail", f"the settings say {asked} open, the model has {found}", "Load the encoder again.")


def _vectors(encoder: Encoder) -> Check:
    texts = saving.FINGERPRINT_TEXTS
    batch = encoder.encode(texts)
    single = encoder.encode(texts[::-1], max_batch_tokens=1)[::-1]
    value, limit = relative_distance(single, batch), tolerances(encoder.model.dtype).states
    good = value <= limit
    return Check(
        "encode gives one vector for one text",
        "pass" if good else "fail",
        "one at a time in reverse against one batch",
        "" if good else "Vectors depend on batch mates; see the checks above for the cause.",
        value,
        limit,
    )


def _kinds(rows: Sequence[LayerSight]) -> Check:
    names = sorted({row.kind for row in rows})
    said = "; ".join(
        f"{kind}: {layer_spec.format_layers([row.layer for row in rows if row.kind == kind])}" for kind in names
    )
    return Check("kinds of layers", "pass", said)


def _no_op(encoder: Encoder) -> Check:
    config = encoder.config
    reason = layer_spec.no_op_reason(
        config.bidirectional,
        num_layers=encoder.num_layers,
        variant=config.variant,
        pooling=config.pooling,
        layer=config.layer,
    )
    name = "the open layers reach the vector"
    if reason:
        return Check(name, "warn", reason, "Open lower layers too (last:8), or pool the mean.")
    return Check(name, "pass", f"pooling {config.pooling} of state {config.layer}")


def _chat_template(encoder: Encoder) -> Check:
    name = "no chat template around texts"
    if encoder.config.prompt.name == "chat":
        return Check(name, "warn", "prompt 'chat' was asked for", "Vectors of other libraries may lack the template.")
    has_one = "the tokenizer has one; it is" if encoder.tokenizer.chat_template else "the tokenizer has none; none is"
    return Check(name, "pass", f"{has_one} not applied")


def _fingerprint(encoder: Encoder, saved: saving.SavedEncoder) -> Check:
    value = relative_distance(encoder.fingerprint(), saved.fingerprint)
    limit = tolerances(saved.dtype, encoder.dtype_name).fingerprint
    good = value <= limit
    advice = "" if good else "The weights are not those that were saved. Restore them or save again."
    return Check("fingerprint", "pass" if good else "fail", "vectors as on the day of saving", advice, value, limit)


def _another(case: _Case) -> int:
    """A token id far from the one that pads."""
    vocabulary = case.model.get_input_embeddings().weight.shape[0]
    return int((case.pad_id + vocabulary // 2) % vocabulary)
