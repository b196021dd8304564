"""Where the marks of the page's figures stand."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm.evaluate import report_page
from bellm.evaluate.results import Report, TaskResult
from bellm.report.formatting import SIGNIFICANT
from tests.evaluate.reports import TRANSFER, report


def test_a_forest_has_a_bar_for_each_run_and_row_at_its_difference() -> None:
    found = report((0, 4, 8), transfer=TRANSFER)
    forest = report_page.difference_forest(found)
    assert forest is not None
    assert list(forest.rows) == ["STS average", "transfer average", *found.runs[0].scores]
    zero, ten = forest.axis.percent(0), forest.axis.percent(10)
    for name, bars in forest.rows.items():
        for bar, run in zip(bars, found.runs[1:], strict=True):
            difference = run.differences[name]
            found_points = [(10 * (at - zero) / (ten - zero)) for at in forest.span(bar)]
            assert found_points == pytest.approx([difference.value, difference.low, difference.high], abs=0.02)
            open_bar = "" if difference.p_value < SIGNIFICANT else " open"
            assert bar.mark.color == report_page.run_marks(found)[found.runs.index(run)].color + open_bar
    assert {bar.mark.color for bars in forest.rows.values() for bar in bars} == {"c1", "c1 open", "c2", "c2 open"}
    assert report_page.difference_forest(report()) is None


def test_layers_are_drawn_where_runs_differ_in_them_and_say_so() -> None:
    found = report((0, 8, 8), transfer=TRANSFER)
    panels = report_page.score_panels(found)
    assert [panel.name for panel in panels] == ["STS average", "transfer average"]
    assert [point.mark.color for point in panels[0].points] == ["c0", "c1", "c2"]
    assert panels[0].points[1].x < panels[0].across.percent(8) < panels[0].points[2].x
    foreign = dataclasses.replace(found.runs[2], metadata={})
    panel, *_ = report_page.score_panels(Report((*found.runs[:2], foreign), found.results))
    assert [point.mark.color for point in panel.points] == ["c0", "c1"]
    assert report_page.score_panels(report((8, 8))) == []


def test_a_scatter_finds_planted_misranked_pairs_first() -> None:
    random = np.random.default_rng(1)
    gold_N = random.permutation(1000) / 200
    cosine_N = gold_N / 6 + random.normal(scale=0.001, size=1000)
    planted = [int(gold_N.argmax()), int(gold_N.argmin())]
    cosine_N[planted[0]], cosine_N[planted[1]] = -0.5, 0.99
    drawn = report_page.pair_scatter(0, TaskResult("T", "Spearman", cosine_N, gold_N))
    sample, worst = drawn.scatter.groups["sample"], drawn.scatter.groups["worst"]
    assert {point.key for point in worst[:2]} == set(planted)
    (ranks,) = [ranks for point, ranks in zip(worst, drawn.ranks, strict=True) if point.key == planted[0]]
    assert ranks == (1, 1000)
    assert (len(worst), len(sample) + len(worst)) == (report_page.WORST, report_page.SHOWN)
    assert not {point.key for point in sample} & {point.key for point in worst}
    gold, cosines = ([array_N[point.key] for point in sample] for array_N in (gold_N, cosine_N))
    assert spearmanr([p.x for p in sample], gold).statistic > 0.99
    assert spearmanr([p.y for p in sample], cosines).statistic == pytest.approx(-1, abs=1e-4)


def test_runs_show_nearly_the_same_sample() -> None:
    found = report((0, 8), sts=["STS12"], pairs=2000)
    drawn = [report_page.pair_scatter(0, results["STS12"]).scatter.groups["sample"] for results in found.results]
    first, second = ({point.key for point in sample} for sample in drawn)
    assert len(first & second) > 0.9 * len(first)


def test_sentences_that_come_twice_are_one_of_the_worst() -> None:
    gold_N, cosine_N = np.arange(40.0), np.arange(40.0)
    cosine_N[:6] += 100
    texts = tuple((f"text {max(number, 3)}", "another") for number in range(40))
    worst = report_page.pair_scatter(0, TaskResult("T", "Spearman", cosine_N, gold_N, texts)).scatter.groups["worst"]
    assert sorted(point.key for point in worst)[:3] == [0, 4, 5]
    assert len({texts[point.key] for point in worst}) == len(worst) == report_page.WORST


def test_runs_have_colors_and_symbols_in_turn() -> None:
    marks = report_page.run_marks(report((0, 1, 2, 3, 4, 5, 6)))
    assert [(mark.color, mark.symbol) for mark in marks[::5]] == [("c0", "s0"), ("c5", "s1")]
    assert (marks[6].color, marks[6].symbol) == ("c1", "s2")
