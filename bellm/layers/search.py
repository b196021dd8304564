"""Which map of open layers scores best on a development set, untrained.

Shapes: N texts, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bellm import directions
from bellm.backbone.layers import layers_of
from bellm.encoder import Encoder
from bellm.evaluate import statistics
from bellm.evaluate.results import Difference, Outcome, Score
from bellm.evaluate.sets.pairs import Pairs
from bellm.evaluate.similarity import score_pairs
from bellm.evaluate.sources import of_encoder
from bellm.evaluate.statistics import Estimate
from bellm.tensors.similarity import normalise
from bellm.types import Vectors

CAUSAL, ALL = "none", "all"
"""The baselines of every map."""

Maps = Mapping[str, tuple[int, ...]]
"""Maps in the grammar of `bellm.directions`, and the layers that they open."""

_DECIMALS = 2  # Of points; scores that agree so far are equal.


@dataclass(frozen=True)
class Candidate:
    """A map, and what opening its layers does."""

    bidirectional: str
    open_layers: tuple[int, ...]
    score: Score
    over_causal: Difference
    """To no open layers; the p-value is corrected for the number of maps."""
    over_all: Difference
    """To all layers open; the p-value is corrected likewise."""
    moved: float
    """Mean of 1 - cosine between a text's vector and its causal vector."""
    no_op: str | None
    """Why it cannot change the vectors, if so: it is scored as the causal model that it is."""

    @property
    def name(self) -> str:
        """What to call it: `causal`, `layer 12`, or the map."""
        if not self.open_layers:
            return "causal"
        return f"layer {self.bidirectional}" if self.bidirectional.isdigit() else self.bidirectional


@dataclass(frozen=True)
class Search:
    """What was tried on a development set."""

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
        wanted = set(directions.parse(bidirectional, self.num_layers)) & set(openable)
        return next(one for one in self.candidates if set(one.open_layers) == wanted)

    @property
    def tested(self) -> tuple[Candidate, ...]:
        """All maps that can differ from the causal model, best first."""
        return tuple(one for one in self.candidates if one.open_layers and not one.no_op)


def maps_of(encoder: Encoder, more: Sequence[str] = ()) -> Maps:
    """The maps to try: none, all, the last and first 1, 2, 4, ..., the middle third, every second, each layer alone.

    Layers without attention stay out. Of maps that open the same layers the first is tried.

    Args:
        encoder: Whose layers they are.
        more: Other maps to try besides.
    """
    openable = {layer.number for layer in layers_of(encoder.model) if layer.can_open}
    found: dict[tuple[int, ...], str] = {(): CAUSAL}
    for spec in (*_specs(encoder.num_layers), *more):
        layers = tuple(number for number in directions.parse(spec, encoder.num_layers) if number in openable)
        found.setdefault(layers, spec)
    return {spec: layers for layers, spec in found.items()}


def search(
    encoder: Encoder,
    pairs: Pairs,
    maps: Maps,
    cache: Path,
    *,
    resamples: int = 4000,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Search:
    """Score every map and compare it with the causal model and with all layers open.

    Args:
        encoder: Whose weights, prompt, pooling and reading are used.
        pairs: Development set.
        maps: What to try; no open layers first, and all among the others.
        cache: Folder that keeps vectors; `bellm evaluate` shares it.
        resamples: Bootstrap replicates. No p-value is below 1 / resamples, and the correction multiplies it by up to
            the number of maps.
        seed: Of the bootstrap.
        progress: Told which map is next, how many are done, and how many there are.
    """
    assert next(iter(maps)) == CAUSAL
    no_ops = {spec: _no_op(encoder, layers) for spec, layers in maps.items()}
    texts = list(dict.fromkeys((*pairs.left, *pairs.right)))
    outcomes: dict[str, Outcome] = {}
    moved: dict[str, float] = {}
    causal_ND: Vectors | None = None
    for number, (spec, layers) in enumerate(maps.items()):
        progress(spec, number, len(maps))
        if not no_ops[spec]:
            subject = of_encoder(encoder.replace(bidirectional=layers), spec, cache)
            outcomes[spec] = score_pairs(subject, pairs)
            vectors_ND = subject.vectors(texts)
            causal_ND = vectors_ND if causal_ND is None else causal_ND
            moved[spec] = _moved(vectors_ND, causal_ND)
    estimates = {
        spec: statistics.estimate(outcome.items_N, outcome.gold_N, resamples=resamples, seed=seed)
        for spec, outcome in outcomes.items()
    }
    same = {spec: CAUSAL if reason else spec for spec, reason in no_ops.items()}
    over_causal, over_all = _over(estimates, CAUSAL), _over(estimates, same[ALL])
    found = [
        Candidate(
            bidirectional=spec,
            open_layers=layers,
            score=statistics.score_of(outcomes[same[spec]], estimates[same[spec]]),
            over_causal=over_causal[same[spec]],
            over_all=over_all[same[spec]],
            moved=moved[same[spec]],
            no_op=no_ops[spec],
        )
        for spec, layers in maps.items()
    ]
    order = sorted(found, key=lambda one: (-round(one.score.value, _DECIMALS), len(one.open_layers)))
    return Search(pairs.name, encoder.num_layers, tuple(order))


def _specs(num_layers: int) -> Iterator[str]:
    yield ALL
    powers = [2**power for power in range(num_layers.bit_length()) if 2**power <= num_layers]
    yield from (f"last:{count}" for count in powers)
    yield from (f"first:{count}" for count in powers)
    if num_layers > 2:
        yield directions.describe(range(num_layers // 3, 2 * num_layers // 3))
    yield from ("every:2",) if num_layers > 1 else ()
    yield from map(str, range(num_layers))


def _no_op(encoder: Encoder, layers: Sequence[int]) -> str | None:
    settings = encoder.settings
    return directions.no_op(
        layers,
        num_layers=encoder.num_layers,
        reading=settings.reading,
        pooling=settings.pooling,
        layer=settings.layer,
    )


def _over(estimates: Mapping[str, Estimate], baseline: str) -> dict[str, Difference]:
    """Differences to a baseline, corrected for their number."""
    found = {spec: statistics.difference(one, estimates[baseline]) for spec, one in estimates.items()}
    tested = {spec: one for spec, one in found.items() if spec != baseline}
    return {**found, **statistics.corrected(tested)}


def _moved(vectors_ND: Vectors, causal_ND: Vectors) -> float:
    """Mean of 1 - cosine of rows, as half the squared distance of unit vectors, which is 0 for equal rows."""
    return float(((normalise(vectors_ND) - normalise(causal_ND)) ** 2).sum(axis=1).mean() / 2)
