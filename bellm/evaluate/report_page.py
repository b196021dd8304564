"""The page of a report: scores, differences to the baseline, scores by open layers, and pairs of texts.

Shapes: N pairs of a task, of them W that are ranked worst and S of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.evaluate.report_text import compare_runs, split_metadata
from bellm.evaluate.results import Report, Run, TaskResult
from bellm.report import html
from bellm.report.figures import (
    Forest,
    ForestBar,
    LinePlot,
    Mark,
    Point,
    Scatter,
    estimate_point,
    make_axis,
    make_forest,
)
from bellm.report.formatting import format_interval, significance_mark
from bellm.report.statistics import Difference

WORST = 10
"""Pairs of a task that are highlighted and listed."""

SHOWN = 300
"""Most pairs of a task that are drawn, the worst ones among them."""

_JITTER = 0.004  # Of the axis: ratings are few, and points would hide each other.
_ASIDE = 3.0  # Per cent between runs with as many open layers.


@dataclass(frozen=True)
class PairScatter:
    """Cosine against rating for a run and a task."""

    run: int
    result: TaskResult
    scatter: Scatter
    """Its groups are a `sample` and the `worst`: those whose two ranks are furthest apart, the worst first."""
    ranks: list[tuple[int, int]]
    """Of the worst by rating and by cosine, 1 for the most alike; ties have the middle of their ranks, rounded down."""


def write_report_page(report: Report, path: Path) -> None:
    """Write a report as one HTML file without links to anything else, whole or not at all.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    first, scatters = report.runs[0], _scatters(report)
    shared, own = split_metadata(report)
    page = html.render_page(
        Path(__file__).parent / "report_page.html.jinja",
        report=report,
        marks=run_marks(report),
        heading=_heading(report.labels),
        models=sorted({run.model.partition("?")[0] for run in report.runs}),
        comparisons=compare_runs(report),
        best={name: max(run.all_scores[name].value for run in report.runs) for name in first.all_scores},
        metrics=_tasks_by_metric(first),
        forest=difference_forest(report),
        opened=num_open_layers(report),
        panels=score_panels(report),
        scatters=scatters,
        shared=shared,
        own=own,
        results=report.to_json(),
        texts=_texts(scatters),
    )
    html.write_html(page, path)


def run_marks(report: Report) -> list[Mark]:
    """Gray for the baseline, five colors in turn for the others, and four symbols for those who do not see colors."""
    return [Mark(f"c{run and (run - 1) % 5 + 1}", f"s{run % 4}", label) for run, label in enumerate(report.labels)]


def difference_forest(report: Report) -> Forest | None:
    """Differences of all runs to the first, a row for each average and task; None where there is one run."""
    others = list(zip(report.runs, run_marks(report), strict=True))[1:]
    first = report.runs[0]
    rows = {name: [_bar(run.differences[name], mark) for run, mark in others] for name in first.all_scores}
    return make_forest(rows, first.averages) if others else None


def _bar(difference: Difference, mark: Mark) -> ForestBar:
    color = mark.color if significance_mark(difference) else f"{mark.color} open"
    return ForestBar(difference, replace(mark, color=color), format_interval(difference))


def num_open_layers(report: Report) -> dict[int, int]:
    """The number of open layers of each run that says it; empty unless two runs differ in it."""
    opened = {run: found.facts.get("open_layers") for run, found in enumerate(report.runs)}
    counts = {run: len(layers) for run, layers in opened.items() if isinstance(layers, list | tuple)}
    return counts if len(set(counts.values())) > 1 else {}


def score_panels(report: Report) -> list[LinePlot]:
    """Score against the number of open layers, a panel for each average, or each task where there is none."""
    counts, first = num_open_layers(report), report.runs[0]
    return [_panel(name, report, counts) for name in first.averages or first.scores] if counts else []


def _panel(name: str, report: Report, counts: dict[int, int]) -> LinePlot:
    scores = {run: report.runs[run].all_scores[name] for run in counts}
    up = make_axis(end for score in scores.values() for end in (score.low, score.high))
    across = make_axis(counts.values(), least_step=1)
    marks, points = run_marks(report), []
    for run, count in counts.items():
        same = [other for other in counts if counts[other] == count]
        aside = _ASIDE * (same.index(run) - (len(same) - 1) / 2)
        points.append(estimate_point(across.percent(count) + aside, up, scores[run], marks[run]))
    return LinePlot(name, "", across, up, points)


def pair_scatter(run: int, result: TaskResult) -> PairScatter:
    """A task's worst pairs and a sample of the others, drawn alike for every run."""
    gold_N, cosine_N = result.gold_N, result.item_scores_N
    assert gold_N is not None
    gold_rank_N, rank_N = rankdata(-gold_N), rankdata(-cosine_N)
    worst_W = _worst(abs(gold_rank_N - rank_N), result.texts)
    across, up = make_axis(gold_N.tolist()), make_axis(cosine_N.tolist())
    random = np.random.default_rng(0)
    spread = _JITTER * (across.high - across.low)
    jittered_N = gold_N + random.uniform(-spread, spread, len(gold_N))
    order_N = random.permutation(len(gold_N))
    sample_S = order_N[~np.isin(order_N, worst_W)][: SHOWN - WORST]

    def point(pair: int) -> Point:
        words = f"rating {gold_N[pair]:.3g}, cosine {cosine_N[pair]:.3f}"
        return Point(across.percent(jittered_N[pair]), up.down(cosine_N[pair]), key=pair, words=words)

    groups = {"sample": [*map(point, sample_S.tolist())], "worst": [*map(point, worst_W.tolist())]}
    ranks = [(int(gold_rank_N[pair]), int(rank_N[pair])) for pair in worst_W]
    return PairScatter(run, result, Scatter(across, up, groups), ranks)


def _worst(apart_N: NDArray[np.float64], texts: Sequence[tuple[str, str]]) -> NDArray[np.intp]:
    """The pairs whose ranks are furthest apart; sentences that come twice once."""
    first: dict[object, int] = {}
    for pair in np.argsort(-apart_N, kind="stable").tolist():
        first.setdefault(texts[pair] if texts else pair, pair)
        if len(first) == WORST:
            break
    return np.array(list(first.values()), dtype=np.intp)


def _heading(labels: list[str]) -> str:
    if len(labels) <= 2:
        return " against ".join(reversed(labels))
    return f"{len(labels) - 1} encoders against {labels[0]}"


def _tasks_by_metric(run: Run) -> dict[str, list[str]]:
    tasks: dict[str, list[str]] = {}
    for task, score in run.scores.items():
        tasks.setdefault(score.metric, []).append(task)
    return tasks


def _scatters(report: Report) -> list[PairScatter]:
    runs = enumerate(report.results)
    return [pair_scatter(run, it) for run, results in runs for it in results.values() if it.gold_N is not None]


def _texts(scatters: list[PairScatter]) -> dict[str, dict[int, tuple[str, str]]]:
    """The texts of all pairs that some run shows, by task and number of the pair."""
    texts: dict[str, dict[int, tuple[str, str]]] = {}
    for drawn in scatters:
        keys = [point.key for points in drawn.scatter.groups.values() for point in points]
        known = drawn.result.texts
        texts.setdefault(drawn.result.task, {}).update({key: known[key] for key in keys} if known else {})
    return texts
