"""Compare representations pair by pair: each measure with its chance level and an interval.

Chance is what a measure gives when the texts of one side are shuffled: what is left depends on widths, spectra and the
number of texts alone. Shuffling keeps all that is computed of a side, so that it costs a cross-product.

Shapes: N texts, D width, P permutations, S half samples.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from bellm.analyse.measures import MEASURES, Measure
from bellm.analyse.representation import FEWEST_TEXTS, Pair, Representation
from bellm.errors import BellmError, check_choice, errors_naming

MOST_TEXTS = 1000
"""Texts of a random sample, by which measures go that look at all pairs of texts."""

_FEWEST_PERMUTATIONS = 20  # No p-value of fewer is below 0.05.
_FEWEST_RESAMPLES = 10
_ROUNDING = 1e-6  # Chance of many texts is taken in float32.
_NOTABLE = 0.1  # Of the way from the worst value to the best: less is no score to be misled by.


@dataclass(frozen=True)
class Measured:
    """What a measure gives for a pair, and by chance."""

    value: float
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval for another draw of as many texts."""
    null_mean: float | None = None
    null_sd: float | None = None
    """Over permutations of the texts of one side; None where the measure does not see which text is which."""
    p: float | None = None
    """How often chance is as close, (1 + times) / (1 + P); one-sided."""
    calibrated: float | None = None
    """0 at chance, 1 for equal representations; None where chance reaches that."""
    is_mostly_chance: bool = False
    """Whether chance alone makes up half of a notable score."""


@dataclass(frozen=True)
class ComparedPair:
    """Two representations by all measures."""

    a: str
    b: str
    measures: Mapping[str, Measured]

    def to_json(self) -> dict[str, Any]:
        """Names of both and numbers by measure."""
        return {"a": self.a, "b": self.b, "measures": {name: asdict(found) for name, found in self.measures.items()}}


def compare_vectors(
    vectors: Mapping[str, NDArray[Any]],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    measures: Collection[str] | None = None,
    permutations: int = 100,
    resamples: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[ComparedPair]:
    """Compare what several models, or layers, make of the same texts.

    The interval comes from half samples of the texts without replacement, whose spread is that of the whole for another
    draw (the delete-half jackknife, Shao and Wu 1989). A bootstrap repeats texts, and a repeated text is its own
    nearest neighbor. Above `MOST_TEXTS` texts, measures of all pairs of texts take a random sample of so many.

    Args:
        vectors: A matrix for each name, with a row for each text; widths may differ.
        pairs: Names to compare; None for all pairs.
        measures: Names of `MEASURES`; None for all.
        permutations: Of the chance level; 0 for none.
        resamples: Half samples of the interval; 0 for none.
        seed: Of permutations and samples.
        progress: Called with the steps that are done and their number.

    Raises:
        BellmError: Something cannot be compared; see `Representation`.
    """
    chosen = choose_measures(measures)
    check_draws(permutations, resamples)
    sizes = {name: len(matrix) for name, matrix in vectors.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise BellmError(f"Vectors of different numbers of texts ({said}): give those of the same texts.")
    names = list(vectors)
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]] if pairs is None else list(pairs)
    if not pairs:
        raise BellmError(f"{len(names)} representations make no pair: give two or more.")
    size = next(iter(sizes.values()))
    if resamples and size // 2 < FEWEST_TEXTS:
        raise BellmError(f"{size} texts are too few for intervals: give {2 * FEWEST_TEXTS} or more, or resamples=0.")
    draw = np.random.default_rng(seed)
    parts: list[tuple[list[Measure], NDArray[np.intp] | None]] = [(chosen, None)]
    if size > MOST_TEXTS:  # One kind after the other, so that only what one of them needs is in memory.
        sampled = np.sort(draw.choice(size, MOST_TEXTS, replace=False))
        kinds = ((False, None), (True, sampled))
        parts = [([each for each in chosen if each.compares_texts == kind], rows) for kind, rows in kinds]
    parts = [(some, rows) for some, rows in parts if some]
    total, steps = len(pairs) * (1 + permutations + resamples) * len(parts), 0

    def done() -> None:
        nonlocal steps
        steps += 1
        progress(steps, total)

    found: dict[tuple[str, str], dict[str, Measured]] = {pair: {} for pair in pairs}
    for some, rows in parts:
        sides: dict[str, Representation] = {}
        for name in names:
            with errors_naming(name):
                sides[name] = Representation(vectors[name] if rows is None else vectors[name][rows])
        for pair, measured in _compare(sides, pairs, some, draw, permutations, resamples, done):
            found[pair] |= measured
    return [ComparedPair(a, b, {each.name: found[a, b][each.name] for each in chosen}) for a, b in pairs]


def _compare(
    sides: Mapping[str, Representation],
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[Measure],
    draw: np.random.Generator,
    permutations: int,
    resamples: int,
    done: Callable[[], None],
) -> Iterator[tuple[tuple[str, str], dict[str, Measured]]]:
    """Values, chance levels and intervals of all pairs by some measures, on all texts of the representations."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for a, b in pairs:
        with errors_naming(f"{a} and {b}"):
            values[a, b] = _measure(Pair(sides[a], sides[b]), measures)
        done()
    size = len(next(iter(sides.values())))
    # A mean over permutations of many texts needs no seventh digit.
    paired, exact = [measure for measure in measures if measure.is_paired], size <= MOST_TEXTS
    shuffled: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in pairs}
    orders = [draw.permutation(size) for _ in range(permutations)]
    for name in dict.fromkeys(b for _, b in pairs):
        for order in orders:
            permuted = sides[name].permuted(order, exact=exact)
            for a, b in pairs:
                if b == name:
                    shuffled[a, b].append(_measure(Pair(sides[a], permuted, exact=exact), paired))
                    done()
    halves: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in pairs}
    for _ in range(resamples):
        rows = np.sort(draw.permutation(size)[: size // 2])
        half = {name: sides[name].take(rows) for name in dict.fromkeys(name for pair in pairs for name in pair)}
        for a, b in pairs:
            halves[a, b].append(_measure(Pair(half[a], half[b]), measures))
            done()
    for pair in pairs:
        yield pair, dict(_results(measures, values[pair], shuffled[pair], halves[pair]))


def choose_measures(names: Collection[str] | None) -> list[Measure]:
    """Measures by name; None for all.

    Raises:
        BellmError: There is none of that name.
    """
    for name in names or ():
        check_choice("measures", name, MEASURES)
    return [measure for name, measure in MEASURES.items() if names is None or name in names]


def check_draws(permutations: int, resamples: int) -> None:
    """Raise a BellmError where so many permutations or half samples are of no use."""
    if permutations and permutations < _FEWEST_PERMUTATIONS:
        raise BellmError(
            f"{permutations} permutations cannot show anything: give {_FEWEST_PERMUTATIONS} or more, or 0."
        )
    if resamples and resamples < _FEWEST_RESAMPLES:
        raise BellmError(f"{resamples} half samples make no interval: give {_FEWEST_RESAMPLES} or more, or 0.")


def _measure(pair: Pair, measures: Sequence[Measure]) -> dict[str, float]:
    return {measure.name: measure.of_pair(pair) for measure in measures}


def _results(
    measures: Sequence[Measure],
    values: Mapping[str, float],
    shuffled: Sequence[Mapping[str, float]],
    halves: Sequence[Mapping[str, float]],
) -> Iterator[tuple[str, Measured]]:
    for measure in measures:
        name, value = measure.name, values[measure.name]
        facts: dict[str, Any] = {}
        if halves:
            facts |= _interval(measure, value, np.array([half[name] for half in halves]))
        if shuffled and measure.is_paired:
            facts |= _chance(measure, value, np.array([null[name] for null in shuffled]))
        yield name, Measured(value, **facts)


def _interval(measure: Measure, value: float, halves_S: NDArray[np.float64]) -> dict[str, float]:
    reach = float(student_t.ppf(0.975, len(halves_S) - 1) * halves_S.std(ddof=1))
    return {"low": min(max(value - reach, measure.low), value), "high": max(min(value + reach, measure.high), value)}


def _chance(measure: Measure, value: float, nulls_P: NDArray[np.float64]) -> dict[str, Any]:
    mean, best, worst = float(nulls_P.mean()), measure.best, measure.worst
    sign = -1 if measure.is_distance else 1
    as_close = int(np.count_nonzero(sign * nulls_P >= sign * value - _ROUNDING))
    way = (value - worst) / (best - worst) if math.isfinite(worst) else 0.0
    return {
        "null_mean": mean,
        "null_sd": float(nulls_P.std(ddof=1)),
        "p": (1 + as_close) / (1 + len(nulls_P)),
        "calibrated": (value - mean) / (best - mean) if abs(best - mean) > _ROUNDING else None,
        "is_mostly_chance": way >= _NOTABLE and (mean - worst) / (value - worst) >= 0.5,
    }
