"""Which map of open layers scores best after a little training, by successive halving.

All maps are trained alike for a few steps, the better half goes on to twice as many, and so on (Jamieson and Talwalkar
2016, arXiv 1502.07943; one bracket of Hyperband, arXiv 1603.06560). A map is one run of training as long as the last
round, paused at the rounds before: those that come to the end are what training them alone would have given. The causal
model and all layers open are the baselines of the same budget; they stay to the end whatever they score.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from bellm import layer_spec
from bellm.data.sts import STSPairs
from bellm.errors import BellmError, SourceError
from bellm.evaluate.models import from_encoder
from bellm.evaluate.results import Difference, Score, TaskResult
from bellm.evaluate.sts_task import score_sts
from bellm.io import atomic
from bellm.layer_search.candidates import ALL, CAUSAL, Candidate, CandidateScores
from bellm.report import statistics
from bellm.report.statistics import BootstrapEstimate
from bellm.train.dataset import Dataset
from bellm.train.loop import train
from bellm.train.recipe import Recipe
from bellm.train.run_dir import CHECKPOINT, MODEL, lock_run_dir, refuse_other_config
from bellm.train.signals import resumable_errors

SEARCH = "search.json"
"""What a folder of runs was begun for."""

_MOST = 8  # Maps, the baselines among them.
_FINALISTS = 2  # Besides the baselines.
_CHECKPOINT_EVERY = 10
_DECIMALS = 2  # Of points; scores that agree so far are equal.


@dataclass(frozen=True)
class HalvingRound:
    """A part of the search."""

    maps: int
    """How many are trained."""
    steps: int
    """To how many each comes, those of the rounds before among them."""


@dataclass(frozen=True)
class HalvingPlan:
    """Which maps are trained for how long; laid down before any training."""

    maps: tuple[Candidate, ...]
    """Causal, all layers open, and those that may beat them."""
    rounds: tuple[HalvingRound, ...]
    batch_size: int

    @property
    def steps(self) -> int:
        """All steps of all maps."""
        before = (0, *(each.steps for each in self.rounds))
        return sum(
            each.maps * (stop - start) for each, (start, stop) in zip(self.rounds, pairwise(before), strict=True)
        )

    @property
    def budget(self) -> str:
        """The plan in a sentence."""
        first, *others = self.rounds
        rounds = ", ".join(
            [f"{first.maps} maps to step {first.steps}", *(f"{one.maps} to {one.steps}" for one in others)]
        )
        return f"{rounds} (causal and all open stay to the end): {self.steps} steps of {self.batch_size} rows"


@dataclass(frozen=True)
class RoundResult:
    """What a map was worth at the end of a round."""

    steps: int
    score: Score
    over_causal: Difference
    """To no open layers after as many steps; the p-value is corrected for all maps that were trained."""
    over_all: Difference
    """To all layers open after as many steps; the p-value is corrected likewise."""


@dataclass(frozen=True)
class TrainedMap:
    """A map, and what training made of it."""

    name: str
    bidirectional: str
    open_layers: tuple[int, ...]
    rounds_done: tuple[RoundResult, ...]
    """Round after round, until it left."""
    left: int | None
    """After which round, from 1; None for those that came to the end."""

    @property
    def last(self) -> RoundResult:
        """Where it stood when it left, or at the end."""
        return self.rounds_done[-1]


@dataclass(frozen=True)
class HalvingResult:
    """What came of a search with training."""

    task: str
    """What maps were chosen by."""
    data: tuple[str, ...]
    """What they learned from."""
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
        return next(one for one in self.maps if not one.open_layers)

    @property
    def best(self) -> TrainedMap:
        """The map that scored best at the end, the causal model aside."""
        return next(one for one in self.maps if one.open_layers and one.left is None)


def plan_halving(search: CandidateScores, rule: str | None, recipe: Recipe) -> HalvingPlan:
    """Choose maps by their scores without training, and share out the steps.

    Eight maps at most: causal, all open, what the paper's rule opens, the best of each kind (first layers, last ones, a
    range, every second, one alone), so that a kind that suffers most untrained has its chance too, and then the next
    best of all. No-ops stay out, and of maps that give the same vectors all but the one with the fewest open layers.

    Args:
        search: What came of the maps without training.
        rule: The map of the paper's rule, or None.
        recipe: Gives the steps of the last round as `max_steps`; each round before has half of the next one's.

    Raises:
        BellmError: No map can change the vectors, or the steps are too few to be halved.
    """
    assert recipe.max_steps
    maps = (search.causal, search.find(ALL), *_likeliest(search, rule))
    counts = [len(maps) - 2]
    while counts[-1] > _FINALISTS:
        counts.append(math.ceil(counts[-1] / 2))
    shares = [2**number for number in reversed(range(len(counts)))]
    if recipe.max_steps < shares[0]:
        raise BellmError(
            f"{recipe.max_steps} steps cannot be halved for {len(counts)} rounds of {len(maps)} maps. Give "
            f"{shares[0]} or more."
        )
    rounds = [
        HalvingRound(count + 2, math.ceil(recipe.max_steps / share))
        for count, share in zip(counts, shares, strict=True)
    ]
    return HalvingPlan(maps, tuple(rounds), recipe.batch_size)


def run_halving(
    plan: HalvingPlan,
    recipe: Recipe,
    sources: Sequence[tuple[Dataset, float]],
    dev: STSPairs,
    output: Path,
    *,
    resamples: int = 4000,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> HalvingResult:
    """Train the maps of a plan round by round, or go on where the search in this folder was stopped.

    All maps have the same data in the same order, the same seed and the same schedule. P-values are corrected (Holm)
    for all of them in every round: those that left were sorted out by the same pairs, and count as maps that could
    not be told from the baseline.

    Args:
        plan: From this search without training, and this recipe.
        recipe: How each map is trained, `bidirectional` aside; it goes through the data as often as the steps ask for.
        sources: What it learns from, each with its weight; see `bellm.train.batches`.
        dev: What maps are chosen by.
        output: Folder for a run of each map, which `bellm.train.loop.train` resumes.
        resamples: Bootstrap replicates; see `bellm.layer_search.candidates.score_candidates`.
        progress: Told what is trained, how many steps of all maps are done, and how many there are.

    Raises:
        SourceError: The folder holds another search, or is in use, or the disk refuses.
        BellmError: The recipe does not suit the data, or a gradient is no longer a number.
        Interrupted: Ctrl-C or a polite kill; the state was written.
    """
    assert recipe.dev is None
    assert recipe.max_steps
    recipe = replace(recipe, epochs=float(recipe.max_steps))
    with resumable_errors(output), lock_run_dir(output):
        _agree(output, plan, recipe, sources, dev)
        runs = _Runs(plan, recipe, sources, dev, output, progress)
        found: dict[str, list[RoundResult]] = {one.bidirectional: [] for one in plan.maps}
        staying = plan.maps
        for number, each in enumerate(plan.rounds, 1):
            staying = _best(staying, found, each.maps)
            results = {one.bidirectional: runs.result(one, number) for one in staying}
            for spec, round_result in _standings(results, each.steps, len(plan.maps), resamples).items():
                found[spec].append(round_result)
    return HalvingResult(
        task=dev.name,
        data=tuple(dataset.name for dataset, _ in sources),
        budget=plan.budget,
        rounds=plan.rounds,
        batch_size=plan.batch_size,
        seed=recipe.seed,
        maps=tuple(_trained(plan, found)),
    )


class _Runs:
    """The training of each map, in a folder of its own."""

    def __init__(
        self,
        plan: HalvingPlan,
        recipe: Recipe,
        sources: Sequence[tuple[Dataset, float]],
        dev: STSPairs,
        output: Path,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.plan, self.recipe, self.sources, self.dev = plan, recipe, sources, dev
        self.output, self.progress = output, progress
        self.done: dict[str, int] = {}

    def result(self, one: Candidate, number: int) -> TaskResult:
        """Train a map to the end of a round and score it; what was scored before is known."""
        steps = self.plan.rounds[number - 1].steps
        run = self.output / one.name.replace(":", "-").replace(" ", "-")
        scored = run / f"dev-{steps}.json"
        if not scored.exists():
            result = self._score(one, run, steps, f"{one.name}, round {number} of {len(self.plan.rounds)}")
            kept = {name: getattr(result, name) for name in _KEPT} | {"items": result.item_scores_N.tolist()}
            atomic.write_bytes(scored, (json.dumps(kept) + "\n").encode())
        self.done[one.bidirectional] = steps
        return _read(scored, self.dev)

    def _score(self, one: Candidate, run: Path, steps: int, what: str) -> TaskResult:
        def tell(step: int) -> None:
            self.done[one.bidirectional] = step
            self.progress(what, sum(self.done.values()), self.plan.steps)

        tell(self.done.get(one.bidirectional, 0))
        settings = {**self.recipe.encoder_options, "bidirectional": layer_spec.format_layers(one.open_layers)}
        encoder = train(
            replace(self.recipe, encoder_options=settings),
            self.sources,
            run,
            checkpoint_every=_CHECKPOINT_EVERY,
            progress=lambda step, *_: tell(step),
            until=steps,
        )
        return score_sts(from_encoder(encoder, one.name), self.dev)


_KEPT = ("task", "metric", "num_texts", "num_truncated", "extra_metrics")
"""Of an outcome, besides its items; ratings and texts are the development set's."""


def _read(scored: Path, dev: STSPairs) -> TaskResult:
    try:
        found = json.loads(scored.read_text(encoding="utf-8"))
        item_scores_N = np.array(found.pop("items"), dtype=np.float64)
        return TaskResult(**found, item_scores_N=item_scores_N, gold_N=dev.gold_N)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{scored} cannot be read ({error}). Remove {scored.parent} to train it again.") from error


def _likeliest(search: CandidateScores, rule: str | None) -> list[Candidate]:
    """The maps that may beat the baselines, best first."""
    able = [one for one in search.tested if one.open_layers]
    if not able:
        raise BellmError("No map can change these vectors, so that there is nothing to train. Leave --train out.")
    different: dict[tuple[float, float], Candidate] = {}
    for one in able:
        if one.bidirectional != ALL:
            different.setdefault(_vectors(one), one)
    maps = list(different.values())
    ruled = [one for one in maps if rule and _vectors(one) == _vectors(search.find(rule))]
    best_of_kinds = {_kind(one): one for one in reversed(maps)}
    chosen = {one.bidirectional: one for one in (*ruled, *best_of_kinds.values(), *maps)}
    return sorted(list(chosen.values())[: _MOST - 2], key=maps.index)


def _vectors(one: Candidate) -> tuple[float, float]:
    """The same for maps that differ in layers which nobody reads, as the last one with last-token pooling."""
    return round(one.score.value, 3), round(one.moved, 5)


def _kind(one: Candidate) -> str:
    return "alone" if len(one.open_layers) == 1 else one.bidirectional.partition(":")[0].strip("0123456789-,")


def _agree(
    output: Path, plan: HalvingPlan, recipe: Recipe, sources: Sequence[tuple[Dataset, float]], dev: STSPairs
) -> None:
    """Begin a folder, also one in which another search kept nothing, or make sure that it is of this search."""
    pairs = json.dumps([dev.left, dev.right, dev.gold_N.tolist()])
    wanted = {
        **{name: value for name, value in recipe.described().items() if name not in ("dev", "epochs")},
        "data": [[dataset.name, len(dataset), dataset.digest, weight] for dataset, weight in sources],
        "dev": [dev.name, hashlib.sha256(pairs.encode()).hexdigest()],
        "maps": [one.bidirectional for one in plan.maps],
        "rounds": [[each.maps, each.steps] for each in plan.rounds],
    }
    wanted = json.loads(json.dumps(wanted))
    path = output / SEARCH
    if not any(one for name in (CHECKPOINT, MODEL) for one in output.glob(f"*/{name}")):
        atomic.write_bytes(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        refuse_other_config(output, "search", known, wanted)
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise SourceError(f"{output} holds runs of no search ({error}). Choose another folder.") from error


def _best(
    staying: Sequence[Candidate], found: Mapping[str, Sequence[RoundResult]], count: int
) -> tuple[Candidate, ...]:
    """The baselines and the best of the others, as many in all as are wanted."""
    baselines, others = staying[:2], staying[2:]
    if count < len(staying):
        others = sorted(others, key=lambda one: _order(one, found[one.bidirectional][-1].score))[: count - 2]
    return (*baselines, *others)


def _order(one: Candidate | TrainedMap, score: Score) -> tuple[float, int]:
    return -round(score.value, _DECIMALS), len(one.open_layers)


def _standings(results: Mapping[str, TaskResult], steps: int, maps: int, resamples: int) -> dict[str, RoundResult]:
    estimates = {
        spec: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples)
        for spec, result in results.items()
    }
    over_causal, over_all = (_over(estimates, baseline, maps) for baseline in (CAUSAL, ALL))
    return {
        spec: RoundResult(steps, statistics.to_score(result, estimates[spec]), over_causal[spec], over_all[spec])
        for spec, result in results.items()
    }


def _over(estimates: Mapping[str, BootstrapEstimate], baseline: str, maps: int) -> dict[str, Difference]:
    """Differences to a baseline, corrected for all maps but itself, whether they are still there or not."""
    found = {spec: statistics.paired_difference(one, estimates[baseline]) for spec, one in estimates.items()}
    tested = {spec: one for spec, one in found.items() if spec != baseline}
    gone = {f"gone {number}": Difference(0, 0, 0, 1) for number in range(maps - len(estimates))}
    corrected = statistics.holm_correction({**tested, **gone})
    return {baseline: found[baseline], **{spec: corrected[spec] for spec in tested}}


def _trained(plan: HalvingPlan, found: Mapping[str, Sequence[RoundResult]]) -> list[TrainedMap]:
    trained = []
    for one in plan.maps:
        rounds_done = tuple(found[one.bidirectional])
        left = len(rounds_done) if len(rounds_done) < len(plan.rounds) else None
        trained.append(TrainedMap(one.name, one.bidirectional, one.open_layers, rounds_done, left))
    return sorted(trained, key=lambda one: (-len(one.rounds_done), _order(one, one.last.score)))
