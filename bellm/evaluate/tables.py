"""Scores as tables: Markdown for a model card, rows for a terminal, and the words that the page shares with them."""

import html
from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bellm.evaluate.results import Difference, Report, Run, Score

SIGNIFICANT = 0.05
"""Corrected p-values below this are called a difference."""

BETTER, WORSE = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"

_TELLING = ("bidirectional", "variant", "window", "prompt", "pooling", "layer", "max_tokens", "dtype")


def run_labels(report: Report) -> list[str]:
    """A short name for each run: the end of its model's name, and the settings that tell it from the same model's."""
    models = [run.model.partition("?")[0].rstrip("/").rpartition("/")[2] for run in report.runs]
    groups = {model: [run for run, name in zip(report.runs, models, strict=True) if name == model] for model in models}
    settings = [_settings(run, groups[model]) for run, model in zip(report.runs, models, strict=True)]
    if len(groups) == 1 and all(settings):
        models = [""] * len(models)
    names = [" ".join(filter(None, both)) for both in zip(models, settings, strict=True)]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} #{number}" if name in repeated else name for number, name in enumerate(names, 1)]


def all_scores(run: Run) -> dict[str, Score]:
    """Averages and tasks, in the order in which they are shown."""
    return {**run.averages, **run.scores}


def format_points(value: float, *, signed: bool = False) -> str:
    """A number of points to one decimal; with its sign where it is a difference.

    >>> points(-0.04), points(3.14159, signed=True)
    ('0.0', '+3.1')
    """
    rounded = round(value, 1) + 0.0  # No minus before a zero.
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def format_interval(estimate: Score | Difference) -> str:
    """The ends of a 95 % interval, in words."""
    return f"{format_points(estimate.low)} to {format_points(estimate.high)}"


def significance_mark(difference: Difference | None) -> str:
    """A triangle up or down for a significant difference to the baseline, and nothing for any other."""
    if difference is None or not difference.p_value < SIGNIFICANT or not difference.value:
        return ""
    return BETTER if difference.value > 0 else WORSE


def markdown_table(report: Report) -> str:
    """A table for a model card: a row for each average and task, a column for each run, and what its signs mean."""
    first = all_scores(report.runs[0])
    head = ["Task", "Metric", *run_labels(report)]
    rows = [[name, score.metric, *_cells(report, name)] for name, score in first.items()]
    lines = [head, ["---", "---", *["---:"] * len(report.runs)], *rows]
    table = "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)
    return f"{table}\n{_escaped(table_note(report))}\n"


def terminal_table(report: Report) -> Table:
    """The same table for rich to print."""
    table = Table(box=None, caption=table_note(report), caption_justify="left", pad_edge=False, header_style="bold")
    table.add_column("task")
    for label in run_labels(report):
        table.add_column(Text(label, overflow="fold"), justify="right")
    first = report.runs[0]
    for name in all_scores(first):
        style = "bold" if name in first.averages else ""
        table.add_row(Text(name), *map(Text, _cells(report, name)), style=style)
    return table


def table_note(report: Report) -> str:
    """What the signs of the tables mean."""
    meaning = "Scores in points; \N{PLUS-MINUS SIGN} is half the width of the 95 % bootstrap interval over items."
    if len(report.runs) == 1:
        return meaning
    return (
        f"{meaning} {BETTER} significantly better and {WORSE} worse than {run_labels(report)[0]}: paired test, p below "
        f"{SIGNIFICANT} after Holm's correction for the number of tasks (averages apart); without a sign no "
        "difference can be told."
    )


def _settings(run: Run, alike: Sequence[Run]) -> str:
    """The settings in which a run differs from others of its model."""
    telling = [key for key in _TELLING if len({str(it.facts.get(key)) for it in alike}) > 1 and key in run.facts]
    return ", ".join(_setting(key, run.facts[key]) for key in telling)


def _setting(key: str, value: object) -> str:
    if key == "bidirectional":
        return "causal" if value == "none" else f"{value} open"
    return f"{key.replace('_', ' ')} {value}" if isinstance(value, int) else str(value)


def _cells(report: Report, name: str) -> list[str]:
    """What each run has in a row."""
    return [_cell(all_scores(run)[name], run.differences.get(name)) for run in report.runs]


def _cell(score: Score, difference: Difference | None) -> str:
    half = format_points((score.high - score.low) / 2)
    return f"{format_points(score.value)} \N{PLUS-MINUS SIGN} {half} {significance_mark(difference) or chr(32)}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one cell."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
