"""Results of an evaluation, from one task's items to a report of several encoders, and the report as JSON.

Scores are in points: Spearman, accuracy or nDCG times 100. Shapes: N items of a task (pairs, sentences or queries).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bellm.config import setting_names
from bellm.report.statistics import BootstrapEstimate, Difference, Score

_DIGITS = 4  # Decimals of a point that JSON keeps.


@dataclass(frozen=True)
class TaskResult:
    """What a task measured on one encoder, item by item."""

    task: str
    metric: str
    item_scores_N: NDArray[np.float64]
    """A pair's cosine, 1 for a sentence that was classified right and 0 for another, a query's nDCG."""
    gold_N: NDArray[np.float64] | None = None
    """Ratings whose Spearman correlation with the items is the score; without them their mean is."""
    texts: tuple[tuple[str, str], ...] = ()
    """What the items are about, for pairs."""
    num_texts: int = 0
    num_truncated: int = 0
    extra_metrics: Mapping[str, float] = field(default_factory=dict)

    def to_score(self, estimate: BootstrapEstimate) -> Score:
        """The task's score with the interval of its estimate."""
        ends = (estimate.value, estimate.low, estimate.high)
        return Score(self.metric, *ends, len(self.item_scores_N), self.num_truncated, self.extra_metrics)


@dataclass(frozen=True)
class Run:
    """One encoder's scores."""

    model: str
    metadata: Mapping[str, Any]
    """What is needed to do it again: settings, fingerprint, dtype, seed, versions."""
    scores: Mapping[str, Score]
    averages: Mapping[str, Score] = field(default_factory=dict)
    """Means over complete groups of tasks: STS over the seven, transfer over the seven."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """To the first run, by task and average; empty for the first run."""
    bm25_differences: Mapping[str, Difference] = field(default_factory=dict)
    """To BM25, by retrieval task; empty for BM25 itself."""
    geometry: Mapping[str, float] = field(default_factory=dict)
    """Anisotropy, uniformity, effective rank, alignment and `num_texts` over the texts of its STS tasks, if any."""

    @property
    def all_scores(self) -> dict[str, Score]:
        """Averages and tasks, in the order in which they are shown."""
        return {**self.averages, **self.scores}


@dataclass(frozen=True)
class Report:
    """Runs on the same tasks; the first is the baseline of the others.

    Where there are retrieval tasks the last run is BM25, which has scores of these alone.
    """

    runs: tuple[Run, ...]
    results: tuple[Mapping[str, TaskResult], ...]
    """For each run its items by task, for what is shown pair by pair."""

    def __str__(self) -> str:
        from bellm.evaluate.report_text import score_table  # It shows what is defined here.

        return str(score_table(self))

    @property
    def labels(self) -> list[str]:
        """Short names of runs: the end of each model's name, and the settings that tell it from others of its model."""
        models = [run.model.partition("?")[0].rstrip("/").rpartition("/")[2] for run in self.runs]
        pairs = list(zip(self.runs, models, strict=True))
        groups = {model: [run for run, other in pairs if other == model] for model in models}
        settings = [_telling_settings(run, groups[model]) for run, model in pairs]
        if len(groups) == 1 and all(settings):
            models = [""] * len(models)
        labels = [" ".join(filter(None, both)) for both in zip(models, settings, strict=True)]
        repeated = {label for label, count in Counter(labels).items() if count > 1}
        return [f"{label} #{number}" if label in repeated else label for number, label in enumerate(labels, 1)]

    def to_json(self) -> dict[str, Any]:
        """The first run at the top, the others under `compared` with their differences to it."""
        first, *others = [_run_to_json(run) for run in self.runs]
        del first["differences"]
        return {**first, "compared": others}


def _telling_settings(run: Run, group: Sequence[Run]) -> str:
    """The settings in which a run differs from others of its model, in words."""

    def describe(key: str, value: object) -> str:
        if key == "bidirectional":
            return "causal" if value == "none" else f"{value} open"
        return f"{key.replace('_', ' ')} {value}" if isinstance(value, int) else str(value)

    differing = [key for key in (*setting_names(), "dtype") if len({str(it.metadata.get(key)) for it in group}) > 1]
    return ", ".join(describe(key, run.metadata[key]) for key in differing if key in run.metadata)


def _run_to_json(run: Run) -> dict[str, Any]:
    numbers = asdict(run)
    metadata = numbers.pop("metadata")
    return {**_rounded(numbers), "metadata": metadata}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return round(value, _DIGITS) if isinstance(value, float) else value
