"""Score layer sets (maps of open layers) and Token Prepending on a development set, without training.

Shapes: N texts, D width.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bellm import layer_spec
from bellm.backbone.architecture import get_layers
from bellm.data import STSPairs
from bellm.encoder import Encoder
from bellm.engine.activation_cache import share_activations
from bellm.errors import NoOpWarning
from bellm.evaluate import EvaluatedModel, TaskResult, score_sts
from bellm.report import statistics
from bellm.report.statistics import BootstrapEstimate, Difference, Score
from bellm.tensors.similarity import normalize_rows
from bellm.types import Vectors

CAUSAL, ALL = "none", "all"
"""The baselines of every map."""

Maps = Mapping[str, tuple[int, ...]]
"""Maps in the grammar of `bellm.layer_spec`, and the layers that they open."""

_DEPTHS = (4, 8)
_DECIMALS = 2  # Of points; scores that agree so far are equal.


@dataclass(frozen=True)
class Candidate:
    """A map of open layers and the scores of the encoder with it, or Token Prepending, which opens none."""

    bidirectional: str
    open_layers: tuple[int, ...]
    score: Score
    over_causal: Difference
    """To no open layers; the p-value is corrected for the number of candidates."""
    over_all: Difference
    """To all layers open; the p-value is corrected likewise."""
    moved: float
    """Mean of 1 - cosine between a text's vector and its causal vector."""
    no_op: str | None
    """Why it cannot change the vectors, if so: it is scored as the causal model that it is."""
    prepending: int = 0
    """Depth of Token Prepending (see `bellm.layer_search.prepending`); 0 for a map."""

    @property
    def is_causal(self) -> bool:
        """Whether it is the model as it comes: nothing open, nothing prepended."""
        return not self.open_layers and not self.prepending

    @property
    def name(self) -> str:
        """Name for tables: `causal`, `layer 12`, the map, or `prepending:8`."""
        if self.prepending:
            return _prepending(self.prepending)
        if self.is_causal:
            return "causal"
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


def layer_sets(encoder: Encoder, more: Sequence[str] = ()) -> Maps:
    """The maps to try: none, all, the last and first 1, 2, 4, ..., the middle third, every second, each layer alone.

    Layers without attention stay out. Of maps that open the same layers the first is tried.

    Args:
        encoder: Whose layers they are.
        more: Other maps to try besides.
    """
    openable = {layer.index for layer in get_layers(encoder.model) if layer.can_open}
    found: dict[tuple[int, ...], str] = {(): CAUSAL}
    for spec in (*_specs(encoder.num_layers), *more):
        layers = tuple(number for number in layer_spec.parse_layers(spec, encoder.num_layers) if number in openable)
        found.setdefault(layers, spec)
    return {spec: layers for layers, spec in found.items()}


def prepending_depths(encoder: Encoder) -> tuple[int, ...]:
    """The depths of Token Prepending to try: 4 and 8 layers, as far as there are so many.

    Its authors' code takes 7 of 32 layers, 6 of 28 and 42, and 3 of 32. Few are tried, because each candidate makes the
    correction harsher for all.
    """
    return tuple(sorted({min(depth, encoder.num_layers) for depth in _DEPTHS} - {1}))


def score_candidates(
    encoder: Encoder,
    pairs: STSPairs,
    maps: Maps,
    cache: Path,
    *,
    depths: Sequence[int] = (),
    resamples: int = 4000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> CandidateScores:
    """Score every candidate and compare it with the causal model and with all layers open.

    Args:
        encoder: Whose weights, prompt, pooling and reading are used.
        pairs: Development set, N rated pairs.
        maps: The maps to try; no open layers first, and all among the others.
        cache: Folder that keeps vectors; `bellm evaluate` shares it.
        depths: Depths of Token Prepending to try besides.
        resamples: Bootstrap replicates. No p-value is below 1 / resamples, and the correction multiplies it by up to
            the number of candidates.
        seed: Of the bootstrap.
        progress: Called with the candidate that is next, how many are done, and how many there are.
    """
    assert next(iter(maps)) == CAUSAL
    depth_of = {_prepending(depth): depth for depth in depths}
    tried: Maps = {**maps, **dict.fromkeys(depth_of, ())}
    no_ops = {name: _no_op(encoder, layers) for name, layers in tried.items()}
    texts = list(dict.fromkeys((*pairs.left, *pairs.right)))
    results: dict[str, TaskResult] = {}
    moved: dict[str, float] = {}
    causal_ND: Vectors | None = None
    with share_activations():
        for number, name in enumerate(sorted(tried, key=lambda name: (name != CAUSAL, min(tried[name], default=0)))):
            progress(name, number, len(tried))
            if no_ops[name]:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # Said of all layers that are alone beside the stack.
                opened = encoder.replace(bidirectional=tried[name], token_prepending=depth_of.get(name, 0))
            subject = EvaluatedModel.of(opened, name, cache)
            results[name] = score_sts(subject, pairs)
            vectors_ND = subject.vectors(texts)
            causal_ND = vectors_ND if causal_ND is None else causal_ND
            moved[name] = _moved(vectors_ND, causal_ND)
    estimates = {
        name: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples, seed=seed)
        for name, result in results.items()
    }
    same = {name: CAUSAL if reason else name for name, reason in no_ops.items()}
    over_causal, over_all = compare_with(estimates, CAUSAL), compare_with(estimates, same[ALL])
    found = [
        Candidate(
            bidirectional=CAUSAL if name in depth_of else name,
            open_layers=layers,
            score=results[same[name]].to_score(estimates[same[name]]),
            over_causal=over_causal[same[name]],
            over_all=over_all[same[name]],
            moved=moved[same[name]],
            no_op=no_ops[name],
            prepending=depth_of.get(name, 0),
        )
        for name, layers in tried.items()
    ]
    order = sorted(found, key=lambda one: (*rank_key(one.score, one.open_layers), one.prepending))
    return CandidateScores(pairs.name, encoder.num_layers, tuple(order))


def rank_key(score: Score, open_layers: Sequence[int]) -> tuple[float, int]:
    """Key that sorts the best first; of equal scores the one with fewer open layers."""
    return -round(score.value, _DECIMALS), len(open_layers)


def compare_with(
    estimates: Mapping[str, BootstrapEstimate], baseline: str, *, num_gone: int = 0
) -> dict[str, Difference]:
    """Differences to a baseline, Holm-corrected for their number.

    Args:
        estimates: Scores of all candidates on the same items, the baseline's among them.
        baseline: Name of the baseline.
        num_gone: Number of candidates besides that were sorted out before; they count with p = 1.
    """
    differences = {name: statistics.paired_difference(one, estimates[baseline]) for name, one in estimates.items()}
    tested = {name: difference for name, difference in differences.items() if name != baseline}
    gone = {f"gone {index}": Difference(0, 0, 0, 1) for index in range(num_gone)}
    corrected = statistics.holm_correction({**tested, **gone})
    return {name: corrected.get(name, difference) for name, difference in differences.items()}


def _prepending(depth: int) -> str:
    return f"prepending:{depth}"


def _specs(num_layers: int) -> Iterator[str]:
    yield ALL
    powers = [2**power for power in range(num_layers.bit_length()) if 2**power <= num_layers]
    yield from (f"last:{count}" for count in powers)
    yield from (f"first:{count}" for count in powers)
    if num_layers > 2:
        yield layer_spec.format_layers(range(num_layers // 3, 2 * num_layers // 3))
    yield from ("every:2",) if num_layers > 1 else ()
    yield from map(str, range(num_layers))


def _no_op(encoder: Encoder, layers: Sequence[int]) -> str | None:
    config = encoder.config
    if config.variant == "parallel":
        return None  # Open or not, what leaves the stack changes the vectors.
    return replace(config, bidirectional=tuple(layers)).no_op_reason(encoder.num_layers)


def _moved(vectors_ND: Vectors, causal_ND: Vectors) -> float:
    """Mean of 1 - cosine of rows, as half the squared distance of unit vectors, which is 0 for equal rows."""
    return float(((normalize_rows(vectors_ND) - normalize_rows(causal_ND)) ** 2).sum(axis=1).mean() / 2)
