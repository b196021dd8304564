"""Where the marks of the page's figures stand."""

import dataclasses
import re

import pytest

from bellm.layer_search import layer_page
from bellm.layer_search.turning import TurningPoint
from bellm.report.figures import Axis, Point
from bellm.report.statistics import Difference
from tests.layer_search.findings import LAYERS, candidate, finding


def value(up: Axis, y: float) -> float:
    """What stands so far from the top."""
    return up.low + (100 - y) / 100 * (up.high - up.low)


def corners(path: str) -> list[list[tuple[float, float]]]:
    """The pieces of an SVG path of straight lines."""
    pieces = [piece.rstrip("Z").split("L") for piece in path.split("M")[1:]]
    return [[(float(x), float(y)) for x, y in map(str.split, piece)] for piece in pieces]


def test_a_curve_goes_through_its_scores_inside_its_band() -> None:
    found = finding()
    curve = layer_page.degradation_curve(found.degradation)
    scores = found.degradation.scores
    plot = curve.plot
    assert [point.x for point in plot.points] == [plot.across.percent(kept) for kept in range(1, LAYERS + 1)]
    assert 0 <= plot.points[0].x < plot.points[-1].x <= 100
    for end in ("low", "high"):
        drawn = [value(plot.up, getattr(point, end)) for point in plot.points]
        assert drawn == pytest.approx([getattr(score, end) for score in scores], abs=0.01)
    assert [value(plot.up, point.y) for point in plot.points] == pytest.approx([one.value for one in scores], abs=0.01)
    assert corners(plot.line) == [[(point.x, point.y) for point in plot.points]]
    (band,) = corners(plot.band)
    assert band[:LAYERS] == [(point.x, point.high) for point in plot.points]
    assert band[:LAYERS:-1] == [(point.x, point.low) for point in plot.points][:-1]
    assert plot.band.endswith("Z")


def test_the_turning_point_stands_in_its_interval_and_before_what_the_rule_opens() -> None:
    curve = layer_page.degradation_curve(finding().degradation)
    assert curve.turning is not None
    assert curve.opened is not None
    at = curve.plot.across.percent
    assert curve.turning == (at(8), at(7), at(10))
    start, end = curve.opened
    assert at(8) < start < at(9)
    assert at(12) < end <= 100


def test_a_curve_that_does_not_turn_has_no_turning_point() -> None:
    curve = layer_page.degradation_curve(finding(turning=TurningPoint(None, None, None, 0.4, "noise")).degradation)
    assert curve.turning is None
    assert curve.opened is None
    assert len(curve.plot.points) == LAYERS


def test_all_figures_of_a_layer_stand_above_each_other_and_gaps_are_gaps() -> None:
    found = finding()
    stack = layer_page.layer_plots(found)
    assert stack.positions[0] == pytest.approx(100 - stack.positions[-1])
    assert [panel.unit for panel in stack.panels] == ["mean of 1 \N{MINUS SIGN} cosine", "%", "%"]
    for marks in (stack.alone.points, *(panel.points for panel in stack.panels)):
        assert len(marks) == LAYERS
        assert all(mark is None or mark.x == x for mark, x in zip(marks, stack.positions, strict=True))
    moved, ahead, dependency = stack.panels
    assert [layer for layer, mark in enumerate(stack.alone.points) if mark is None] == [3]
    assert [layer for layer, mark in enumerate(moved.points) if mark is None] == [3, 6, 11]
    assert [layer for layer, mark in enumerate(ahead.points) if mark is None] == [3, 5]
    assert [len(piece) for piece in corners(ahead.line)] == [3, 1, 6]
    assert [len(piece) for piece in corners(dependency.line)] == [LAYERS]
    for panel, numbers in ((ahead, found.layer_stats.looks_ahead), (dependency, found.layer_stats.dependency)):
        for mark, number in zip(panel.points, numbers, strict=True):
            assert (mark is None) == (number is None)
            assert mark is None or value(panel.up, mark.y) == pytest.approx(number, abs=0.01)


def test_a_layer_alone_stands_at_its_difference_by_whatever_map_opens_it() -> None:
    stack = layer_page.layer_plots(finding())
    names = [one.bidirectional if one else None for one in stack.singles]
    assert names == ["first:1", "1", "2", None, *map(str, range(4, 11)), "last:1"]
    for one, mark in zip(stack.singles, stack.alone.points, strict=True):
        if one and mark:
            drawn = [value(stack.alone.up, y) for y in (mark.y, mark.low, mark.high)]
            gain = one.over_causal
            assert drawn == pytest.approx([gain.value, gain.low, gain.high], abs=0.01)
    no_op = stack.alone.points[11]
    assert no_op is not None
    assert no_op.y == no_op.low == no_op.high == stack.alone.up.down(0)


def test_how_far_vectors_move_stands_between_powers_of_ten() -> None:
    moved = layer_page.layer_plots(finding()).panels[0]
    assert moved.up.labels == ("10⁻⁴", "10⁻³")
    hundredths, tenths = map(moved.up.down, moved.up.ticks)
    mark = moved.points[0]
    assert mark is not None
    assert tenths < mark.y < hundredths
    assert (hundredths - mark.y) / (hundredths - tenths) == pytest.approx(6 / 8, abs=0.01)


def test_a_number_that_no_layer_has_gets_no_panel() -> None:
    found = finding()
    profile = dataclasses.replace(found.layer_stats, looks_ahead=(None,) * LAYERS)
    panels = layer_page.layer_plots(dataclasses.replace(found, layer_stats=profile)).panels
    assert [bool(re.search("later tokens", panel.name)) for panel in panels] == [False, False]
    assert all(isinstance(mark, Point | None) for panel in panels for mark in panel.points)


def test_a_forest_has_every_other_candidate_at_its_difference() -> None:
    found = finding()
    forest = layer_page.candidate_forest(found.search)
    assert list(forest.rows) == ["prepending:8", "last:4", "last:2", "every:2", "first:2", "all"]
    for name, (bar,) in forest.rows.items():
        assert bar.has_interval
        ends = [value(forest.axis, 100 - end) for end in forest.span(bar)]
        (gain,) = [one.over_causal for one in found.search.candidates if one.name == name]
        assert ends == pytest.approx([gain.value, gain.low, gain.high], abs=0.01)


@pytest.mark.parametrize(
    ("gain", "p_value", "no_op", "expected"),
    [(2, 0.01, None, "better"), (-2, 0.01, None, "worse"), (2, 0.2, None, "unclear"), (0, 1, "why", "same")],
)
def test_a_candidate_has_the_mark_of_what_it_does(
    gain: float, p_value: float, no_op: str | None, expected: str
) -> None:
    assert layer_page.effect(candidate("2", (2,), gain, p_value, no_op)).color == expected


def test_a_finding_without_other_candidates_has_an_empty_forest() -> None:
    found = finding().search
    some = [one for one in found.candidates if one.name in {"causal", "layer 2"}]
    everything = dataclasses.replace(found.candidates[-1], open_layers=(2,), over_causal=Difference(0, 0, 0, 1))
    search = dataclasses.replace(found, candidates=(*some, everything))
    assert layer_page.candidate_forest(search).rows == {}
