"""Where the marks of the figures stand, and what the verdicts say."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm.evaluate.page import facts, figures
from bellm.evaluate.page.verdicts import UNCLEAR, compare_runs
from bellm.evaluate.results import Difference, Report, TaskResult
from bellm.evaluate.tables import BETTER, WORSE
from tests.evaluate.reports import TRANSFER, report


def test_a_forest_has_a_bar_for_each_run_and_row_at_its_difference() -> None:
    found = report((0, 4, 8), transfer=TRANSFER)
    forest = figures.difference_forest(found)
    assert forest is not None
    assert list(forest.rows) == ["STS average", "transfer average", *found.runs[0].scores]
    zero, ten = forest.axis.percent(0), forest.axis.percent(10)
    for name, bars in forest.rows.items():
        for bar, run in zip(bars, found.runs[1:], strict=True):
            difference = run.differences[name]
            found_points = [(10 * (at - zero) / (ten - zero)) for at in (bar.at, bar.low, bar.high)]
            assert found_points == pytest.approx([difference.value, difference.low, difference.high], abs=0.02)
    assert figures.difference_forest(report()) is None


def test_layers_are_drawn_where_runs_differ_in_them_and_say_so() -> None:
    found = report((0, 8, 8), transfer=TRANSFER)
    panels = figures.score_panels(found)
    assert [panel.name for panel in panels] == ["STS average", "transfer average"]
    assert [bar.run for bar in panels[0].bars] == [0, 1, 2]
    assert panels[0].bars[1].across < panels[0].across.percent(8) < panels[0].bars[2].across
    foreign = dataclasses.replace(found.runs[2], facts={})
    assert [bar.run for bar in figures.score_panels(Report((*found.runs[:2], foreign), found.results))[0].bars] == [
        0,
        1,
    ]
    assert figures.score_panels(report((8, 8))) == []


def test_a_scatter_finds_planted_misranked_pairs_first() -> None:
    random = np.random.default_rng(1)
    gold_N = random.permutation(1000) / 200
    cosine_N = gold_N / 6 + random.normal(scale=0.001, size=1000)
    planted = [int(gold_N.argmax()), int(gold_N.argmin())]
    cosine_N[planted[0]], cosine_N[planted[1]] = -0.5, 0.99
    drawn = figures.scatter_plot(0, TaskResult("T", "Spearman", cosine_N, gold_N))
    assert {point.pair for point in drawn.worst[:2]} == set(planted)
    best = next(point for point in drawn.worst if point.pair == planted[0])
    assert (best.gold_rank, best.cosine_rank) == (1, 1000)
    assert (len(drawn.worst), len(drawn.sample) + len(drawn.worst), drawn.total) == (figures.WORST, figures.SHOWN, 1000)
    assert not {point.pair for point in drawn.sample} & {point.pair for point in drawn.worst}
    assert spearmanr([p.x for p in drawn.sample], [p.gold for p in drawn.sample]).statistic > 0.99
    assert spearmanr([p.y for p in drawn.sample], [p.cosine for p in drawn.sample]).statistic == pytest.approx(
        -1, abs=1e-4
    )


def test_runs_show_nearly_the_same_sample() -> None:
    found = report((0, 8), sts=["STS12"], pairs=2000)
    first, second = ({p.pair for p in figures.scatter_plot(0, it["STS12"]).sample} for it in found.results)
    assert len(first & second) > 0.9 * len(first)


def compared(*differences: tuple[str, float, float]) -> Report:
    """A run against a causal baseline with planted differences and p-values, by task or average."""
    found = report((0, 8), sts=[name for name, _, _ in differences if name != "STS average"])
    planted = {name: Difference(value, value - 1, value + 2, p_value) for name, value, p_value in differences}
    averages = {name: score for name, score in found.runs[1].averages.items() if name in planted}
    other = dataclasses.replace(found.runs[1], averages=averages, differences=planted)
    return Report((found.runs[0], other), found.results)


@pytest.mark.parametrize(
    ("differences", "sign", "text"),
    [
        (
            [("STS average", 3.14, 0.001), ("A", 5, 0.01), ("B", 2, 0.2), ("C", 4, 0.04)],
            BETTER,
            "22-29 open is better than causal by 3.1 points (2.1 to 5.1) on the STS average; "
            "on 2 of 3 tasks the difference is significant, after Holm's correction.",
        ),
        (
            [("STS average", -3.14, 0.001), ("A", -5, 0.01), ("B", 2, 0.02)],
            WORSE,
            "22-29 open is worse than causal by 3.1 points (1.1 to 4.1) on the STS average; "
            "it is significantly better on 1 of 2 tasks and worse on 1, after Holm's correction.",
        ),
        (
            [("STS average", 0.4, 0.3), ("A", 0.5, 0.1), ("B", 2, 0.2)],
            UNCLEAR,
            "22-29 open and causal cannot be told apart (+0.4 points, \N{MINUS SIGN}0.6 to 2.4) on the STS average; "
            "on none of 2 tasks is the difference significant, after Holm's correction.",
        ),
        (
            [("A", 5, 0.01), ("B", 2, 0.2)],
            UNCLEAR,
            "22-29 open against causal: on 1 of 2 tasks the difference is significant, after Holm's correction.",
        ),
        ([("A", 5, 0.01)], BETTER, "22-29 open is better than causal by 5.0 points (4.0 to 7.0) on A."),
    ],
    ids=["better", "worse", "unclear", "no average", "one task"],
)
def test_a_verdict_says_what_the_numbers_say(differences: list[tuple[str, float, float]], sign: str, text: str) -> None:
    (verdict,) = compare_runs(compared(*differences))
    assert (verdict.sign, verdict.text) == (sign, text)


def test_a_second_average_does_not_repeat_the_names() -> None:
    found = report((0, 8), transfer=TRANSFER)
    planted = {
        **found.runs[1].differences,
        "STS average": Difference(2, 1, 3, 0.01),
        "transfer average": Difference(-1, -2, -0.5, 0.02),
    }
    other = dataclasses.replace(found.runs[1], differences=planted)
    (verdict,) = compare_runs(Report((found.runs[0], other), found.results))
    assert "on the STS average; worse by 1.0 points (0.5 to 2.0) on the transfer average; " in verdict.text


def test_a_run_alone_says_what_it_reaches() -> None:
    found = report()
    score = found.runs[0].averages["STS average"]
    (verdict,) = compare_runs(found)
    numbers = f"{score.value:.1f} points ({score.low:.1f} to {score.high:.1f})"
    assert verdict.text == f"smollm2 reaches {numbers} on the STS average."


def test_facts_that_all_runs_share_are_said_once() -> None:
    found = report((0, 8), transfer=TRANSFER)
    shared, (_, opened) = facts.shared_metadata(found), facts.run_metadata(found)
    assert shared["versions"] == "bellm 0.4.0, torch 2.9.0, transformers 5.12.0"
    assert shared["texts cut to fit"] == "CR 1, TREC 2"
    assert shared["window"] == "none"
    assert opened == {
        "model": "models/smollm2?bidirectional=last:8",
        "bidirectional": "22-29",
        "open layers": "22, 23, 24, 25, 26, 27, 28, 29",
        "fingerprint": "08c1f0a97e44b2d8",
    }
    assert facts.shared_metadata(report()) == {}
    assert set(facts.run_metadata(report())[0]) == {*shared, *opened}
    assert shared["seed"] == "0"


def test_sentences_that_come_twice_are_one_of_the_worst() -> None:
    gold_N, cosine_N = np.arange(40.0), np.arange(40.0)
    cosine_N[:6] += 100
    texts = tuple((f"text {max(number, 3)}", "another") for number in range(40))
    drawn = figures.scatter_plot(0, TaskResult("T", "Spearman", cosine_N, gold_N, texts))
    assert sorted(point.pair for point in drawn.worst)[:3] == [0, 4, 5]
    assert len({texts[point.pair] for point in drawn.worst}) == len(drawn.worst) == figures.WORST
