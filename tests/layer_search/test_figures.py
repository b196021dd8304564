"""Where the marks of the page's figures stand."""

import dataclasses
import re

import pytest

from bellm.evaluate.results import Difference
from bellm.layer_search.page import figures
from bellm.layer_search.page.figures import PlotPoint
from bellm.layer_search.page.page import effect_class
from bellm.layer_search.turning import TurningPoint
from bellm.report.axis import Axis
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
    curve = figures.degradation_curve(found.degradation)
    scores = found.degradation.scores
    assert [mark.x for mark in curve.marks] == [curve.across.percent(kept) for kept in range(1, LAYERS + 1)]
    for end in ("low", "high"):
        drawn = [value(curve.up, getattr(mark, end)) for mark in curve.marks]
        assert drawn == pytest.approx([getattr(score, end) for score in scores], abs=0.01)
    assert [value(curve.up, mark.y) for mark in curve.marks] == pytest.approx([one.value for one in scores], abs=0.01)
    assert corners(curve.line) == [[(mark.x, mark.y) for mark in curve.marks]]
    (band,) = corners(curve.band)
    assert band[:LAYERS] == [(mark.x, mark.high) for mark in curve.marks]
    assert band[:LAYERS:-1] == [(mark.x, mark.low) for mark in curve.marks][:-1]
    assert curve.band.endswith("Z")


def test_the_turning_point_stands_in_its_interval_and_before_what_the_rule_opens() -> None:
    curve = figures.degradation_curve(finding().degradation)
    assert curve.turning is not None
    assert curve.opened is not None
    at = curve.across.percent
    assert (curve.turning.low, curve.turning.at, curve.turning.high) == (at(7), at(8), at(10))
    start, end = curve.opened
    assert at(8) < start < at(9)
    assert at(12) < end <= 100


def test_a_curve_that_does_not_turn_has_no_turning_point() -> None:
    curve = figures.degradation_curve(finding(turning=TurningPoint(None, None, None, 0.4, "noise")).degradation)
    assert curve.turning is None
    assert curve.opened is None
    assert len(curve.marks) == LAYERS


def test_all_figures_of_a_layer_stand_above_each_other_and_gaps_are_gaps() -> None:
    found = finding()
    stack = figures.layer_plots(found)
    assert [panel.unit for panel in stack.panels] == ["mean of 1 \N{MINUS SIGN} cosine", "%", "%"]
    for marks in (stack.alone.marks, *(panel.marks for panel in stack.panels)):
        assert len(marks) == LAYERS
        assert all(mark is None or mark.x == x for mark, x in zip(marks, stack.places, strict=True))
    moved, ahead, dependency = stack.panels
    assert [layer for layer, mark in enumerate(stack.alone.marks) if mark is None] == [3]
    assert [layer for layer, mark in enumerate(moved.marks) if mark is None] == [3, 6, 11]
    assert [layer for layer, mark in enumerate(ahead.marks) if mark is None] == [3, 5]
    assert [len(piece) for piece in corners(ahead.line)] == [3, 1, 6]
    assert [len(piece) for piece in corners(dependency.line)] == [LAYERS]
    for panel, numbers in ((ahead, found.profile.looks_ahead), (dependency, found.profile.dependency)):
        for mark, number in zip(panel.marks, numbers, strict=True):
            assert (mark is None) == (number is None)
            assert mark is None or value(panel.up, mark.y) == pytest.approx(number, abs=0.01)


def test_a_layer_alone_stands_at_its_difference_by_whatever_map_opens_it() -> None:
    stack = figures.layer_plots(finding())
    names = [one.bidirectional if one else None for one in stack.singles]
    assert names == ["first:1", "1", "2", None, *map(str, range(4, 11)), "last:1"]
    for one, mark in zip(stack.singles, stack.alone.marks, strict=True):
        if one and mark:
            drawn = [value(stack.alone.up, y) for y in (mark.y, mark.low, mark.high)]
            gain = one.over_causal
            assert drawn == pytest.approx([gain.value, gain.low, gain.high], abs=0.01)
    no_op = stack.alone.marks[11]
    assert no_op is not None
    assert no_op.y == no_op.low == no_op.high == stack.alone.zero


def test_how_far_vectors_move_stands_between_powers_of_ten() -> None:
    moved = figures.layer_plots(finding()).panels[0]
    assert list(moved.ticks.values()) == ["10⁻⁴", "10⁻³"]
    hundredths, tenths = moved.ticks
    mark = moved.marks[0]
    assert mark is not None
    assert tenths < mark.y < hundredths
    assert (hundredths - mark.y) / (hundredths - tenths) == pytest.approx(6 / 8, abs=0.01)


def test_a_number_that_no_layer_has_gets_no_panel() -> None:
    found = finding()
    profile = dataclasses.replace(found.profile, looks_ahead=(None,) * LAYERS)
    panels = figures.layer_plots(dataclasses.replace(found, profile=profile)).panels
    assert [bool(re.search("later tokens", panel.name)) for panel in panels] == [False, False]
    assert all(isinstance(mark, PlotPoint | None) for panel in panels for mark in panel.marks)


def test_a_forest_has_every_other_candidate_at_its_difference() -> None:
    found = finding()
    forest = figures.candidate_forest(found.search)
    assert [one.name for one, _ in forest.rows] == ["prepending:8", "last:4", "last:2", "every:2", "first:2", "all"]
    for one, span in forest.rows:
        ends = [value(forest.axis, 100 - end) for end in (span.at, span.low, span.high)]
        gain = one.over_causal
        assert ends == pytest.approx([gain.value, gain.low, gain.high], abs=0.01)


@pytest.mark.parametrize(
    ("gain", "p_value", "no_op", "expected"),
    [(2, 0.01, None, "better"), (-2, 0.01, None, "worse"), (2, 0.2, None, "unclear"), (0, 1, "why", "same")],
)
def test_a_candidate_has_the_mark_of_what_it_does(
    gain: float, p_value: float, no_op: str | None, expected: str
) -> None:
    assert effect_class(candidate("2", (2,), gain, p_value, no_op)) == expected


def test_a_finding_without_other_candidates_has_an_empty_forest() -> None:
    found = finding().search
    some = [one for one in found.candidates if one.name in {"causal", "layer 2"}]
    everything = dataclasses.replace(found.candidates[-1], open_layers=(2,), over_causal=Difference(0, 0, 0, 1))
    search = dataclasses.replace(found, candidates=(*some, everything))
    assert figures.candidate_forest(search).rows == []
