"""Geometry of embeddings: alignment, uniformity, anisotropy, effective rank, and sentence dependency.

All is computed in float64; formulas on the sphere normalize their rows first. Rows that are zeros or not finite have no
direction, and are an error; so are fewer rows than a formula needs.

Shapes: N texts, L tokens of a sentence, D width.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.errors import BellmError
from bellm.types import Vectors

_ROWS = 1024  # Rows of a block of pairs: N numbers each.


def alignment(left_ND: Vectors, right_ND: Vectors) -> float:
    """Mean squared distance of positive pairs on the sphere, 0 to 4; less is better.

    mean of ||u_i - v_i||^2, equation 2 of Wang and Isola (2020, arXiv 2005.10242) with alpha = 2.

    >>> alignment(np.eye(2, dtype=np.float32), np.float32([[2, 0], [0, -1]]))
    2.0
    """
    return float(((_unit(left_ND) - _unit(right_ND)) ** 2).sum(axis=1).mean())


def uniformity(vectors_ND: NDArray[np.floating]) -> float:
    """How evenly vectors fill the sphere: 0 when all are parallel, near -4 when spread over many dimensions.

    log of the mean of exp(-2 ||u_i - u_j||^2) over the pairs of two different rows, equation 3 of Wang and Isola (2020,
    arXiv 2005.10242) with t = 2. All pairs, in N^2 D operations.

    >>> round(uniformity(np.float32([[1, 0], [-1, 0]])), 9)
    -8.0
    """
    unit_ND = _unit(vectors_ND, fewest=2)
    # ||u - v||^2 = 2 - 2 u.v, and a row is at distance 0 from itself.
    total = sum(np.exp(4 * (unit_ND[at : at + _ROWS] @ unit_ND.T) - 4).sum() for at in range(0, len(unit_ND), _ROWS))
    return float(np.log((total - len(unit_ND)) / (len(unit_ND) * (len(unit_ND) - 1))))


def anisotropy(vectors_ND: Vectors) -> float:
    """Mean cosine of two different rows: near 0 when directions are spread out, 1 when all rows share one.

    The measure of Ethayarajh (2019, arXiv 1909.00512, section 3.3), over all pairs rather than a sample: the squared
    length of the sum of unit vectors holds every pair twice and every row once, which takes N D operations.

    >>> anisotropy(np.float32([[1, 0], [0, 3], [-1, 0], [0, -1]]))
    -0.3333333333333333
    """
    unit_ND = _unit(vectors_ND, fewest=2)
    sum_D = unit_ND.sum(axis=0)
    return float((sum_D @ sum_D - len(unit_ND)) / (len(unit_ND) * (len(unit_ND) - 1)))


def effective_rank(vectors_ND: Vectors) -> float:
    """How many dimensions vectors use, 1 to min(N, D): exp of the entropy of the normalised singular values.

    exp(-sum p_k log p_k) with p_k = s_k / sum s (Roy and Vetterli 2007, "The effective rank"). As published, rows are
    neither centered nor scaled: a direction that all rows share (see `anisotropy`) lowers it, unless the mean is
    subtracted first.

    >>> round(effective_rank(np.eye(3, 7, dtype=np.float32)), 12)
    3.0
    """
    if not np.isfinite(vectors_ND).all() or not vectors_ND.any():
        raise BellmError("The rank of vectors that are all zeros, or not finite, has no meaning.")
    values_K = np.linalg.svd(vectors_ND.astype(np.float64), compute_uv=False)
    shares_K = values_K[values_K > 0] / values_K.sum()
    return float(np.exp(-(shares_K * np.log(shares_K)).sum()))


def sentence_dependency(states_LD: Vectors, pivot: int = -1) -> float:
    """Correlation of the pivot token's state with those of the other tokens of its sentence, -1 to 1.

    Mean of Spearman's correlation over the D features between the pivot and each other token, ties at their average
    rank (BeLLM, arXiv 2311.05296, pilot study; papers give the mean over sentences). A state whose features are all
    equal correlates with none: 0. The states are those of one sentence in one layer, without padding.

    >>> sentence_dependency(np.float32([[1, 2, 3], [9, 5, 1], [10, 20, 21]]))
    0.0
    """
    if len(states_LD) < 2 or not np.isfinite(states_LD).all():
        raise BellmError(f"{len(states_LD)} states: two or more are needed, all finite.")
    ranks_LD = rankdata(states_LD, axis=1) - (states_LD.shape[1] + 1) / 2
    length_L = np.linalg.norm(ranks_LD, axis=1)
    unit_LD = ranks_LD / np.where(length_L > 0, length_L, 1)[:, None]
    return float(np.delete(unit_LD @ unit_LD[pivot], pivot).mean())


def _unit(vectors_ND: NDArray[np.floating], fewest: int = 1) -> NDArray[np.float64]:
    """Rows at length 1 in float64."""
    if len(vectors_ND) < fewest:
        raise BellmError(f"{len(vectors_ND)} vectors; {fewest} or more are needed.")
    length_N = np.linalg.norm(vectors_ND.astype(np.float64), axis=1)
    if wrong := np.count_nonzero(~(np.isfinite(length_N) & (length_N > 0))):
        raise BellmError(f"{wrong} of {len(vectors_ND)} vectors are zeros or not finite, and have no direction.")
    return np.asarray(vectors_ND / length_N[:, None], dtype=np.float64)
