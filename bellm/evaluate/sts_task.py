"""Semantic textual similarity: how well cosines rank pairs as people do.

Spearman over all pairs of a set is what SentEval calls `all`, and what the field's tables show.
"""

import numpy as np
from scipy.stats import pearsonr, spearmanr

from bellm.data.sts import STSPairs
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import TaskResult
from bellm.tensors.similarity import paired_cosine_similarity

SPEARMAN = "Spearman of cosine"
"""What rated pairs are scored by."""


def score_sts(model: EvaluatedModel, pairs: STSPairs) -> TaskResult:
    """Cosines of a set's pairs beside their ratings.

    `also` has Pearson's correlation and, where the set has parts, SentEval's mean of their Spearman correlations, plain
    and weighted by size (Conneau and Kiela 2018, arXiv 1803.05449).
    """
    texts = [*pairs.left, *pairs.right]
    vectors = model.vectors(texts)
    item_scores_N = paired_cosine_similarity(vectors[: len(pairs.left)], vectors[len(pairs.left) :]).astype(np.float64)
    extra_metrics = {"Pearson": 100 * float(pearsonr(item_scores_N, pairs.gold_N).statistic)}
    parts = np.array(pairs.parts)
    names = sorted(set(pairs.parts))
    if len(names) > 1:
        spearman = [spearmanr(item_scores_N[parts == name], pairs.gold_N[parts == name]).statistic for name in names]
        extra_metrics["mean of parts"] = 100 * float(np.mean(spearman))
        sizes = [int((parts == name).sum()) for name in names]
        extra_metrics["weighted mean of parts"] = 100 * float(np.average(spearman, weights=sizes))
    return TaskResult(
        task=pairs.name,
        metric=SPEARMAN,
        item_scores_N=item_scores_N,
        gold_N=pairs.gold_N,
        texts=tuple(zip(pairs.left, pairs.right, strict=True)),
        num_texts=len(set(texts)),
        num_truncated=model.num_truncated(texts),
        extra_metrics=extra_metrics,
    )
