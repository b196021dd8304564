"""Scores of the layer sets after each round of successive halving, compared with the baselines, and who goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bellm.evaluate import TaskResult
from bellm.layer_search.candidates import ALL, CAUSAL, Candidate, compare_with, rank_key
from bellm.layer_search.halving_plan import HalvingPlan, HalvingRound
from bellm.report import statistics
from bellm.report.statistics import Difference, Score


@dataclass(frozen=True)
class RoundResult:
    """Score of a map at the end of a round."""

    steps: int
    score: Score
    over_causal: Difference
    """To no open layers after as many steps; the p-value is corrected for all maps that were trained."""
    over_all: Difference
    """To all layers open after as many steps; the p-value is corrected likewise."""


@dataclass(frozen=True)
class TrainedMap:
    """A map and its scores, round by round."""

    name: str
    bidirectional: str
    open_layers: tuple[int, ...]
    rounds_done: tuple[RoundResult, ...]
    """Round after round, until it left."""
    left: int | None
    """After which round, from 1; None for those that came to the end."""

    @property
    def last(self) -> RoundResult:
        """Its result when it left, or at the end."""
        return self.rounds_done[-1]


@dataclass(frozen=True)
class HalvingResult:
    """Outcome of a search with training."""

    task: str
    """Development set by which maps were chosen."""
    data: tuple[str, ...]
    """Training data sets."""
    budget: str
    rounds: tuple[HalvingRound, ...]
    batch_size: int
    seed: int
    """Of the one training that each map had."""
    maps: tuple[TrainedMap, ...]
    """Those that came furthest first, and of these the best; of equals the one with fewer open layers."""

    @property
    def causal(self) -> TrainedMap:
        """The model without open layers."""
        return next(trained for trained in self.maps if not trained.open_layers)

    @property
    def best(self) -> TrainedMap:
        """The map that scored best at the end, the causal model aside."""
        return next(trained for trained in self.maps if trained.open_layers and trained.left is None)


def survivors(
    maps: Sequence[Candidate], rounds_done: Mapping[str, Sequence[RoundResult]], count: int
) -> tuple[Candidate, ...]:
    """The two baselines, which come first, and the best of the other maps: `count` in all."""
    baselines, others = maps[:2], maps[2:]
    if count < len(maps):
        others = sorted(others, key=lambda c: rank_key(rounds_done[c.bidirectional][-1].score, c.open_layers))
    return (*baselines, *others[: count - 2])


def round_results(
    results: Mapping[str, TaskResult], *, steps: int, num_maps: int, resamples: int
) -> dict[str, RoundResult]:
    """Compare the maps of a round with its baselines; those that left count in Holm's correction with p = 1.

    Args:
        results: Scores of the maps that were trained in this round, by their layer spec.
        steps: Training steps of each map so far.
        num_maps: Number of maps in the first round.
        resamples: Bootstrap replicates.
    """
    estimates = {
        spec: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples)
        for spec, result in results.items()
    }
    num_gone = num_maps - len(results)
    over_causal, over_all = (compare_with(estimates, baseline, num_gone=num_gone) for baseline in (CAUSAL, ALL))
    return {
        spec: RoundResult(steps, result.to_score(estimates[spec]), over_causal[spec], over_all[spec])
        for spec, result in results.items()
    }


def trained_maps(plan: HalvingPlan, rounds_done: Mapping[str, Sequence[RoundResult]]) -> tuple[TrainedMap, ...]:
    """All maps with their results, those that came furthest first."""
    trained = []
    for candidate in plan.maps:
        done = tuple(rounds_done[candidate.bidirectional])
        left = len(done) if len(done) < len(plan.rounds) else None
        trained.append(TrainedMap(candidate.name, candidate.bidirectional, candidate.open_layers, done, left))
    return tuple(sorted(trained, key=lambda m: (-len(m.rounds_done), rank_key(m.last.score, m.open_layers))))
