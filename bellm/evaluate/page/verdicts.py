"""What a report says, in sentences made from its numbers."""

from dataclasses import dataclass

from bellm.evaluate.results import Difference, Report, Run
from bellm.evaluate.tables import BETTER, WORSE, format_interval, format_points, run_labels, significance_mark

UNCLEAR = "\N{ALMOST EQUAL TO}"


@dataclass(frozen=True)
class Comparison:
    """One comparison with the baseline, or what a run that stands alone has reached."""

    sign: str
    """`BETTER` or `WORSE` by the first average, or by all tasks where there is none; else `UNCLEAR`."""
    text: str


def compare_runs(report: Report) -> list[Comparison]:
    """A sentence for each run but the baseline, or one for a run that stands alone."""
    names = run_labels(report)
    if len(report.runs) == 1:
        return [Comparison("", _alone(report.runs[0], names[0]))]
    return [_compared(run, name, names[0]) for run, name in zip(report.runs[1:], names[1:], strict=True)]


def _alone(run: Run, name: str) -> str:
    reached = [
        f"{format_points(score.value)} points ({format_interval(score)}) on {_the(task, run)}"
        for task, score in (run.averages or run.scores).items()
    ]
    return f"{name} reaches {'; '.join(reached)}."


def _compared(run: Run, name: str, baseline: str) -> Comparison:
    marks = {task: significance_mark(difference) for task, difference in run.differences.items()}
    said = list(run.averages) or (list(run.scores) if len(run.scores) == 1 else [])
    clauses = [f"{_clause(run.differences[task], name, baseline)} on {_the(task, run)}" for task in said[:1]]
    clauses += [f"{_clause(run.differences[task])} on {_the(task, run)}" for task in said[1:]]
    if len(run.scores) > 1:
        model = "" if said else f"{name} against {baseline}: "
        clauses.append(model + _tally([marks[task] for task in run.scores]))
    signs = {marks[task] for task in said[:1] or run.scores}
    text = "; ".join(clauses) + "."
    return Comparison(signs.pop() or UNCLEAR if len(signs) == 1 else UNCLEAR, text)


def _clause(difference: Difference, name: str = "", baseline: str = "") -> str:
    """What is known of a difference; with the names of both sides where they have not been said."""
    if not significance_mark(difference):
        gap = f"{format_points(difference.value, signed=True)} points, {format_interval(difference)}"
        between = f"{name} and {baseline} cannot be told apart" if name else "no difference can be told"
        return f"{between} ({gap})"
    word = "better" if difference.value > 0 else "worse"
    size = f"by {format_points(abs(difference.value))} points ({_size(difference)})"
    return f"{name} is {word} than {baseline} {size}" if name else f"{word} {size}"


def _the(task: str, run: Run) -> str:
    return f"the {task}" if task in run.averages else task


def _size(difference: Difference) -> str:
    """The interval of a difference whose direction has been said in words."""
    ends = (difference.low, difference.high) if difference.value > 0 else (-difference.high, -difference.low)
    return " to ".join(map(format_points, ends))


def _tally(marks: list[str]) -> str:
    """On how many tasks there is a difference."""
    better, worse, tasks = marks.count(BETTER), marks.count(WORSE), f"{len(marks)} tasks"
    if better and worse:
        found = f"it is significantly better on {better} of {tasks} and worse on {worse}"
    elif better or worse:
        found = f"on {better or worse} of {tasks} the difference is significant"
    else:
        found = f"on none of {tasks} is the difference significant"
    return f"{found}, after Holm's correction"
