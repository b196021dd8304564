"""How often bellm.analyse cries wolf: permutation tests where nothing is shared, intervals where the truth is planted.

Every rate of false alarms should be near 5 % whatever the width; 100 permutations and p < 0.05 aim at 4.95 %, 20 at
4.76 %. What a measure gives in the mean where nothing is shared stands beside it: that is what a raw score hides.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from tqdm.auto import tqdm

from bellm.analyse import MEASURES, compare_vectors

RATIOS = (0.2, 1.0, 4.0)
PERMUTATIONS = 20  # A test is exact with any number.
SHARED = 0.6  # Of the variance, where intervals are tried.


@dataclass(frozen=True)
class Row:
    """How often something happened for a measure."""

    what: str
    measure: str
    world: str
    found: float
    low: float
    high: float
    mean: float
    """Of the measure's values."""
    trials: int


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 texts, 100 trials a row")
    parser.add_argument("--trials", type=int, help="pairs a row, if other than that")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    trials, size = (100, 50) if options.quick else (1000, 100)
    trials = options.trials or trials
    rows = [row for ratio in RATIOS for row in false_alarms(size, ratio, trials)]
    rows += list(coverage(2 * size, 10, trials // 2))
    for what in dict.fromkeys(row.what for row in rows):
        Console().print(table(what, [row for row in rows if row.what == what]))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def false_alarms(size: int, ratio: float, trials: int) -> Iterator[Row]:
    """Independent Gaussian matrices: how often is p below 0.05?"""
    names = [name for name, measure in MEASURES.items() if measure.is_paired]
    world, width = f"D/N {ratio:g}", round(ratio * size)
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in names}
    for seed in tqdm(range(trials), world, leave=False):
        left, right = np.random.default_rng(seed).normal(size=(2, size, width))
        options = {"measures": names, "permutations": PERMUTATIONS, "resamples": 0, "seed": seed}
        (pair,) = compare_vectors({"left": left, "right": right}, **options)
        for name, one in pair.measures.items():
            found[name].append((one.value, one.p is not None and one.p < 0.05))
    for name, each in found.items():
        yield rate("false alarm", name, world, np.array(each))


def coverage(size: int, width: int, trials: int) -> Iterator[Row]:
    """Matrices that share a part: how often is the mean over many draws of texts inside the interval of one?"""
    world = f"{size} texts, {width} wide, {SHARED:.0%} shared"
    drawn = [planted(size, width, seed) for seed in range(trials)]
    values = [compare_vectors(pair, permutations=0, resamples=0)[0].measures for pair in drawn]
    truth = {name: float(np.mean([each[name].value for each in values])) for name in MEASURES}
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in MEASURES}
    for seed, pair in enumerate(tqdm(drawn, world, leave=False)):
        (compared,) = compare_vectors(pair, permutations=0, resamples=30, seed=seed)
        for name, one in compared.measures.items():
            assert one.low is not None
            assert one.high is not None
            found[name].append((one.value, one.low <= truth[name] <= one.high))
    for name, each in found.items():
        yield rate("interval holds the mean of other texts", name, world, np.array(each))


def planted(size: int, width: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Two matrices with a common part, columns of falling variance, away from the origin."""
    common, left, right = np.random.default_rng(seed).normal(size=(3, size, width))
    scales, shift = np.linspace(2, 0.5, width), np.linspace(0, 1, width)
    sides = (SHARED**0.5 * common + (1 - SHARED) ** 0.5 * side for side in (left, right))
    return dict(zip("ab", (side * scales + shift for side in sides), strict=True))


def rate(what: str, measure: str, world: str, found: NDArray[np.float64]) -> Row:
    """A share with its 95 % interval, and the mean value."""
    count = int(found[:, 1].sum())
    ends = binomtest(count, len(found)).proportion_ci()
    return Row(what, measure, world, count / len(found), ends.low, ends.high, float(found[:, 0].mean()), len(found))


def table(what: str, rows: list[Row]) -> Table:
    """A row for each measure, a column for each world."""
    worlds = dict.fromkeys(row.world for row in rows)
    shown = Table("measure", *worlds, title=f"{what}: % (95 % interval); mean value", title_justify="left")
    for measure in dict.fromkeys(row.measure for row in rows):
        cells = (
            f"{100 * row.found:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f}); {row.mean:.3f}"
            for row in rows
            if row.measure == measure
        )
        shown.add_row(measure, *cells)
    return shown


if __name__ == "__main__":
    main()
