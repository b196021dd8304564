"""How often bellm's intervals miss and its tests cry wolf, counted in worlds where the truth is planted.

Every row of bellm's should be near its aim: 95 % of intervals hold the truth, and 5 % of tests find a difference
where there is none. What else could have been used stands beside it.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, bootstrap, norm, rankdata
from tqdm.auto import tqdm

from bellm.report.statistics import (
    BootstrapEstimate,
    average_estimates,
    average_over_seeds,
    bootstrap_estimate,
    holm_correction,
    paired_difference,
)

Numbers = NDArray[np.float64]
Trial = Callable[[Generator], Mapping[str, bool]]
"""One draw of a world: what each method did."""

QUALITY = 0.8  # Correlation of a system's items with the latent rating.
RESAMPLES = 400  # bellm's 1000 take longer and find the same.
TASKS = (311, 150, 375, 300, 119, 138, 493)  # A tenth of the seven STS tasks.
PAIRS = 400  # On which trainings are scored.
FEW = 400  # Items up to which rivals are tried that sort every resample.


@dataclass(frozen=True)
class Row:
    """How often a method did it."""

    what: str
    world_size: str
    method: str
    aim: float | None
    found: float
    low: float
    high: float
    trials: int


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small tasks, 100 trials a row")
    parser.add_argument("--trials", type=int, help="trials a row, if other than that")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    trials, sizes = (100, (100, 400)) if options.quick else (1000, (100, 400, 1379, 3000))
    rows = list(simulate(options.trials or trials, sizes))
    for what in dict.fromkeys(row.what for row in rows):
        Console().print(table([row for row in rows if row.what == what]))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def simulate(trials: int, sizes: Iterable[int]) -> Iterable[Row]:
    """All rows: intervals of one score, tests of a difference, seven tasks, several trainings."""
    for n in sizes:
        for world_size, sample in SCORES.items():
            yield from rates(
                "interval holds the score", f"{world_size}, {n} items", partial(holds, sample, n), trials, 0.95
            )
    for n in sizes:
        for world_size, couple in EQUALS.items():
            yield from rates("false alarm", f"{world_size}, {n} items", partial(alarms, couple, n), trials, 0.05)
        yield from rates("power", f"0.80 against 0.77, {n} items", partial(alarms, unequal, n), trials, None)
    yield from rates("any false alarm in 7 tasks", "equal Spearman", partial(any_alarm, equal), trials, 0.05)
    yield from rates("interval holds the difference", "average of 7 tasks", holds_average, trials, 0.95)
    for seeds, spread in ((2, 4.0), (3, 1.0), (3, 4.0), (5, 1.0), (5, 4.0)):
        world_size = f"{seeds} trainings, sd {spread} points, {PAIRS} pairs"
        what = "interval over trainings holds the score"
        yield from rates(what, world_size, partial(holds_over_seeds, seeds, spread), trials, 0.95)


def rates(what: str, world_size: str, trial: Trial, trials: int, aim: float | None, seed: int = 0) -> list[Row]:
    """How often each method did it, with the binomial interval that so many trials leave."""
    draw = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in tqdm(range(trials), f"{what}: {world_size}", leave=False, disable=None):
        counts.update({method: int(did) for method, did in trial(draw).items()})
    rows = []
    for method, count in counts.items():
        limits = binomtest(count, trials).proportion_ci(method="wilson")
        rows.append(Row(what, world_size, method, aim, count / trials, limits.low, limits.high, trials))
    return rows


# Scores whose population value is known.


@dataclass(frozen=True)
class Sample:
    """Items of a task and the score that endless items would have, in points."""

    item_scores_N: Numbers
    gold_N: Numbers | None
    truth: float


def rated(draw: Generator, n: int, levels: int = 0, quality: float = QUALITY) -> Sample:
    """Pairs of normals; gold is rounded to so many levels, as STS ratings are."""
    gold_N = draw.normal(size=n)
    item_scores_N = noisy(gold_N, draw.normal(size=n), quality)
    return Sample(item_scores_N, to_levels(gold_N, levels), true_spearman(quality, levels))


def hits(draw: Generator, n: int) -> Sample:
    """A classifier that is right 17 times in 20."""
    return Sample((draw.random(n) < 0.85).astype(np.float64), None, 85.0)


def gains(draw: Generator, n: int) -> Sample:
    """A search's nDCG: for a third of the queries nothing, for half of them everything, between else."""
    return Sample(np.clip(6 * draw.random(n) - 2, 0, 1), None, 100 * (1 / 2 + 1 / 12))


def noisy(signal_N: Numbers, noise_N: Numbers, quality: float) -> Numbers:
    """Signal and noise at this correlation with the signal."""
    return np.asarray(quality * signal_N + np.sqrt(1 - quality**2) * noise_N)


def to_levels(values_N: Numbers, levels: int) -> Numbers:
    """Normals rounded to whole numbers from 0, the middle ones likeliest; as they are for 0 levels."""
    return np.asarray(np.clip(np.round(values_N + (levels - 1) / 2), 0, levels - 1) if levels else values_N)


def true_spearman(quality: float, levels: int) -> float:
    """Spearman of endless such pairs in points: 6/pi asin(quality/2) for 0 levels, else summed over the normal.

    A rating's rank is its mid-distribution; an item's expected rank, given the latent rating z, is that of a normal at
    quality z / sqrt(2 - quality^2).
    """
    if not levels:
        return float(100 * 6 / np.pi * np.arcsin(quality / 2))
    z_Z = np.linspace(-8, 8, 160_001)
    weight_Z = norm.pdf(z_Z) / norm.pdf(z_Z).sum()
    share_G = np.bincount(to_levels(z_Z, levels).astype(int), weight_Z)
    rank_Z = (share_G.cumsum() - share_G / 2 - 0.5)[to_levels(z_Z, levels).astype(int)]
    expected_Z = norm.cdf(quality * z_Z / np.sqrt(2 - quality**2)) - 0.5
    return float(100 * weight_Z @ (rank_Z * expected_Z) / np.sqrt(weight_Z @ rank_Z**2 / 12))


SCORES: Mapping[str, Callable[[Generator, int], Sample]] = {
    "Spearman": rated,
    "Spearman, ratings 0 to 5": partial(rated, levels=6),
    "accuracy": hits,
    "nDCG": gains,
}


def holds(sample: Callable[[Generator, int], Sample], n: int, draw: Generator) -> Mapping[str, bool]:
    """Whether each interval holds the truth."""
    world_size = sample(draw, n)
    found = bootstrap_estimate(world_size.item_scores_N, world_size.gold_N, resamples=RESAMPLES)
    did = {"percentile (bellm)": found.low <= world_size.truth <= found.high}
    did["normal"] = abs(found.value - world_size.truth) <= 1.96 * found.resamples_R.std(ddof=1)
    if world_size.gold_N is not None and n <= FEW:
        interval = bootstrap(
            (world_size.item_scores_N, world_size.gold_N),
            spearman,
            paired=True,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=draw,
        ).confidence_interval
        did["BCa (scipy)"] = interval.low <= world_size.truth <= interval.high
    return did


def spearman(items_RN: Numbers, gold_RN: Numbers, axis: int = -1) -> Numbers:
    """Spearman times 100 along an axis, by scipy's ranks."""
    one_RN, other_RN = rankdata(items_RN, axis=axis), rankdata(gold_RN, axis=axis)
    one_RN -= one_RN.mean(axis, keepdims=True)
    other_RN -= other_RN.mean(axis, keepdims=True)
    return np.asarray(100 * (one_RN * other_RN).sum(axis) / np.sqrt((one_RN**2).sum(axis) * (other_RN**2).sum(axis)))


# Two systems.


@dataclass(frozen=True)
class Couple:
    """Two systems on the same items."""

    item_scores_N: Numbers
    others_N: Numbers
    gold_N: Numbers | None


def equal(draw: Generator, n: int, quality: float = QUALITY) -> Couple:
    """Ratings 0 to 5 and two systems whose errors go together, on scales that do not; equal unless told otherwise."""
    gold_N, shared_N, one_N, other_N = draw.normal(size=(4, n))
    item_scores_N = noisy(gold_N, noisy(shared_N, one_N, 0.7), QUALITY)
    return Couple(
        item_scores_N, np.exp(2 * noisy(gold_N, noisy(shared_N, other_N, 0.7), quality)), to_levels(gold_N, 6)
    )


def unequal(draw: Generator, n: int) -> Couple:
    """The same, but one is better."""
    return equal(draw, n, 0.77)


def mirrored(draw: Generator, n: int) -> Couple:
    """Two systems as good as each other that err on different items: one on low ratings, the other on high ones."""
    gold_N, one_N, other_N = draw.normal(size=(3, n))
    sizes_2N = np.where(gold_N < 0, [[1.2], [0.3]], [[0.3], [1.2]])
    return Couple(gold_N + sizes_2N[0] * one_N, gold_N + sizes_2N[1] * other_N, gold_N)


def equal_hits(draw: Generator, n: int) -> Couple:
    """Two classifiers right 17 times in 20, mostly on the same sentences."""
    shared_N, one_N, other_N = draw.normal(size=(3, n))
    bar = norm.ppf(0.85)
    item_scores_N, others_N = (noisy(shared_N, noise_N, 0.9) < bar for noise_N in (one_N, other_N))
    return Couple(item_scores_N.astype(np.float64), others_N.astype(np.float64), None)


EQUALS: Mapping[str, Callable[[Generator, int], Couple]] = {
    "equal Spearman": equal,
    "equal Spearman, other errors": mirrored,
    "equal accuracy": equal_hits,
}


def alarms(sample: Callable[[Generator, int], Couple], n: int, draw: Generator) -> Mapping[str, bool]:
    """Whether each test finds a difference at 5 %."""
    world_size = sample(draw, n)
    ours, theirs = estimates(world_size)
    differences_R = ours.resamples_R - theirs.resamples_R
    did = {"bootstrap (bellm)": paired_difference(ours, theirs).p_value < 0.05}
    did["normal"] = abs(ours.value - theirs.value) > 1.96 * differences_R.std(ddof=1)
    return did | ({"swapped": swapped(world_size, draw) < 0.05} if n <= FEW else {})


def estimates(world_size: Couple) -> tuple[BootstrapEstimate, BootstrapEstimate]:
    """Both systems' scores on the same resampled items."""
    ours = bootstrap_estimate(world_size.item_scores_N, world_size.gold_N, resamples=RESAMPLES)
    return ours, bootstrap_estimate(world_size.others_N, world_size.gold_N, resamples=RESAMPLES)


def swapped(world_size: Couple, draw: Generator) -> float:
    """P-value of a permutation test: the two systems' ranks (without gold: their items) change places at random."""
    one_N, other_N, gold_N = world_size.item_scores_N, world_size.others_N, world_size.gold_N
    if gold_N is not None:
        one_N, other_N = rankdata(one_N), rankdata(other_N)
    swap_RN = draw.random((1 + RESAMPLES, len(one_N))) < 0.5
    swap_RN[0] = False
    pair = np.where(swap_RN, other_N, one_N), np.where(swap_RN, one_N, other_N)
    scores = [side.mean(axis=1) if gold_N is None else spearman(side, gold_N[None]) for side in pair]
    apart_R = np.abs(scores[0] - scores[1])
    return float(np.mean(apart_R >= apart_R[0] - 1e-9))


# Seven tasks, several trainings.


def any_alarm(sample: Callable[[Generator, int], Couple], draw: Generator) -> Mapping[str, bool]:
    """Whether any of seven tasks finds a difference that is not there."""
    found = {str(n): paired_difference(*estimates(sample(draw, n))) for n in TASKS}
    # A correction lowers no p-value, and takes its time.
    alarm = any(one.p_value < 0.05 for one in found.values())
    after = alarm and any(one.p_value < 0.05 for one in holm_correction(found).values())
    return {"Holm (bellm)": after, "uncorrected": alarm}


def holds_average(draw: Generator) -> Mapping[str, bool]:
    """Whether the interval of the difference of averages holds the truth."""
    ours, theirs = zip(*(estimates(unequal(draw, n)) for n in TASKS), strict=True)
    found = paired_difference(average_estimates(ours), average_estimates(theirs))
    return {"bootstrap (bellm)": found.low <= true_spearman(QUALITY, 6) - true_spearman(0.77, 6) <= found.high}


def holds_over_seeds(seeds: int, spread: float, draw: Generator) -> Mapping[str, bool]:
    """Whether the interval holds what trainings give on average, which scatter by so many points around 75."""
    gold_N, shared_N = draw.normal(size=(2, PAIRS))
    found = []
    for score in 75 + spread * draw.normal(size=seeds):
        noise_N = noisy(shared_N, draw.normal(size=PAIRS), 0.9)
        item_scores_N = noisy(gold_N, noise_N, 2 * np.sin(np.pi / 6 * score / 100))
        found.append(bootstrap_estimate(item_scores_N, gold_N, resamples=RESAMPLES))
    pooled, mean = average_over_seeds(found), average_estimates(found).value
    alone = BootstrapEstimate(mean, np.mean([one.resamples_R for one in found], axis=0))
    error = np.std([one.value for one in found], ddof=1) / np.sqrt(seeds)
    did = {"both (bellm)": pooled.low <= 75 <= pooled.high, "items only": alone.low <= 75 <= alone.high}
    return did | {"trainings only": abs(mean - 75) <= 2 * error}


def table(rows: Sequence[Row]) -> Table:
    """The rows of one question in percent, a line for each world."""
    first = rows[0]
    aim = "" if first.aim is None else f", aim {100 * first.aim:.0f} %"
    methods = list(dict.fromkeys(row.method for row in rows))
    grid = Table("world", *methods, title=f"{first.what}{aim}, {first.trials} trials")
    for world_size in dict.fromkeys(row.world_size for row in rows):
        found = {row.method: row for row in rows if row.world_size == world_size}
        grid.add_row(world_size, *(_cell(found.get(method)) for method in methods))
    return grid


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{100 * row.found:.1f} ({100 * row.low:.0f} to {100 * row.high:.0f})"


if __name__ == "__main__":
    main()
