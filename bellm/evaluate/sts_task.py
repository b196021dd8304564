"""Semantic textual similarity, also under a condition: Spearman's correlation of cosines with human ratings.

Spearman over all pairs of a set is what SentEval calls `all`, and what the field's tables show.

Shapes: N pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.data import STSPairs, read_sts
from bellm.data.task_names import STS, VALIDATION
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import TaskResult
from bellm.evaluate.task import Task, score_task
from bellm.report.statistics import check_items
from bellm.tensors import geometry
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import InputType, Vectors

SPEARMAN = "Spearman of cosine"
"""The metric of rated pairs."""

_POSITIVE = 4.0  # The rating from which a pair counts as a positive one.
_GEOMETRY_TEXTS = 4096  # Uniformity takes time quadratic in the texts, and the effective rank a singular value each.


class STSTask(Task[STSPairs]):
    """Rated pairs of sentences."""

    kind = "STS"

    def check(self, data: STSPairs) -> None:
        """Refuse few pairs, and ratings without an order."""
        check_items(len(data.left), data.gold_N, self.name)

    def load(self, folder: Path | None, *, clean: bool = False) -> STSPairs:
        """Read the pairs."""
        return read_sts(self.name, folder, clean=clean)

    def texts(self, data: STSPairs) -> Mapping[InputType, Sequence[str]]:
        """Left sentences, then right ones."""
        return {"text": [*data.left, *data.right]}

    def score(self, data: STSPairs, vectors: Mapping[InputType, Vectors]) -> TaskResult:
        """Score the cosine of each pair against its rating.

        `extra_metrics` has Pearson's correlation and, where the set has parts, SentEval's mean of their Spearman
        correlations, plain and weighted by size (Conneau and Kiela 2018, arXiv 1803.05449).
        """
        item_scores_N = paired_cosine_similarity(*np.split(vectors["text"], 2)).astype(np.float64)
        extra_metrics = {"Pearson": 100 * _correlation(item_scores_N, data.gold_N)}
        part_N = np.array(data.parts)
        names, sizes = np.unique(part_N, return_counts=True)
        if len(names) > 1:
            parts = [part_N == name for name in names]
            spearman = [_correlation(rankdata(item_scores_N[part]), rankdata(data.gold_N[part])) for part in parts]
            extra_metrics["mean of parts"] = 100 * float(np.mean(spearman))
            extra_metrics["weighted mean of parts"] = 100 * float(np.average(spearman, weights=sizes))
        return TaskResult(
            task=self.name,
            metric=SPEARMAN,
            item_scores_N=item_scores_N,
            gold_N=data.gold_N,
            texts=tuple(zip(data.left, data.right, strict=True)),
            extra_metrics=extra_metrics,
        )


STS_TASKS = (
    *(STSTask(name, average="STS average") for name in STS),
    STSTask("SICK-R-full"),
    *(STSTask(name, is_test_set=False) for name in VALIDATION),
)


def _correlation(left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one side is constant, as in `bootstrap_estimate`."""
    return float(np.corrcoef(left_N, right_N)[0, 1]) if np.ptp(left_N) and np.ptp(right_N) else 0.0


def score_sts(model: EvaluatedModel, pairs: STSPairs) -> TaskResult:
    """Score a model on rated pairs of your own."""
    return score_task(model, STSTask(pairs.name, data=pairs))


def measure_geometry(rated: Sequence[tuple[STSPairs, Vectors]]) -> dict[str, float]:
    """Anisotropy, uniformity and effective rank of vectors of rated pairs, and alignment of pairs rated 4 or more.

    Up to 4096 distinct texts are looked at, evenly spaced over all; `num_texts` says how many. Vectors of zeros have no
    direction and are left out. Empty with fewer than two texts. A set of N pairs comes with the vectors of its left
    texts and then of its right ones, shape (2N, D).
    """
    vectors: dict[str, Vectors] = {}
    positive: list[tuple[Vectors, Vectors]] = []
    for pairs, vectors_2ND in rated:
        vectors |= {text: row for text, row in zip((*pairs.left, *pairs.right), vectors_2ND, strict=True) if row.any()}
        for left_D, right_D, gold in zip(*np.split(vectors_2ND, 2), pairs.gold_N, strict=True):
            if gold >= _POSITIVE and left_D.any() and right_D.any():
                positive.append((left_D, right_D))
    if len(vectors) < 2:
        return {}
    all_ND = list(vectors.values())
    indices = np.linspace(0, len(all_ND) - 1, min(len(all_ND), _GEOMETRY_TEXTS)).astype(int)
    sample_ND = np.stack([all_ND[index] for index in indices])
    measures = {
        "num_texts": len(sample_ND),
        "anisotropy": geometry.anisotropy(sample_ND),
        "uniformity": geometry.uniformity(sample_ND),
        "effective_rank": geometry.effective_rank(sample_ND),
    }
    if positive:
        measures["alignment"] = geometry.alignment(*map(np.stack, zip(*positive, strict=True)))
    return measures
