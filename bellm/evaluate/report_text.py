"""A report in words: its table of scores, a sentence for each comparison, and the metadata to do it again."""

from dataclasses import dataclass

from bellm.evaluate.bm25 import BM25
from bellm.evaluate.results import Report, Run
from bellm.report.formatting import (
    BETTER,
    SIGNIFICANT,
    WORSE,
    Table,
    format_interval,
    format_metadata,
    format_points,
    format_score,
    significance_mark,
)
from bellm.report.statistics import Difference

UNCLEAR = "\N{ALMOST EQUAL TO}"


def score_table(report: Report, *, metrics: bool = False) -> Table:
    """A row for each average and task, with its metric if asked for; a column for each run; what the triangles mean."""
    first = report.runs[0]
    rows = []
    for name, score in first.all_scores.items():
        marks = [significance_mark(run.differences.get(name)) or " " for run in report.runs]
        found = [run.all_scores.get(name) for run in report.runs]
        cells = [f"{format_score(one)} {mark}" if one else "" for one, mark in zip(found, marks, strict=True)]
        rows.append([name, *[score.metric] * metrics, *cells])
    caption = "Scores in points; \N{PLUS-MINUS SIGN} is half the width of the 95 % bootstrap interval over items."
    if len(report.runs) > 1:
        caption += (
            f" {BETTER} significantly better and {WORSE} worse than {report.labels[0]}: paired test, p below "
            f"{SIGNIFICANT} after Holm's correction for the number of tasks (averages apart); without a sign no "
            "difference can be told."
        )
    header = [*(("Task", "Metric") if metrics else ("task",)), *report.labels]
    styles = ["bold" if name in first.averages else "" for name in first.all_scores]
    return Table(header, rows, caption, num_left=1 + metrics, styles=styles)


@dataclass(frozen=True)
class Comparison:
    """One comparison with the baseline, or what a run that stands alone has reached."""

    sign: str
    """`BETTER` or `WORSE` by the first average, or by all tasks where there is none; else `UNCLEAR`."""
    text: str


def compare_runs(report: Report) -> list[Comparison]:
    """A sentence for each run but the baseline, and one for an encoder that stands alone."""
    first, *others = report.labels
    compared = [_compared(run, name, first) for run, name in zip(report.runs[1:], others, strict=True)]
    if others and others != [BM25]:
        return compared
    run = report.runs[0]
    reached = [
        f"{format_points(score.value)} points ({format_interval(score)}) on {_the(task, run)}"
        for task, score in (run.averages or run.scores).items()
    ]
    return [Comparison("", f"{first} reaches {'; '.join(reached)}."), *compared]


def compare_with_words(report: Report) -> list[str]:
    """A sentence for each run and retrieval task of which it is not shown that vectors find more than words."""
    runs = zip(report.runs, report.labels, strict=True)
    return [
        f"On {task} {name} does not beat words: {_clause(difference, name, BM25)}."
        for run, name in runs
        for task, difference in run.bm25_differences.items()
        if significance_mark(difference) != BETTER
    ]


def _compared(run: Run, name: str, baseline: str) -> Comparison:
    marks = {task: significance_mark(difference) for task, difference in run.differences.items()}
    named = list(run.averages) or (list(run.scores) if len(run.scores) == 1 else [])
    clauses = [f"{_clause(run.differences[task], name, baseline)} on {_the(task, run)}" for task in named[:1]]
    clauses += [f"{_clause(run.differences[task])} on {_the(task, run)}" for task in named[1:]]
    if len(run.scores) > 1:
        model = "" if named else f"{name} against {baseline}: "
        clauses.append(model + _tally([marks[task] for task in run.scores]))
    signs = {marks[task] for task in named[:1] or run.scores}
    text = "; ".join(clauses) + "."
    return Comparison(signs.pop() or UNCLEAR if len(signs) == 1 else UNCLEAR, text)


def _clause(difference: Difference, name: str = "", baseline: str = "") -> str:
    """What is known of a difference; with the names of both sides where they have not been said."""
    if not significance_mark(difference):
        gap = f"{format_points(difference.value, signed=True)} points, {format_interval(difference)}"
        between = f"{name} and {baseline} cannot be told apart" if name else "no difference can be told"
        return f"{between} ({gap})"
    word = "better" if difference.value > 0 else "worse"
    # The direction is said in words, so that the interval is of the size.
    ends = (difference.low, difference.high) if difference.value > 0 else (-difference.high, -difference.low)
    size = f"by {format_points(abs(difference.value))} points ({' to '.join(map(format_points, ends))})"
    return f"{name} is {word} than {baseline} {size}" if name else f"{word} {size}"


def _the(task: str, run: Run) -> str:
    return f"the {task}" if task in run.averages else task


def _tally(marks: list[str]) -> str:
    """On how many tasks there is a difference."""
    better, worse, tasks = marks.count(BETTER), marks.count(WORSE), f"{len(marks)} tasks"
    if better and worse:
        counts = f"it is significantly better on {better} of {tasks} and worse on {worse}"
    elif better or worse:
        counts = f"on {better or worse} of {tasks} the difference is significant"
    else:
        counts = f"on none of {tasks} is the difference significant"
    return f"{counts}, after Holm's correction"


def split_metadata(report: Report) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What all runs have in common, nothing where there is one, and the rest of each run's metadata; both in words."""
    runs = []
    for run in report.runs:
        cut = {task: score.num_truncated for task, score in run.scores.items() if score.num_truncated}
        settings = dict(run.metadata)
        evaluation = settings.pop("evaluation", {})
        runs.append(format_metadata({"model": run.model, **settings, **evaluation, "texts_cut_to_fit": cut}))
    first, *others = runs
    shared = {name: value for name, value in first.items() if others and all(it.get(name) == value for it in others)}
    return shared, [{name: value for name, value in words.items() if name not in shared} for words in runs]
