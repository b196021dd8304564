"""Semantic textual similarity: how well cosines rank pairs as people do.

Spearman over all pairs of a set is what SentEval calls `all`, and what the field's tables show.
"""

import numpy as np
from scipy.stats import pearsonr, spearmanr

from bellm.evaluate.results import Outcome
from bellm.evaluate.sets.pairs import Pairs
from bellm.evaluate.subject import Subject
from bellm.tensors.similarity import paired_cosine_similarity

SPEARMAN = "Spearman of cosine"
"""What rated pairs are scored by."""


def score_pairs(subject: Subject, pairs: Pairs) -> Outcome:
    """Cosines of a set's pairs beside their ratings.

    `also` has Pearson's correlation and, where the set has parts, SentEval's mean of their Spearman correlations, plain
    and weighted by size (Conneau and Kiela 2018, arXiv 1803.05449).
    """
    texts = [*pairs.left, *pairs.right]
    vectors = subject.vectors(texts)
    items_N = paired_cosine_similarity(vectors[: len(pairs.left)], vectors[len(pairs.left) :]).astype(np.float64)
    also = {"Pearson": 100 * float(pearsonr(items_N, pairs.gold_N).statistic)}
    parts = np.array(pairs.parts)
    names = sorted(set(pairs.parts))
    if len(names) > 1:
        spearman = [spearmanr(items_N[parts == name], pairs.gold_N[parts == name]).statistic for name in names]
        also["mean of parts"] = 100 * float(np.mean(spearman))
        sizes = [int((parts == name).sum()) for name in names]
        also["weighted mean of parts"] = 100 * float(np.average(spearman, weights=sizes))
    return Outcome(
        task=pairs.name,
        metric=SPEARMAN,
        items_N=items_N,
        gold_N=pairs.gold_N,
        texts=tuple(zip(pairs.left, pairs.right, strict=True)),
        num_texts=len(set(texts)),
        num_truncated=subject.num_truncated(texts),
        also=also,
    )
