"""The page, filled in from a report."""

from dataclasses import dataclass
from pathlib import Path

from bellm.evaluate.page import facts, figures
from bellm.evaluate.page.figures import ScatterPlot
from bellm.evaluate.page.verdicts import compare_runs
from bellm.evaluate.record import report_to_json
from bellm.evaluate.results import Report, Run
from bellm.evaluate.tables import (
    BETTER,
    WORSE,
    all_scores,
    format_interval,
    format_points,
    run_labels,
    significance_mark,
)
from bellm.report import html


@dataclass(frozen=True)
class ScoreCell:
    """A score in the table."""

    value: float
    text: str
    interval: str
    mark: str
    is_best: bool


def write_report_page(report: Report, file: Path) -> None:
    """Write a report as one HTML file without links to anything else, whole or not at all.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    html.write_html(render_report(report), file)


def render_report(report: Report) -> str:
    """The page's HTML."""
    scatters = _scatters(report)
    return html.render_page(
        Path(__file__).parent,
        (color_class, format_interval, significance_mark, format_points, marker_class),
        report=report,
        names=run_labels(report),
        heading=_heading(report),
        models=sorted({run.model.partition("?")[0] for run in report.runs}),
        verdicts=compare_runs(report),
        columns=all_scores(report.runs[0]),
        rows=_rows(report),
        metrics=_metrics(report.runs[0]),
        forest=figures.difference_forest(report),
        panels=figures.score_panels(report),
        scatters=scatters,
        tasks=list(dict.fromkeys(found.task for found in scatters)),
        shared=facts.shared_metadata(report),
        own=facts.run_metadata(report),
        results=html.json_for_script(report_to_json(report)),
        pairs=html.json_for_script(_texts(report, scatters)),
        BETTER=BETTER,
        WORSE=WORSE,
    )


def color_class(run: int) -> str:
    """The class of a run's colour: grey for the baseline, five others in turn.

    >>> [colour(run) for run in (0, 1, 5, 6)]
    ['c0', 'c1', 'c5', 'c1']
    """
    return f"c{run and (run - 1) % 5 + 1}"


def marker_class(run: int) -> str:
    """The mark of a run, for those who do not see its colour; a circle for the baseline, four shapes in turn."""
    return f"s{run % 4}"


def _heading(report: Report) -> str:
    names = run_labels(report)
    if len(names) <= 2:
        return " against ".join(reversed(names))
    return f"{len(names) - 1} encoders against {names[0]}"


def _rows(report: Report) -> list[dict[str, ScoreCell]]:
    """The cells of each run by column."""
    columns = all_scores(report.runs[0])
    best = {name: max(all_scores(run)[name].value for run in report.runs) for name in columns}
    return [{name: _cell(run, name, best[name], len(report.runs) > 1) for name in columns} for run in report.runs]


def _cell(run: Run, name: str, best: float, is_compared: bool) -> ScoreCell:
    score = all_scores(run)[name]
    sign = significance_mark(run.differences.get(name))
    return ScoreCell(
        score.value, format_points(score.value), format_interval(score), sign, is_compared and score.value == best
    )


def _metrics(run: Run) -> dict[str, list[str]]:
    """The tasks that are measured by each metric."""
    found: dict[str, list[str]] = {}
    for task, score in run.scores.items():
        found.setdefault(score.metric, []).append(task)
    return found


def _scatters(report: Report) -> list[ScatterPlot]:
    return [
        figures.scatter_plot(run, result)
        for run, results in enumerate(report.results)
        for result in results.values()
        if result.gold_N is not None
    ]


def _texts(report: Report, scatters: list[ScatterPlot]) -> dict[str, dict[int, tuple[str, str]]]:
    """The texts of all pairs that some run shows, by task and number of the pair."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for drawn in scatters:
        texts = report.results[drawn.run][drawn.task].texts
        pairs = {point.pair: texts[point.pair] for point in drawn.sample + drawn.worst} if texts else {}
        found.setdefault(drawn.task, {}).update(pairs)
    return found
