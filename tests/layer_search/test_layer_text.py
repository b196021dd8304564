import io
import re

from rich.console import Console

from bellm.layer_search.candidates import Candidate, CandidateScores
from bellm.layer_search.layer_stats import Degradation, LayerStats
from bellm.layer_search.layer_text import candidate_table, degradation_table, halving_table
from bellm.layer_search.turning import TurningPoint
from bellm.report.formatting import Table
from bellm.report.statistics import Difference, Score
from tests.layer_search.findings import trained


def lines(table: Table) -> list[str]:
    """What a terminal shows, with single spaces."""
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return [re.sub(" +", " ", line).strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_curve_begins_with_all_layers_and_marks_its_turning_point() -> None:
    scores = tuple(Score("", 10.0 * depth, 10 * depth - 1, 10 * depth + 2, 9) for depth in (1, 2, 4))
    found = lines(
        degradation_table(
            Degradation(scores, TurningPoint(2, 1, 2, 0.01)), LayerStats(7, (20, 30.04, 40), (None, 5, 60))
        )
    )
    assert found[0] == "layers score dependency ahead"
    assert found[1].startswith("3 40.0 \N{PLUS-MINUS SIGN} 1.5 40.0 60.0 \N{FULL BLOCK}")
    assert found[2].startswith("2 20.0 \N{PLUS-MINUS SIGN} 1.5 30.0 5.0 \N{FULL BLOCK}")
    assert found[2].endswith("\N{LEFTWARDS ARROW} turning point")
    assert "20.0 - \N{FULL BLOCK}" in found[3]
    assert found[1].count("\N{FULL BLOCK}") == 2 * found[2].count("\N{FULL BLOCK}")
    assert "means over 7 texts" in " ".join(found)


def test_a_score_below_zero_has_no_bar() -> None:
    scores = (Score("", -5, -6, -4, 9), Score("", 50, 49, 51, 9))
    turning = TurningPoint(None, None, None, 1, "short")
    bars = ["\N{FULL BLOCK}" in line for line in lines(degradation_table(Degradation(scores, turning), None))[1:3]]
    assert bars == [True, False]
    scores = (scores[0],) * 2
    found = lines(degradation_table(Degradation(scores, turning), LayerStats(7, (1, 1), (1, 1))))
    assert "\N{FULL BLOCK}" not in "".join(found)


def test_columns_of_what_was_not_measured_are_left_out() -> None:
    scores = (Score("", 10, 9, 12, 9),) * 2
    alone = lines(degradation_table(Degradation(scores, TurningPoint(None, None, None, 1, "short")), None))
    assert alone[0] == "layers score"
    assert alone[1].startswith("2 10.0")
    profile = lines(degradation_table(None, LayerStats(7, (20, 30), (None, 5))))
    assert profile[:3] == ["layers dependency ahead", "2 30.0 5.0", "1 20.0 -"]
    assert not any("bootstrap" in line for line in profile)


def test_candidates_say_what_they_are() -> None:
    score, better = Score("", 70, 68, 72, 9), Difference(10, 8, 12, 0.0004)
    same, worse = Difference(0, 0, 0, 1), Difference(-10, -12, -8, 0.04)
    rows = (
        Candidate("12", (12,), score, better, same, 0.125, None),
        Candidate("none", (), score, same, worse, 0, None),
        Candidate("last:1", (29,), score, same, worse, 0, "why"),
        Candidate("all", tuple(range(30)), score, worse, same, 0.5, None),
    )
    table = candidate_table(CandidateScores("T", 30, rows))
    assert table.styles == ["", "bold", "dim", ""]
    found = lines(table)
    assert found[1] == "layer 12 70.0 \N{PLUS-MINUS SIGN} 2.0 \N{BLACK UP-POINTING TRIANGLE} +10.0 " + (
        "8.0 to 12.0 < 0.001 0.0 0.1250"
    )
    minus = "\N{MINUS SIGN}"
    assert found[2] == f"causal 70.0 \N{PLUS-MINUS SIGN} 2.0 {minus}10.0 0.0000"
    assert found[3] == f"last:1 70.0 \N{PLUS-MINUS SIGN} 2.0 0.0 no-op {minus}10.0 0.0000"
    assert found[4].startswith(
        f"all 70.0 \N{PLUS-MINUS SIGN} 2.0 \N{BLACK DOWN-POINTING TRIANGLE} {minus}10.0 {minus}12.0 to {minus}8.0 0.040"
    )
    assert "correction for 2 candidates" in " ".join(found)
    assert "prepending" not in " ".join(found)


def test_prepending_has_a_row_and_is_explained() -> None:
    score, better, same = Score("", 70, 68, 72, 9), Difference(10, 8, 12, 0.0004), Difference(0, 0, 0, 1)
    rows = (
        Candidate("none", (), score, better, better, 0.125, None, prepending=8),
        Candidate("all", tuple(range(30)), score, same, same, 0.5, None),
        Candidate("none", (), score, same, same, 0, None),
    )
    found = lines(candidate_table(CandidateScores("T", 30, rows)))
    assert found[0].startswith("candidate score")
    assert found[1] == "prepending:8 70.0 \N{PLUS-MINUS SIGN} 2.0 \N{BLACK UP-POINTING TRIANGLE} +10.0 " + (
        "8.0 to 12.0 < 0.001 +10.0 0.1250"
    )
    assert found[3].startswith("causal 70.0")
    assert "prepending:K is Token Prepending in the first K layers" in " ".join(found)


def test_the_causal_map_stands_out_among_trained_ones() -> None:
    halving = trained().trained
    assert halving is not None
    styles = {
        one.bidirectional: style for one, style in zip(halving.candidates, halving_table(halving).styles, strict=True)
    }
    assert styles == {"last:4": "", "none": "bold", "all": "", "2": ""}
