import dataclasses
import io

import pytest
from rich.console import Console

from bellm.evaluate.results import Difference, Report, Run, Score
from bellm.evaluate.tables import (
    BETTER,
    WORSE,
    format_points,
    markdown_table,
    run_labels,
    significance_mark,
    terminal_table,
)
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


def named(*facts: dict[str, object], models: tuple[str, ...] = ("org/m", "org/m")) -> list[str]:
    runs = [Run(model, it, {}) for model, it in zip(models, facts, strict=True)]
    return run_labels(Report(tuple(runs), ({},) * len(runs)))


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
    assert len(set(run_labels(report((0, 8, 8, 8))))) == 4


@pytest.mark.parametrize(
    ("value", "p_value", "sign"), [(2, 0.049, BETTER), (-2, 0.049, WORSE), (2, 0.05, ""), (-2, 1, ""), (0, 0.0, "")]
)
def test_only_a_significant_difference_is_marked(value: float, p_value: float, sign: str) -> None:
    assert significance_mark(Difference(value, value - 1, value + 1, p_value)) == sign


def test_points_round_and_never_show_a_negative_zero() -> None:
    assert [format_points(value) for value in (82.03, -0.04, -0.06, 0)] == ["82.0", "0.0", "\N{MINUS SIGN}0.1", "0.0"]
    assert [format_points(value, signed=True) for value in (1.26, -3, 0.01)] == ["+1.3", "\N{MINUS SIGN}3.0", "0.0"]


def test_markdown_is_a_table_with_its_meaning() -> None:
    lines = markdown_table(small()).splitlines()
    assert lines[:4] == [
        "| Task | Metric | one | two |",
        "| --- | --- | ---: | ---: |",
        f"| A | accuracy | 70.0 ± 2.0 | 73.2 ± 1.0 {BETTER} |",
        "| B | accuracy | 50.0 ± 1.5 | 50.0 ± 2.0 |",
    ]
    assert "± is half the width of the 95 % bootstrap interval" in lines[5]
    assert "than one: paired test" in lines[5]


def test_one_run_needs_no_words_on_significance() -> None:
    assert "paired" not in markdown_table(report())
    assert "STS average" in markdown_table(report())


def test_markdown_keeps_hostile_names_in_their_cell() -> None:
    run = dataclasses.replace(small().runs[0], model="<script>|\nmodel")
    head = markdown_table(Report((run,), ({},))).splitlines()[0]
    assert head == "| Task | Metric | &lt;script&gt;\\| model |"


def test_the_terminal_shows_the_same_cells_in_a_narrow_window() -> None:
    out = io.StringIO()
    found = report((0, 8), transfer=TRANSFER)
    found = Report((dataclasses.replace(found.runs[0], model="[red]odd"), found.runs[1]), found.results)
    Console(file=out, width=80).print(terminal_table(found))
    shown = out.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    cells = [line.split(" | ") for line in markdown_table(found).splitlines()[2:14]]
    assert [line.split() for line in shown[1:13]] == [
        f"{cell[0].strip('| ')} {cell[2]} {cell[3].strip('| ')}".split() for cell in cells
    ]
    assert "[red]odd" in shown[0]
