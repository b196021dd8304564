"""Where the marks of the page's figures stand, in per cent from the left and the top of their box."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from bellm.evaluate.results import Difference, Score
from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.degradation import Degradation
from bellm.layer_search.finder import Finding
from bellm.report.axis import Axis, make_axis
from bellm.report.formatting import format_tick


@dataclass(frozen=True)
class PlotPoint:
    """A number."""

    x: float
    y: float


@dataclass(frozen=True)
class IntervalPoint(PlotPoint):
    """A number with its interval."""

    low: float
    """Where the lower end stands; further from the top than the number."""
    high: float


@dataclass(frozen=True)
class AxisRange:
    """A stretch of the horizontal axis, and a place in it."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class DegradationCurve:
    """Score against the number of layers kept."""

    across: Axis
    up: Axis
    marks: list[IntervalPoint]
    """With one layer, two, ..., all."""
    turning: AxisRange | None
    """The turning point with its interval; None without one."""
    opened: tuple[float, float] | None
    """From where to where the layers stand that the paper's rule opens."""

    @property
    def line(self) -> str:
        """The scores as an SVG path."""
        return _path(self.marks)

    @property
    def band(self) -> str:
        """The intervals as an SVG path around them."""
        return _around([(one.x, one.high) for one in self.marks] + [(one.x, one.low) for one in reversed(self.marks)])


@dataclass(frozen=True)
class LayerPanel:
    """One number of each layer."""

    name: str
    unit: str
    up: Axis
    ticks: dict[float, str]
    """Words at places from the top."""
    marks: list[PlotPoint | None]
    """First layer to last; None where there is no number."""

    @property
    def line(self) -> str:
        """The numbers as an SVG path, broken where there is none."""
        runs = groupby(self.marks, key=lambda mark: mark is None)
        return "".join(_path([mark for mark in run if mark]) for is_gap, run in runs if not is_gap)


@dataclass(frozen=True)
class SingleLayerPlot:
    """What opening each single layer does to the score."""

    up: Axis
    marks: list[IntervalPoint | None]
    """First layer to last; None where no candidate opens that layer alone."""

    @property
    def zero(self) -> float:
        """Where no difference stands."""
        return _down(self.up, 0)


@dataclass(frozen=True)
class LayerPlots:
    """Figures above each other whose horizontal axis is the layer."""

    across: Axis
    places: list[float]
    """Of the layers."""
    singles: list[Candidate | None]
    """What opens each layer alone."""
    alone: SingleLayerPlot | None
    """None where no map was tried."""
    panels: list[LayerPanel]


@dataclass(frozen=True)
class CandidateForest:
    """Differences to the causal model."""

    axis: Axis
    rows: list[tuple[Candidate, AxisRange]]


def degradation_curve(degradation: Degradation) -> DegradationCurve:
    """Draw the degradation curve."""
    scores, turning = degradation.scores, degradation.turning
    across = make_axis((1, len(scores)), least_step=1)
    up = make_axis(end for score in scores for end in (score.low, score.high))
    marks = [_estimate(across.percent(depth), up, score) for depth, score in enumerate(scores, 1)]
    if turning.depth is None or turning.low is None or turning.high is None:
        return DegradationCurve(across, up, marks, None, None)
    at, low, high = map(across.percent, (turning.depth, turning.low, turning.high))
    # A layer takes its place as the last that is kept; half a layer belongs to it on both sides.
    opened = (across.percent(turning.depth + 0.5), min(across.percent(len(scores) + 0.5), 100.0))
    return DegradationCurve(across, up, marks, AxisRange(at, low, high), opened)


def layer_plots(finding: Finding) -> LayerPlots:
    """Draw what is known of each layer; a number that no layer has gets no panel."""
    search, profile = finding.search, finding.profile
    across = make_axis((0, finding.num_layers - 1), least_step=1)
    places = [across.percent(layer) for layer in range(finding.num_layers)]
    opened = {one.open_layers[0]: one for one in search.candidates if len(one.open_layers) == 1} if search else {}
    singles = [opened.get(layer) for layer in range(finding.num_layers)]
    panels = [
        _logarithmic("How far opening it alone moves the vectors", "mean of 1 \N{MINUS SIGN} cosine", places, singles)
    ]
    if profile:
        panels += [
            _percent("Attention to later tokens, opened alone", places, profile.looks_ahead),
            _percent("What the last token has in common with the others", places, profile.dependency),
        ]
    alone = _alone(places, singles) if search else None
    return LayerPlots(across, places, singles, alone, [one for one in panels if any(one.marks)])


def candidate_forest(search: CandidateScores) -> CandidateForest:
    """Draw all candidates but those of single layers, best first."""
    causal = search.causal
    others = [one for one in search.candidates if len(one.open_layers) != 1 and one is not causal]
    scale = make_axis([0, *_ends(one.over_causal for one in others)])
    spans = [[scale.percent(end) for end in _numbers(one.over_causal)] for one in others]
    return CandidateForest(scale, [(one, AxisRange(*span)) for one, span in zip(others, spans, strict=True)])


def _alone(places: Sequence[float], singles: Sequence[Candidate | None]) -> SingleLayerPlot:
    up = make_axis([0, *_ends(one.over_causal for one in singles if one)])
    marks = [_estimate(x, up, one.over_causal) if one else None for x, one in zip(places, singles, strict=True)]
    return SingleLayerPlot(up, marks)


def _percent(name: str, places: Sequence[float], shares: Sequence[float | None]) -> LayerPanel:
    up = make_axis([0, *(share for share in shares if share is not None)])
    marks = [None if share is None else PlotPoint(x, _down(up, share)) for x, share in zip(places, shares, strict=True)]
    return LayerPanel(name, "%", up, {_down(up, value): format_tick(value) for value in up.ticks}, marks)


def _logarithmic(name: str, unit: str, places: Sequence[float], singles: Sequence[Candidate | None]) -> LayerPanel:
    """By powers of ten: some layers move the vectors a thousand times as far as others."""
    powers = [math.log10(one.moved) if one and one.moved > 0 else None for one in singles]
    known = [power for power in powers if power is not None] or [0.0]
    up = make_axis((math.floor(min(known)), math.ceil(max(known))), least_step=1)
    marks = [None if power is None else PlotPoint(x, _down(up, power)) for x, power in zip(places, powers, strict=True)]
    return LayerPanel(name, unit, up, {_down(up, power): _power(round(power)) for power in up.ticks}, marks)


def _power(power: int) -> str:
    """A power of ten in few letters.

    >>> _power(-3), _power(0)
    ('10⁻³', '1')
    """
    return f"10{str(power).translate(_RAISED)}" if power else "1"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _estimate(x: float, up: Axis, found: Score | Difference) -> IntervalPoint:
    return IntervalPoint(x, *(_down(up, value) for value in _numbers(found)))


def _numbers(found: Score | Difference) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _ends(found: Iterable[Difference]) -> list[float]:
    return [end for one in found for end in (one.low, one.high)]


def _down(up: Axis, value: float) -> float:
    return round(100 - up.percent(value), 2)


def _path(marks: Sequence[PlotPoint]) -> str:
    return "M" + "L".join(f"{mark.x} {mark.y}" for mark in marks)


def _around(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in corners) + "Z"
