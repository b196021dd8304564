"""Place the marks of figures: forests, lines with bands, scatters, histograms and heat maps.

Positions are in per cent of a figure's box, x from the left and y from the top, so that a figure is as wide as the
screen and its words keep their size. Only a heat map is in pixels: its cells hold numbers. macros.html.jinja draws.

Shapes: R rows and C columns of a matrix, F of its values finite; N values and B bins of a histogram.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError
from bellm.report.formatting import format_cell, format_tick, shorten
from bellm.report.statistics import Difference, Score

_BINS = 30

_MOST_OPAQUE = 0.5  # The page's ink has a contrast of 4.5 on every color that covers at most half of its paper.


@dataclass(frozen=True)
class Axis:
    """A scale with a margin around its values and ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def percent(self, value: float) -> float:
        """Where a value stands, in per cent from the low end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def down(self, value: float) -> float:
        """Where a value stands on a vertical axis, in per cent from the top."""
        return round(100 - self.percent(value), 2)


def make_axis(values: Iterable[float], *, least_step: float = 0, label: Callable[[float], str] = format_tick) -> Axis:
    """A scale for values, with ticks at multiples of 1, 2 or 5 times a power of ten.

    >>> make_axis([0, 3.8]).ticks
    (0.0, 1.0, 2.0, 3.0)
    """
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    span = high - low
    margin = 0.04 * span
    low, high = low - margin, high + margin
    power = 10 ** math.floor(math.log10(span / 5))
    step = max(least_step, next(times * power for times in (1, 2, 5, 10) if times * power >= 0.999 * span / 5))
    ticks = [round(tick * step, 10) for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, tuple(ticks), tuple(map(label, ticks)))


def difference_axis(differences: Iterable[Difference]) -> Axis:
    """A scale with zero and the intervals of differences, its numbers signed."""
    ends = [end for difference in differences for end in (difference.low, difference.high)]
    return make_axis([0, *ends], label=lambda value: format_tick(value, signed=True))


@dataclass(frozen=True)
class Mark:
    """How a thing is drawn wherever it is, and what a legend calls it."""

    color: str
    """Classes of the style sheet, of which one sets the color."""
    symbol: str
    """Name of a symbol in base.html.jinja; a circle that scripts can enlarge where empty."""
    label: str


@dataclass(frozen=True)
class Point:
    """A number in a plot, with its interval and mark where it has them; all positions are in per cent."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    mark: Mark | None = None
    key: int = 0
    """By which scripts find it elsewhere in the page."""
    words: str = ""
    """A tooltip."""


def estimate_point(x: float, up: Axis, estimate: Score | Difference, mark: Mark | None = None) -> Point:
    """Place a score or a difference with its interval on a vertical axis."""
    return Point(x, up.down(estimate.value), up.down(estimate.low), up.down(estimate.high), mark)


@dataclass(frozen=True)
class LinePlot:
    """Numbers along an axis, as a line with a band or as bars with marks."""

    name: str
    unit: str
    across: Axis
    up: Axis
    points: Sequence[Point | None]
    """From left to right; None where there is no number."""

    @property
    def line(self) -> str:
        """The numbers as an SVG path, broken where there is none."""
        pieces = groupby(self.points, key=lambda point: point is None)
        return "".join(_path((point.x, point.y) for point in piece if point) for is_gap, piece in pieces if not is_gap)

    @property
    def band(self) -> str:
        """The intervals as an SVG path around them."""
        points = [point for point in self.points if point]
        return _path([*((p.x, p.high) for p in points), *((p.x, p.low) for p in reversed(points))]) + "Z"


@dataclass(frozen=True)
class ForestBar:
    """A difference in a forest."""

    difference: Difference
    mark: Mark
    note: str
    has_interval: bool = True


@dataclass(frozen=True)
class Forest:
    """Differences with their intervals: a row for each thing, with one bar or several."""

    axis: Axis
    rows: Mapping[str, Sequence[ForestBar]]
    averages: frozenset[str]

    def span(self, bar: ForestBar) -> tuple[float, float, float]:
        """Where a difference and the ends of its interval stand, from the left."""
        value, low, high = (self.axis.percent(getattr(bar.difference, end)) for end in ("value", "low", "high"))
        return value, low, high


def make_forest(rows: Mapping[str, Sequence[ForestBar]], averages: Iterable[str] = ()) -> Forest:
    """Differences on one scale."""
    axis = difference_axis(bar.difference for bars in rows.values() for bar in bars)
    return Forest(axis, rows, frozenset(averages))


@dataclass(frozen=True)
class Scatter:
    """Points by two axes, in groups with a class of the style sheet each, the last on top."""

    across: Axis
    up: Axis
    groups: Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class HistogramBin:
    """An interval of a histogram; positions are in per cent."""

    x: float
    width: float
    tooltip: str


@dataclass(frozen=True)
class Histogram:
    """How values of several groups are distributed, as outlines over the same bins."""

    across: Axis
    outlines: Mapping[Mark, str]
    """SVG paths."""
    bins: Sequence[HistogramBin]


def make_histogram(groups: Mapping[Mark, NDArray[np.floating]]) -> Histogram:
    """Count the values of each group in bins that all share; heights are shares of the group, the highest at the top.

    Args:
        groups: Finite values, (N,) each, one or more.
    """
    all_N = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(all_N, _BINS)
    across = make_axis([edges[0], edges[-1]])
    shares = {mark: np.histogram(values_N, edges)[0] / len(values_N) for mark, values_N in groups.items()}
    highest = max(share_B.max() for share_B in shares.values())
    places = [across.percent(edge) for edge in edges.tolist()]

    def outline(share_B: NDArray[np.floating]) -> str:
        heights = [round(100 - 100 * float(share) / highest, 2) for share in share_B]
        steps = [corner for at, y in enumerate(heights) for corner in ((places[at], y), (places[at + 1], y))]
        return _path([(places[0], 100), *steps, (places[-1], 100)]) + "Z"

    def words(at: int) -> str:
        said = ", ".join(f"{100 * share_B[at]:.1f} % of {mark.label}" for mark, share_B in shares.items())
        return f"{format_cell(edges[at])} to {format_cell(edges[at + 1])}: {said}"

    bins = [HistogramBin(left, round(right - left, 2), words(at)) for at, (left, right) in enumerate(pairwise(places))]
    return Histogram(across, {mark: outline(share_B) for mark, share_B in shares.items()}, bins)


@dataclass(frozen=True)
class HeatCell:
    """A value of a heat map; its color is `above` or `below` the center, or `empty`."""

    words: str
    color: str
    opacity: float
    tooltip: str


@dataclass(frozen=True)
class HeatMap:
    """A matrix as cells whose color says how large their values are, and whose words say it too."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[HeatCell]]
    cell_width: int
    """Pixels of the longest number."""
    left: int
    """Pixels of the labels of the rows."""
    top: int
    """Pixels of the labels of the columns."""
    is_slanted: bool
    """Whether a label of the columns is longer than a cell."""


def make_heat_map(
    values_RC: NDArray[np.floating | np.integer],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    center: float | None = None,
    write: Callable[[float], str] = format_cell,
) -> HeatMap:
    """Color a matrix, the stronger the further a value is from the center; what is not finite stays empty.

    Args:
        values_RC: The numbers.
        rows: A label for each row.
        columns: A label for each column.
        center: Values above it have one color, those below it another; None for the lowest value.
        write: A value in as few letters as a cell holds.
    """
    if values_RC.shape != (len(rows), len(columns)) or not values_RC.size:
        raise BellmError(
            f"A matrix of shape {values_RC.shape} with {len(rows)} row labels and {len(columns)} column labels makes "
            "no heat map. Give it a row and a column or more, with a label each."
        )
    finite_F = values_RC[np.isfinite(values_RC)].astype(np.float64)
    middle = float(finite_F.min(initial=np.inf)) if center is None else center
    furthest = float(np.abs(finite_F - middle).max(initial=0)) or 1.0

    def cell(row: int, column: int) -> HeatCell:
        value = float(values_RC[row, column])
        is_empty = not math.isfinite(value)
        words = "\N{EN DASH}" if is_empty else write(value)
        color = "empty" if is_empty else "below" if value < middle else "above"
        opacity = 0.0 if is_empty else round(_MOST_OPAQUE * abs(value - middle) / furthest, 3)
        return HeatCell(words, color, opacity, f"{rows[row]}, {columns[column]}: {words}")

    cells = [[cell(row, column) for column in range(len(columns))] for row in range(len(rows))]
    cell_width = _width(cell.words for row in cells for cell in row)
    is_slanted = _width(columns) > cell_width + 8
    top = round(0.75 * _width(map(shorten, columns))) + 12 if is_slanted else 24
    return HeatMap(rows, columns, cells, cell_width, _width(map(shorten, rows)), top, is_slanted)


def _width(words: Iterable[str]) -> int:
    """Pixels of the longest word."""
    return round(7.5 * max(map(len, words))) + 12


def _path(corners: Iterable[tuple[float, float | None]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in corners)
