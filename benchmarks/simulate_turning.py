"""How well bellm finds the turning point of a degradation curve, and how often it sees one where there is none.

Curves of 24 depths are planted with noise of two kinds: that of the items, which neighbouring depths share and which
resampling shows, and ups and downs of the layers themselves, which it does not. Where nothing turns, a turning point
should be found in at most 5 % of curves.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from simulate_statistics import noisy
from tqdm.auto import tqdm

from bellm.layer_search.turning import TurningPoint, find_turning_point
from bellm.report.statistics import bootstrap_estimate

Numbers = NDArray[np.float64]

DEPTHS = np.arange(1, 25, dtype=np.float64)
RESAMPLES = 200  # bellm's 1000 take longer and find the same.
SHARED = 0.95  # Correlation of the items' noise from one depth to the next.
PAIRS = 400


def bent(*points: tuple[float, float]) -> Numbers:
    """Lines from point to point: a depth and its score each."""
    depths, scores = zip(*points, strict=True)
    return np.asarray(np.interp(DEPTHS, depths, scores))


def logistic(middle: float, steepness: float) -> Numbers:
    """A smooth S from 20 to 70 points."""
    return np.asarray(20 + 50 / (1 + np.exp(-steepness * (DEPTHS - middle))))


@dataclass(frozen=True)
class World:
    """A curve without noise, in points, and where it turns."""

    scores_K: Numbers
    depth: float | None


TURNING: Mapping[str, World] = {
    "S, turns at 16": World(bent((1, 20), (6, 20), (16, 70), (24, 70)), 16),
    "S, turns at 22": World(bent((1, 20), (12, 20), (22, 70), (24, 70)), 22),
    "S with outlying ends, turns at 16": World(bent((1, 40), (2, 20), (8, 20), (16, 75), (23, 76), (24, 72)), 16),
    "rise to 16, then a slow fall": World(bent((1, 20), (16, 70), (24, 60)), 16),
    "small S of 10 points, turns at 16": World(bent((1, 60), (6, 60), (16, 70), (24, 70)), 16),
    # A logistic bends most where its third derivative is zero, log(2 + sqrt 3) / steepness past its middle.
    "smooth S, bends most at 16": World(logistic(16 - np.log(2 + 3**0.5) / 0.5, 0.5), 16),
}
STRAIGHT: Mapping[str, World] = {
    "flat": World(np.full(24, 60.0), None),
    "straight rise of 50": World(bent((1, 20), (24, 70)), None),
    "straight fall of 10": World(bent((1, 70), (24, 60)), None),
    "flat, then a rise to the top": World(bent((1, 20), (12, 20), (24, 70)), None),
}
NOISE = ((0.5, 0.2), (1.0, 0.5), (2.0, 2.0))
"""Standard deviation of the items' noise and of the layers' own, in points."""


@dataclass(frozen=True)
class Row:
    """What came of one world at one level of noise."""

    world_size: str
    noise: str
    depth: float | None
    trials: int
    found: float
    """Share of curves in which a turning point was found."""
    error: float | None
    """Mean distance of those from the planted one, in layers."""
    holds: float | None
    """Share of their intervals that hold it."""
    width: float | None
    """Mean width of the intervals, in layers."""


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 curves a row rather than 200")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    rows = list(simulate(20 if options.quick else 200))
    Console().print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def simulate(trials: int) -> Iterator[Row]:
    """All rows: curves with noise of known size, then curves scored on rated pairs."""
    for name, world_size in {**TURNING, **STRAIGHT}.items():
        for items, layers in NOISE:
            noise = f"items {items}, layers {layers}"
            yield row(name, noise, world_size, partial(noise_added, world_size, items, layers), trials)
    for name in ("S, turns at 16", "flat", "straight rise of 50"):
        world_size = {**TURNING, **STRAIGHT}[name]
        yield row(name, f"{PAIRS} pairs", world_size, partial(scored, world_size), trials // 2)


def row(name: str, noise: str, world_size: World, sample: Callable[[Generator], TurningPoint], trials: int) -> Row:
    """Count what is found in so many curves of a world."""
    draw = np.random.default_rng(list(f"{name}{noise}".encode()))
    turnings = [sample(draw) for _ in tqdm(range(trials), f"{name}: {noise}", leave=False, disable=None)]
    found = [(one.depth, one.low, one.high) for one in turnings if one.depth is not None]
    if not found or world_size.depth is None:
        return Row(name, noise, world_size.depth, trials, len(found) / trials, None, None, None)
    depth_T, low_T, high_T = np.array(found, dtype=np.float64).T
    return Row(
        name,
        noise,
        world_size.depth,
        trials,
        len(found) / trials,
        error=float(np.abs(depth_T - world_size.depth).mean()),
        holds=float(((low_T <= world_size.depth) & (world_size.depth <= high_T)).mean()),
        width=float((high_T - low_T).mean()),
    )


def noise_added(world_size: World, items: float, layers: float, draw: Generator) -> TurningPoint:
    """A curve of which the noise of the items is known, as resampling would show it."""
    noise_RK = items * neighbourly(draw, 1 + RESAMPLES)
    scores_K = world_size.scores_K + noise_RK[0] + layers * draw.normal(size=len(DEPTHS))
    return find_turning_point(scores_K, scores_K + noise_RK[1:])


def neighbourly(draw: Generator, curves: int) -> Numbers:
    """Normal noise of depths of which neighbours go together, (curves, K)."""
    noise_RK = draw.normal(size=(curves, len(DEPTHS)))
    for depth in range(1, len(DEPTHS)):
        noise_RK[:, depth] = noisy(noise_RK[:, depth - 1], noise_RK[:, depth], SHARED)
    return noise_RK


def scored(world_size: World, draw: Generator) -> TurningPoint:
    """A curve of Spearman correlations on rated pairs, with bellm's own bootstrap."""
    gold_N = draw.normal(size=PAIRS)
    noise_KN = neighbourly(draw, PAIRS).T
    estimates = [
        bootstrap_estimate(noisy(gold_N, noise_N, 2 * np.sin(np.pi / 6 * score / 100)), gold_N, resamples=RESAMPLES)
        for score, noise_N in zip(world_size.scores_K, noise_KN, strict=True)
    ]
    resamples_RK = np.stack([one.resamples_R for one in estimates], axis=1)
    return find_turning_point(np.array([one.value for one in estimates]), resamples_RK)


def table(rows: list[Row]) -> Table:
    """A line for each world and level of noise."""
    grid = Table("world", "noise, sd in points", title=f"Turning points found, {rows[0].trials} curves a row")
    for heading in ("found %", "error, layers", "interval holds it %", "interval width, layers"):
        grid.add_column(heading, justify="right")
    for before, one in zip([None, *rows], rows, strict=False):
        if before and (before.depth is None) != (one.depth is None):
            grid.add_section()
        holds = None if one.holds is None else 100 * one.holds
        numbers = ("" if value is None else f"{value:.1f}" for value in (one.error, holds, one.width))
        grid.add_row(one.world_size, one.noise, f"{100 * one.found:.1f}", *numbers)
    return grid


if __name__ == "__main__":
    main()
