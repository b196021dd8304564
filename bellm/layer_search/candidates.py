"""Score layer sets (maps of open layers) and Token Prepending on a development set, without training.

Shapes: N texts, D width.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bellm import layer_spec
from bellm.backbone.architecture import get_layers
from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.engine.activation_cache import share_activations
from bellm.errors import BellmError, NoOpWarning
from bellm.evaluate import EvaluatedModel, TaskResult, score_sts
from bellm.multiview import MultiViewEncoder
from bellm.report import statistics
from bellm.report.statistics import Difference, Score
from bellm.saving import weights_digest
from bellm.tensors.similarity import normalize_rows
from bellm.types import Vectors

CAUSAL, ALL = "none", "all"
"""The baselines of every map."""

LayerSets = Mapping[str, tuple[int, ...]]
"""Maps in the grammar of `bellm.layer_spec`, and the layers that they open."""

_DECIMALS = 2  # Of points; scores that agree so far are equal.


@dataclass(frozen=True)
class Candidate:
    """A map of open layers and the scores of the encoder with it, or Token Prepending, which opens none.

    P-values of the differences, to causal and to all layers open, are corrected for the number of candidates.
    """

    bidirectional: str
    open_layers: tuple[int, ...]
    score: Score
    over_causal: Difference
    over_all: Difference
    moved: float
    """Mean of 1 - cosine between a text's vector and its causal vector."""
    no_op: str | None
    """Why it cannot change the vectors, if so: it is scored as the causal model that it is."""
    prepending: int = 0
    """Depth of Token Prepending (arXiv 2412.11556); 0 for a map."""

    @property
    def is_causal(self) -> bool:
        """Whether it is the model as it comes: nothing open, nothing prepended."""
        return not self.open_layers and not self.prepending

    @property
    def name(self) -> str:
        """Name for tables: `causal`, `layer 12`, the map, or `prepending:8`."""
        if not self.open_layers:
            return _prepending(self.prepending) if self.prepending else "causal"
        return f"layer {self.bidirectional}" if self.bidirectional.isdigit() else self.bidirectional


@dataclass(frozen=True)
class CandidateScores:
    """Scores of all candidates on a development set."""

    task: str
    num_layers: int
    candidates: tuple[Candidate, ...]
    """Best first; of equals the one with fewer open layers."""

    @property
    def causal(self) -> Candidate:
        """The model without open layers."""
        return self.find(CAUSAL)

    def find(self, bidirectional: str) -> Candidate:
        """The candidate that opens the layers of a map."""
        (openable,) = (one.open_layers for one in self.candidates if one.bidirectional == ALL)
        wanted = set(layer_spec.parse_layers(bidirectional, self.num_layers)) & set(openable)
        return next(one for one in self.candidates if set(one.open_layers) == wanted and not one.prepending)

    @property
    def tested(self) -> tuple[Candidate, ...]:
        """All candidates that can differ from the causal model, best first."""
        return tuple(one for one in self.candidates if not one.is_causal and not one.no_op)


def encoders_of(encoder: Encoder | MultiViewEncoder) -> tuple[Encoder, ...]:
    """The encoders in which a map opens layers: the encoder itself, or those of all views.

    Raises:
        BellmError: Views are of models with other layers, so that a map would not mean the same in each.
    """
    if isinstance(encoder, Encoder):
        return (encoder,)
    depths = [each.num_layers for each in encoder.encoders]
    if len(depths) < len(encoder.views) or len(set(depths)) > 1:
        raise BellmError(
            f"A map opens the same layers in all views, and the encoders of {encoder.source} have {depths} layers. "
            "Search each view alone, as in FOLDER/view-1."
        )
    return encoder.encoders


def make_layer_sets(encoder: Encoder | MultiViewEncoder, more: Sequence[str] = ()) -> LayerSets:
    """The maps to try: none, all, the last and first 1, 2, 4, ..., the middle third, every second, each layer alone.

    Layers without attention stay out. Of maps that open the same layers the first is tried; `more` come last.
    """
    first = encoders_of(encoder)[0]
    num_layers = first.num_layers
    powers = [2**power for power in range(num_layers.bit_length()) if 2**power <= num_layers]
    specs = [ALL, *(f"{end}:{count}" for end in ("last", "first") for count in powers)]
    if num_layers > 2:
        specs.append(layer_spec.format_layers(range(num_layers // 3, 2 * num_layers // 3)))
    if num_layers > 1:
        specs.append("every:2")
    openable = {layer.index for layer in get_layers(first.model) if layer.can_open}
    found: dict[tuple[int, ...], str] = {(): CAUSAL}
    for spec in (*specs, *map(str, range(num_layers)), *more):
        layers = tuple(index for index in layer_spec.parse_layers(spec, num_layers) if index in openable)
        found.setdefault(layers, spec)
    return {spec: layers for layers, spec in found.items()}


def prepending_depths(encoder: Encoder | MultiViewEncoder) -> tuple[int, ...]:
    """The depths of Token Prepending to try: 4 and 8 layers, as far as there are so many.

    Its authors' code takes 7 of 32 layers, 6 of 28 and 42, and 3 of 32. Few are tried, because each candidate makes the
    correction harsher for all.
    """
    num_layers = encoders_of(encoder)[0].num_layers
    return tuple(sorted({min(depth, num_layers) for depth in (4, 8)} - {1}))


def score_candidates(
    encoder: Encoder | MultiViewEncoder,
    pairs: STSPairs,
    layer_sets: LayerSets,
    cache: Path,
    *,
    depths: Sequence[int] = (),
    resamples: int = 4000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> CandidateScores:
    """Score every candidate and compare it with the causal model and with all layers open.

    Args:
        encoder: Whose weights, prompt, pooling and variant are used. Of several views a map opens the layers in each.
        pairs: Development set, N rated pairs.
        layer_sets: The maps to try; no open layers first, and all among the others.
        cache: Folder that keeps vectors; `bellm evaluate` shares it.
        depths: Depths of Token Prepending to try besides.
        resamples: Bootstrap replicates. No p-value is below 1 / resamples, and the correction multiplies it by up to
            the number of candidates.
        seed: Of the bootstrap.
        progress: Called with the candidate that is next, how many are done, and how many there are.
    """
    assert next(iter(layer_sets)) == CAUSAL
    depth_of = {_prepending(depth): depth for depth in depths}
    tried: LayerSets = {**layer_sets, **dict.fromkeys(depth_of, ())}
    encoders = encoders_of(encoder)
    no_ops = {name: _no_op(encoders, layers) for name, layers in tried.items()}
    texts = list(dict.fromkeys((*pairs.left, *pairs.right)))
    results: dict[str, TaskResult] = {}
    moved: dict[str, float] = {}
    causal_ND: Vectors | None = None
    # All candidates have the same.
    weights = weights_digest(encoder.model) if isinstance(encoder, Encoder) else encoder.weights_digest()
    with share_activations():
        for number, name in enumerate(sorted(tried, key=lambda name: (name != CAUSAL, min(tried[name], default=0)))):
            progress(name, number, len(tried))
            if no_ops[name]:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # Said of all layers that are alone beside the stack.
                opened = encoder.replace(bidirectional=tried[name], token_prepending=depth_of.get(name, 0))
            model = EvaluatedModel.of(opened, name, cache, weights)
            results[name] = score_sts(model, pairs)
            vectors_ND = normalize_rows(model.vectors(texts))
            causal_ND = vectors_ND if causal_ND is None else causal_ND
            # 1 - cosine is half the squared distance of unit vectors, which is exactly 0 for equal rows.
            moved[name] = float(((vectors_ND - causal_ND) ** 2).sum(axis=1).mean() / 2)
    same = {name: CAUSAL if reason else name for name, reason in no_ops.items()}
    compared = compare_results(results, all_open=same[ALL], resamples=resamples, seed=seed)
    candidates = [
        Candidate(
            CAUSAL if name in depth_of else name,
            layers,
            *compared[same[name]],
            moved=moved[same[name]],
            no_op=no_ops[name],
            prepending=depth_of.get(name, 0),
        )
        for name, layers in tried.items()
    ]
    order = sorted(candidates, key=lambda one: (*rank_key(one.score, one.open_layers), one.prepending))
    return CandidateScores(pairs.name, encoders[0].num_layers, tuple(order))


def rank_key(score: Score, open_layers: Sequence[int]) -> tuple[float, int]:
    """Key that sorts the best first; of equal scores the one with fewer open layers."""
    return -round(score.value, _DECIMALS), len(open_layers)


def compare_results(
    results: Mapping[str, TaskResult], *, all_open: str = ALL, num_gone: int = 0, resamples: int, seed: int = 0
) -> dict[str, tuple[Score, Difference, Difference]]:
    """Score of each candidate, and its differences to causal and to all layers open, Holm-corrected for their number.

    Args:
        results: Results of all candidates on the same pairs, the causal model's among them.
        all_open: Name of the result with all layers open.
        num_gone: Number of candidates besides that were sorted out before; they count with p = 1.
        resamples: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    estimates = {
        name: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples, seed=seed)
        for name, result in results.items()
    }
    gone = {f"gone {index}": Difference(0, 0, 0, 1) for index in range(num_gone)}

    def over(baseline: str) -> dict[str, Difference]:
        differences = {name: statistics.paired_difference(one, estimates[baseline]) for name, one in estimates.items()}
        tested = {name: difference for name, difference in differences.items() if name != baseline}
        return differences | statistics.holm_correction(tested | gone)

    over_causal, over_all = over(CAUSAL), over(all_open)
    return {
        name: (result.to_score(estimates[name]), over_causal[name], over_all[name]) for name, result in results.items()
    }


def _prepending(depth: int) -> str:
    return f"prepending:{depth}"


def _no_op(encoders: Sequence[Encoder], layers: tuple[int, ...]) -> str | None:
    """Why opening layers changes no vector of any view."""
    if any(each.config.variant == "parallel" for each in encoders) or not layers:
        return None  # Open or not, what leaves the stack changes the vectors; without open layers it is the baseline.
    reasons = [replace(each.config, bidirectional=layers).no_op_reason(each.num_layers) for each in encoders]
    return reasons[0] if all(reasons) else None
