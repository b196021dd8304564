"""A report in words: labels, tables, comparisons, metadata."""

import dataclasses
import io

import pytest
from rich.console import Console

from bellm.evaluate.report_text import UNCLEAR, compare_runs, score_table, split_metadata
from bellm.evaluate.results import Report, Run
from bellm.report.formatting import BETTER, WORSE
from bellm.report.statistics import Difference, Score
from tests.evaluate.reports import TRANSFER, report


def small() -> Report:
    """Two runs whose numbers can be read at a glance."""
    baseline = Run("org/one", {}, {"A": Score("accuracy", 70, 68, 72, 100), "B": Score("accuracy", 50.04, 49, 52, 100)})
    other = Run(
        "org/two",
        {},
        {"A": Score("accuracy", 73.25, 72, 74, 100), "B": Score("accuracy", 50, 47, 51, 100)},
        differences={"A": Difference(3.25, 1, 5, 0.01), "B": Difference(-0.04, -2, 2, 0.9)},
    )
    return Report((baseline, other), ({}, {}))


def markdown(found: Report) -> str:
    return score_table(found, metrics=True).to_markdown()


def named(*metadata: dict[str, object], models: tuple[str, ...] = ("org/m", "org/m")) -> list[str]:
    runs = [Run(model, it, {}) for model, it in zip(models, metadata, strict=True)]
    return Report(tuple(runs), ({},) * len(runs)).labels


def test_labels_say_what_tells_runs_apart_and_no_more() -> None:
    causal, opened = {"bidirectional": "none", "pooling": "last"}, {"bidirectional": "22-29", "pooling": "last"}
    assert named(causal, opened) == ["causal", "22-29 open"]
    assert named(causal, opened | {"pooling": "mean"}) == ["causal, last", "22-29 open, mean"]
    assert named(causal, causal, models=("org/a", "/home/b/")) == ["a", "b"]
    assert named(causal, opened, models=("org/a", "org/b")) == ["a", "b"]
    assert named(causal, opened, {}, models=("a", "a?bidirectional=last:8", "st:b")) == [
        "a causal",
        "a 22-29 open",
        "st:b",
    ]
    assert named({"layer": -1}, {"layer": -2}) == ["layer -1", "layer -2"]


def test_no_two_labels_are_alike() -> None:
    assert named({}, {}) == ["m #1", "m #2"]
    assert len(set(report((0, 8, 8, 8)).labels)) == 4


def test_markdown_is_a_table_with_its_meaning() -> None:
    lines = markdown(small()).splitlines()
    assert lines[:4] == [
        "| Task | Metric | one | two |",
        "| --- | --- | ---: | ---: |",
        f"| A | accuracy | 70.0 ± 2.0 | 73.2 ± 1.0 {BETTER} |",
        "| B | accuracy | 50.0 ± 1.5 | 50.0 ± 2.0 |",
    ]
    assert "± is half the width of the 95 % bootstrap interval" in lines[5]
    assert "than one: paired test" in lines[5]


def test_one_run_needs_no_words_on_significance() -> None:
    assert "paired" not in markdown(report())
    assert "STS average" in markdown(report())


def test_markdown_keeps_hostile_names_in_their_cell() -> None:
    run = dataclasses.replace(small().runs[0], model="<script>|\nmodel")
    head = markdown(Report((run,), ({},))).splitlines()[0]
    assert head == "| Task | Metric | &lt;script&gt;\\| model |"


def test_the_terminal_shows_the_same_cells_in_a_narrow_window() -> None:
    out = io.StringIO()
    found = report((0, 8), transfer=TRANSFER)
    found = Report((dataclasses.replace(found.runs[0], model="[red]odd"), found.runs[1]), found.results)
    Console(file=out, width=80).print(score_table(found))
    shown = out.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    cells = [line.split(" | ") for line in markdown(found).splitlines()[2:14]]
    assert [line.split() for line in shown[1:13]] == [
        f"{cell[0].strip('| ')} {cell[2]} {cell[3].strip('| ')}".split() for cell in cells
    ]
    assert "[red]odd" in shown[0]


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
        (
            [("A", 0.5, 0.01)],
            BETTER,
            "22-29 open is better than causal by 0.5 points (\N{MINUS SIGN}0.5 to 2.5) on A.",
        ),
    ],
    ids=["better", "worse", "unclear", "no average", "one task", "a little better"],
)
def test_a_sentence_says_what_the_numbers_say(
    differences: list[tuple[str, float, float]], sign: str, text: str
) -> None:
    (sentence,) = compare_runs(compared(*differences))
    assert (sentence.sign, sentence.text) == (sign, text)


def test_a_second_average_does_not_repeat_the_names() -> None:
    found = report((0, 8), transfer=TRANSFER)
    planted = {
        **found.runs[1].differences,
        "STS average": Difference(2, 1, 3, 0.01),
        "transfer average": Difference(-1, -2, -0.5, 0.02),
    }
    other = dataclasses.replace(found.runs[1], differences=planted)
    (sentence,) = compare_runs(Report((found.runs[0], other), found.results))
    assert "on the STS average; worse by 1.0 points (0.5 to 2.0) on the transfer average; " in sentence.text


def test_a_run_alone_says_what_it_reaches() -> None:
    found = report()
    score = found.runs[0].averages["STS average"]
    (sentence,) = compare_runs(found)
    numbers = f"{score.value:.1f} points ({score.low:.1f} to {score.high:.1f})"
    assert sentence.text == f"smollm2 reaches {numbers} on the STS average."


def test_metadata_that_all_runs_share_is_said_once() -> None:
    found = report((0, 8), transfer=TRANSFER)
    shared, (_, opened) = split_metadata(found)
    assert shared["versions"] == "bellm 0.4.0, torch 2.9.0, transformers 5.12.0"
    assert shared["texts cut to fit"] == "CR 1, TREC 2"
    assert shared["window"] == "none"
    assert opened == {
        "model": "models/smollm2?bidirectional=last:8",
        "bidirectional": "22-29",
        "open layers": "22, 23, 24, 25, 26, 27, 28, 29",
        "fingerprint": "08c1f0a97e44b2d8",
    }
    nothing, (everything,) = split_metadata(report())
    assert nothing == {}
    assert set(everything) == {*shared, *opened}
    assert shared["seed"] == "0"
