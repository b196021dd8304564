"""Where the marks of the page's figures stand.

Shapes: N pairs of a task, of them W that are ranked worst and S of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.evaluate.results import Difference, Report, Score, TaskResult
from bellm.evaluate.tables import all_scores
from bellm.report.axis import Axis, make_axis

WORST = 10
"""Pairs of a task that are highlighted and listed."""

SHOWN = 300
"""Most pairs of a task that are drawn, the worst ones among them."""

_JITTER = 0.004  # Of the axis: ratings are few, and points would hide each other.
_ASIDE = 3.0  # Per cent between runs with as many open layers.


@dataclass(frozen=True)
class ForestBar:
    """An estimate with its interval, on an axis."""

    run: int
    at: float
    low: float
    high: float
    across: float = 0
    """Where it stands on the other axis, in a figure that has one."""


@dataclass(frozen=True)
class DifferenceForest:
    """Differences to the baseline: a row for each average and task, with a bar for each run."""

    axis: Axis
    rows: dict[str, list[ForestBar]]


@dataclass(frozen=True)
class ScorePanel:
    """One average or task against the number of open layers."""

    name: str
    across: Axis
    up: Axis
    bars: list[ForestBar]


@dataclass(frozen=True)
class ScatterPoint:
    """A pair of texts in a scatter."""

    pair: int
    x: float
    y: float
    gold: float
    cosine: float
    gold_rank: int
    """1 for the pair that people find most alike; ties share the middle of their ranks, rounded down."""
    cosine_rank: int


@dataclass(frozen=True)
class ScatterPlot:
    """Cosine against rating for a run and a task."""

    run: int
    task: str
    total: int
    across: Axis
    up: Axis
    sample: list[ScatterPoint]
    worst: list[ScatterPoint]
    """Those whose two ranks are furthest apart, the worst first."""


def difference_forest(report: Report) -> DifferenceForest | None:
    """Differences of all runs to the first; None where there is one run."""
    others = list(enumerate(report.runs))[1:]
    ends = [end for _, run in others for found in run.differences.values() for end in (found.low, found.high)]
    if not ends:
        return None
    scale = make_axis([0, *ends])
    names = all_scores(report.runs[0])
    return DifferenceForest(
        scale, {name: [_bar(scale, run, it.differences[name]) for run, it in others] for name in names}
    )


def score_panels(report: Report) -> list[ScorePanel]:
    """Score against the number of open layers, a panel for each average, or each task where there is none.

    Empty unless two runs differ in that number; runs that do not say theirs are left out.
    """
    opened = {number: run.facts.get("open_layers") for number, run in enumerate(report.runs)}
    counts = {number: len(found) for number, found in opened.items() if isinstance(found, list | tuple)}
    if len(set(counts.values())) < 2:
        return []
    first = report.runs[0]
    return [_panel(name, report, counts) for name in first.averages or first.scores]


def scatter_plot(run: int, result: TaskResult) -> ScatterPlot:
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

    def point(pair: int) -> ScatterPoint:
        return ScatterPoint(
            pair=pair,
            x=across.percent(jittered_N[pair]),
            y=round(100 - up.percent(cosine_N[pair]), 2),
            gold=float(gold_N[pair]),
            cosine=float(cosine_N[pair]),
            gold_rank=int(gold_rank_N[pair]),
            cosine_rank=int(rank_N[pair]),
        )

    sample, worst = ([point(pair) for pair in pairs.tolist()] for pairs in (sample_S, worst_W))
    return ScatterPlot(run, result.task, len(gold_N), across, up, sample, worst)


def _worst(apart_N: NDArray[np.float64], texts: Sequence[tuple[str, str]]) -> NDArray[np.intp]:
    """The pairs whose ranks are furthest apart; sentences that come twice once."""
    first: dict[object, int] = {}
    for pair in np.argsort(-apart_N, kind="stable").tolist():
        first.setdefault(texts[pair] if texts else pair, pair)
        if len(first) == WORST:
            break
    return np.array(list(first.values()), dtype=np.intp)


def _bar(scale: Axis, run: int, found: Score | Difference, across: float = 0) -> ForestBar:
    return ForestBar(run, scale.percent(found.value), scale.percent(found.low), scale.percent(found.high), across)


def _panel(name: str, report: Report, counts: dict[int, int]) -> ScorePanel:
    scores = {number: all_scores(report.runs[number])[name] for number in counts}
    up = make_axis(end for score in scores.values() for end in (score.low, score.high))
    across = make_axis(counts.values(), least_step=1)
    bars = []
    for number, count in counts.items():
        alike = [other for other in counts if counts[other] == count]
        aside = _ASIDE * (alike.index(number) - (len(alike) - 1) / 2)
        bars.append(_bar(up, number, scores[number], across.percent(count) + aside))
    return ScorePanel(name, across, up, bars)
