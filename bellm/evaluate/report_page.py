"""Write a report to a folder: JSON, a table for a model card, and a page with figures and pairs of texts.

Shapes: N pairs of a task, of them W that are ranked worst and S of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.evaluate.bm25 import BM25
from bellm.evaluate.report_text import compare_runs, compare_with_words, score_table, split_metadata
from bellm.evaluate.results import Report, TaskResult
from bellm.io.atomic import make_folder, write_bytes, write_json
from bellm.report import figures
from bellm.report.formatting import format_interval, significance_mark
from bellm.report.report_files import check_results_folder, write_page
from bellm.report.statistics import Difference

_RESULTS, _PAGE, _TABLE = "results.json", "report.html", "report.md"

WORST, SHOWN = 10, 300
"""How many pairs of a task are highlighted and listed, and how many are drawn, those among them."""

_JITTER = 0.004  # Of the axis: ratings are few, and points would hide each other.
_ASIDE = 3.0  # Per cent between runs with as many open layers.


@dataclass(frozen=True)
class PairScatter:
    """Cosine against rating for a run and a task."""

    run: int
    result: TaskResult
    scatter: figures.Scatter
    """Its groups are a `sample` and the `worst`: those whose two ranks are furthest apart, the worst first."""
    ranks: list[tuple[int, int]]
    """Of the worst by rating and by cosine, 1 for the most alike; ties have the middle of their ranks, rounded down."""


def check_report_folder(folder: str | Path, models: Sequence[str], *, force: bool = False) -> None:
    """Make sure that a folder can take the report on these models.

    Raises:
        SourceError: It is a file, cannot be made, or holds results of other models and `force` is not given.
    """
    folder = Path(folder)
    refusal = "holds results of {}. Choose another folder, or replace with --force."
    models = [model for model in models if model != BM25]
    check_results_folder(folder / _RESULTS, models, refusal, holds="scores", beside=BM25, force=force)


def write_report(report: Report, folder: str | Path, *, force: bool = False, **more: Any) -> dict[str, Any]:
    """Write `results.json`, `report.html` and `report.md`; results of the same models are replaced.

    Args:
        report: What to write.
        folder: Where to; it is made if it is not there.
        force: Replace results of other models too.
        more: Further keys of `results.json`.

    Returns:
        What `results.json` holds; errors are those of `check_report_folder`.
    """
    folder = Path(folder)
    check_report_folder(folder, [run.model for run in report.runs], force=force)
    make_folder(folder)
    results = {**report.to_json(), **more}
    write_bytes(folder / _TABLE, score_table(report, metrics=True).to_markdown().encode())
    write_json(folder / _RESULTS, results)
    write_report_page(report, folder / _PAGE)
    return results


def write_report_page(
    report: Report, path: str | Path, template: Path = Path(__file__).parent / "report_page.html.jinja", **more: Any
) -> None:
    """Write a report as one HTML file without links to anything else, whole or not at all.

    A `template` of another package may extend the one here; `more` is what it needs besides.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    first, names = report.runs[0], report.labels
    scores = first.scores
    metrics = dict.fromkeys(score.metric for score in scores.values())
    encoders = [name for name in names if name != BM25]
    heading = " against ".join(reversed(encoders))
    if len(encoders) > 2:
        heading = f"{len(encoders) - 1} encoders against {names[0]}"
    results = ((run, result) for run, results in enumerate(report.results) for result in results.values())
    scatters = [pair_scatter(run, result) for run, result in results if result.gold_N is not None]
    shared, own = split_metadata(report)
    write_page(
        Path(path),
        template,
        report=report,
        marks=run_marks(report),
        heading=heading,
        models=sorted({run.model.partition("?")[0] for run in report.runs if run.model != BM25}),
        comparisons=compare_runs(report),
        against_words=compare_with_words(report),
        best={
            name: max(run.all_scores[name].value for run in report.runs if name in run.all_scores)
            for name in first.all_scores
        },
        metrics={metric: [task for task in scores if scores[task].metric == metric] for metric in metrics},
        forest=difference_forest(report),
        panels=score_panels(report),
        scatters=scatters,
        shared=shared,
        own=own,
        texts=_texts(scatters),
        **{"results": report.to_json(), **more},
    )


def run_marks(report: Report) -> list[figures.Mark]:
    """Gray for the baseline, five colors in turn for the others, and four symbols for those who do not see colors."""
    labels = enumerate(report.labels)
    return [figures.Mark(f"c{run and (run - 1) % 5 + 1}", f"s{run % 4}", label) for run, label in labels]


def difference_forest(report: Report) -> figures.Forest | None:
    """Differences of all runs to the first, a row for each average and task; None where there is one run."""
    others = list(zip(report.runs, run_marks(report), strict=True))[1:]
    first = report.runs[0]
    rows = {
        name: [_bar(run.differences[name], mark) for run, mark in others if name in run.differences]
        for name in first.all_scores
    }
    rows = {name: bars for name, bars in rows.items() if bars}
    return figures.make_forest(rows, first.averages) if rows else None


def _bar(difference: Difference, mark: figures.Mark) -> figures.ForestBar:
    color = mark.color if significance_mark(difference) else f"{mark.color} open"
    return figures.ForestBar(difference, replace(mark, color=color), format_interval(difference))


def score_panels(report: Report) -> list[figures.LinePlot]:
    """Score against the number of open layers, a panel for each average, or each task where there is none.

    Runs that do not say how many are left out; there are no panels unless two runs differ in it.
    """
    opened = {run: found.metadata.get("open_layers") for run, found in enumerate(report.runs)}
    counts = {run: len(layers) for run, layers in opened.items() if isinstance(layers, list | tuple)}
    first = report.runs[0]
    names = (first.averages or first.scores) if len(set(counts.values())) > 1 else ()
    return [_panel(name, report, counts) for name in names]


def _panel(name: str, report: Report, counts: dict[int, int]) -> figures.LinePlot:
    scores = {run: report.runs[run].all_scores[name] for run in counts}
    up = figures.make_axis(end for score in scores.values() for end in (score.low, score.high))
    across = figures.make_axis(counts.values(), least_step=1)
    marks, points = run_marks(report), []
    for run, count in counts.items():
        same = [other for other in counts if counts[other] == count]
        aside = _ASIDE * (same.index(run) - (len(same) - 1) / 2)
        points.append(figures.estimate_point(across.percent(count) + aside, up, scores[run], marks[run]))
    return figures.LinePlot(name, "", across, up, points)


def pair_scatter(run: int, result: TaskResult) -> PairScatter:
    """A task's worst pairs and a sample of the others, drawn alike for every run."""
    gold_N, cosine_N = result.gold_N, result.item_scores_N
    assert gold_N is not None
    gold_rank_N, rank_N = rankdata(-gold_N), rankdata(-cosine_N)
    worst_W = _worst(abs(gold_rank_N - rank_N), result.texts)
    across, up = figures.make_axis(gold_N.tolist()), figures.make_axis(cosine_N.tolist())
    random = np.random.default_rng(0)
    spread = _JITTER * (across.high - across.low)
    jittered_N = gold_N + random.uniform(-spread, spread, len(gold_N))
    order_N = random.permutation(len(gold_N))
    sample_S = order_N[~np.isin(order_N, worst_W)][: SHOWN - WORST]

    def point(pair: int) -> figures.Point:
        words = f"rating {gold_N[pair]:.3g}, cosine {cosine_N[pair]:.3f}"
        return figures.Point(across.percent(jittered_N[pair]), up.down(cosine_N[pair]), key=pair, words=words)

    groups = {"sample": [*map(point, sample_S.tolist())], "worst": [*map(point, worst_W.tolist())]}
    ranks = [(int(gold_rank_N[pair]), int(rank_N[pair])) for pair in worst_W]
    return PairScatter(run, result, figures.Scatter(across, up, groups), ranks)


def _worst(apart_N: NDArray[np.float64], texts: Sequence[tuple[str, str]]) -> NDArray[np.intp]:
    """The pairs whose ranks are furthest apart; sentences that come twice once."""
    first: dict[object, int] = {}
    for pair in np.argsort(-apart_N, kind="stable").tolist():
        first.setdefault(texts[pair] if texts else pair, pair)
        if len(first) == WORST:
            break
    return np.array(list(first.values()), dtype=np.intp)


def _texts(scatters: list[PairScatter]) -> dict[str, dict[int, tuple[str, str]]]:
    """The texts of all pairs that some run shows, by task and number of the pair."""
    texts: dict[str, dict[int, tuple[str, str]]] = {}
    for drawn in scatters:
        keys = [point.key for points in drawn.scatter.groups.values() for point in points]
        known = drawn.result.texts
        texts.setdefault(drawn.result.task, {}).update({key: known[key] for key in keys} if known else {})
    return texts
