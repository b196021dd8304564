"""What an evaluation finds, from one task's items to a report of several encoders.

Scores are in points: Spearman, accuracy or nDCG times 100.

Shapes: N items of a task (pairs, sentences or queries).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TaskResult:
    """What a task measured on one encoder, item by item."""

    task: str
    metric: str
    """In words: Spearman of cosine, accuracy, nDCG@10."""
    item_scores_N: NDArray[np.float64]
    """A pair's cosine, 1 for a sentence that was classified right and 0 for another, a query's nDCG."""
    gold_N: NDArray[np.float64] | None = None
    """Ratings whose Spearman correlation with the items is the score; without them their mean is."""
    texts: tuple[tuple[str, str], ...] = ()
    """What the items are about, for pairs."""
    num_texts: int = 0
    num_truncated: int = 0
    extra_metrics: Mapping[str, float] = field(default_factory=dict)
    """Other metrics of the same task, in points."""


@dataclass(frozen=True)
class Score:
    """A task's score with its 95 % bootstrap interval over items, in points."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    num_truncated: int = 0
    extra_metrics: Mapping[str, float] = field(default_factory=dict)

    def __float__(self) -> float:
        """The value alone."""
        return self.value


@dataclass(frozen=True)
class Difference:
    """A score minus the baseline's on the same items, in points."""

    value: float
    low: float
    high: float
    p_value: float
    """Of a paired, two-sided test; corrected for the number of tasks compared."""


@dataclass(frozen=True)
class Run:
    """One encoder's scores."""

    model: str
    facts: Mapping[str, Any]
    """What is needed to do it again: settings, fingerprint, dtype, seed, versions."""
    scores: Mapping[str, Score]
    """By task, in the order in which they are shown."""
    averages: Mapping[str, Score] = field(default_factory=dict)
    """Means over complete groups of tasks: STS over the seven, transfer over the seven."""
    differences: Mapping[str, Difference] = field(default_factory=dict)
    """To the first run, by task and average; empty for the first run."""
    geometry: Mapping[str, float] = field(default_factory=dict)
    """Anisotropy, uniformity, effective rank, alignment and `num_texts` over the texts of its STS tasks, if any."""


@dataclass(frozen=True)
class Report:
    """Runs on the same tasks; the first is the baseline of the others."""

    runs: tuple[Run, ...]
    results: tuple[Mapping[str, TaskResult], ...]
    """For each run its items by task, for what is shown pair by pair."""
