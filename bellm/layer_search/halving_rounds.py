"""Rounds of successive halving: which layer sets train for how many steps, their scores, and which stay."""

import math
from dataclasses import dataclass
from itertools import pairwise

from bellm.errors import BellmError
from bellm.layer_search.candidates import ALL, Candidate, CandidateScores
from bellm.report.statistics import Difference, Score
from bellm.train import Recipe

_MAX_CANDIDATES = 8  # The baselines among them.
_FINALISTS = 2  # Besides the baselines.


@dataclass(frozen=True)
class HalvingRound:
    """How many maps a round trains, and how far."""

    num_candidates: int
    steps: int
    """Steps of each map at the end of the round, earlier rounds included."""


@dataclass(frozen=True)
class HalvingPlan:
    """Which maps are trained for how long; fixed before any training."""

    candidates: tuple[Candidate, ...]
    """Causal, all layers open, and those that may beat them."""
    rounds: tuple[HalvingRound, ...]
    batch_size: int

    @property
    def steps(self) -> int:
        """Training steps of all maps together."""
        stops = (0, *(part.steps for part in self.rounds))
        return sum(
            part.num_candidates * (stop - start)
            for part, (start, stop) in zip(self.rounds, pairwise(stops), strict=True)
        )

    @property
    def budget(self) -> str:
        """The plan in a sentence."""
        first, *others = self.rounds
        rounds = [
            f"{first.num_candidates} maps to step {first.steps}",
            *(f"{part.num_candidates} to {part.steps}" for part in others),
        ]
        together = f"{self.steps} steps of {self.batch_size} rows"
        return f"{', '.join(rounds)} (causal and all open stay to the end): {together}"


@dataclass(frozen=True)
class RoundResult:
    """Score of a map at the end of a round, and its differences to the baselines after as many steps.

    P-values are corrected for all maps that were trained.
    """

    steps: int
    score: Score
    over_causal: Difference
    over_all: Difference


@dataclass(frozen=True)
class TrainedCandidate:
    """A map and its scores, round by round."""

    name: str
    bidirectional: str
    open_layers: tuple[int, ...]
    rounds_done: tuple[RoundResult, ...]
    left: int | None
    """After which round, from 1; None for those that came to the end."""

    @property
    def last(self) -> RoundResult:
        """Its result when it left, or at the end."""
        return self.rounds_done[-1]


@dataclass(frozen=True)
class HalvingResult:
    """Outcome of a search with training: by which development set, on what data, and all maps.

    Each map had one training, with the same seed.
    """

    task: str
    data: tuple[str, ...]
    budget: str
    rounds: tuple[HalvingRound, ...]
    batch_size: int
    seed: int
    candidates: tuple[TrainedCandidate, ...]
    """Those that came furthest first, and of these the best; of equals the one with fewer open layers."""

    @property
    def causal(self) -> TrainedCandidate:
        """The model without open layers."""
        return next(trained for trained in self.candidates if not trained.open_layers)

    @property
    def best(self) -> TrainedCandidate:
        """The map that scored best at the end, the causal model aside."""
        return next(trained for trained in self.candidates if trained.open_layers and trained.left is None)


def plan_halving(search: CandidateScores, rule: str | None, recipe: Recipe) -> HalvingPlan:
    """Choose maps by their scores without training, and share out the steps: `max_steps`, and half before each round.

    Eight maps at most: causal, all open, what the paper's rule opens, the best of each kind (first layers, last ones, a
    range, every second, one alone), so that a kind that suffers most untrained has its chance too, and then the next
    best of all. No-ops stay out, and of maps that give the same vectors all but the one with the fewest open layers.

    Raises:
        BellmError: No map can change the vectors, or the steps are too few to be halved.
    """
    assert recipe.max_steps
    candidates = (search.causal, search.find(ALL), *_likeliest(search, rule))
    counts = [len(candidates) - 2]
    while counts[-1] > _FINALISTS:
        counts.append(math.ceil(counts[-1] / 2))
    shares = [2**power for power in reversed(range(len(counts)))]
    if recipe.max_steps < shares[0]:
        raise BellmError(
            f"{recipe.max_steps} steps cannot be halved for {len(counts)} rounds of {len(candidates)} maps. Give "
            f"{shares[0]} or more."
        )
    rounds = (HalvingRound(n + 2, math.ceil(recipe.max_steps / share)) for n, share in zip(counts, shares, strict=True))
    return HalvingPlan(candidates, tuple(rounds), recipe.batch_size)


def _likeliest(search: CandidateScores, rule: str | None) -> list[Candidate]:
    """The maps that may beat the baselines, best first."""
    able = [candidate for candidate in search.tested if candidate.open_layers]
    if not able:
        raise BellmError("No map can change these vectors, so that there is nothing to train. Leave --train out.")
    different: dict[tuple[float, float], Candidate] = {}
    for candidate in able:
        if candidate.bidirectional != ALL:
            different.setdefault(_vectors_key(candidate), candidate)
    candidates = list(different.values())
    by_rule = [c for c in candidates if rule and _vectors_key(c) == _vectors_key(search.find(rule))]
    best_of_kinds = {_kind(candidate): candidate for candidate in reversed(candidates)}
    chosen = {c.bidirectional: c for c in (*by_rule, *best_of_kinds.values(), *candidates)}
    return sorted(list(chosen.values())[: _MAX_CANDIDATES - 2], key=candidates.index)


def _vectors_key(candidate: Candidate) -> tuple[float, float]:
    """The same for maps that differ in layers whose states are not pooled, as the last one with last-token pooling."""
    return round(candidate.score.value, 3), round(candidate.moved, 5)


def _kind(candidate: Candidate) -> str:
    alone = len(candidate.open_layers) == 1
    return "alone" if alone else candidate.bidirectional.partition(":")[0].strip("0123456789-,")
