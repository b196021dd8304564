"""How many weights each layer loses: the same share of all, by the tails of spectra, or by outliers.

Every allocation spends its budget to the weight, and no layer loses more than it has.

Shapes: B layers, or other parts of a budget.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError

Shares = NDArray[np.float64]
Counts = NDArray[np.int64]


def allocate(alphas: Sequence[float], sizes: Sequence[int], sparsity: float, eps: float = 0.2) -> Shares:
    """AlphaPruning's allocation (arXiv 2410.10912): layers with a lighter tail lose more.

    The exponents are mapped linearly to 1 - eps ... 1 + eps, and scaled so that the shares of all layers together spend
    the budget. A layer that would lose more than it has loses everything, and the others lose the rest.

    Args:
        alphas: An exponent for each layer, such as `layer_alphas` gives.
        sizes: Number of weights of each layer.
        sparsity: Share of all weights to remove, above 0 and below 1.
        eps: How far layers differ, 0 to below 1; 0 gives every layer the same share.

    Returns:
        Share of its weights that each layer loses, (B,). Times its size it is a whole number, and all of these together
        are `round(sparsity * sum(sizes))`.
    """
    scores_B, sizes_B = _checked(alphas, sizes, sparsity)
    if not 0 <= eps < 1:
        raise BellmError(f"eps={eps} is not from 0 to below 1.")
    factors_B = 1 - eps + 2 * eps * _scaled(scores_B)
    return _spend(lambda level: level * factors_B, [0, *(1 / factors_B)], sizes_B, sparsity)


def allocate_by_outliers(
    outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = 0.08
) -> Shares:
    """OWL's allocation (arXiv 2310.05175): layers with more outliers among their scores lose less.

    Args:
        outliers: Share of weights of each layer whose Wanda score is far above the mean.
        sizes: Number of weights of each layer.
        sparsity: Share of all weights to remove, above 0 and below 1.
        spread: OWL's lambda; the share of a layer is at most so far from that of the mean layer, each way.

    Returns:
        As `allocate`.
    """
    scores_B, sizes_B = _checked(outliers, sizes, sparsity)
    if not 0 <= spread < 0.5:
        raise BellmError(f"spread={spread} is not from 0 to below 0.5.")
    offsets_B = 2 * spread * _scaled(scores_B)
    return _spend(lambda level: level - offsets_B, [*offsets_B, *(1 + offsets_B)], sizes_B, sparsity)


def apportion(wanted_B: Shares, total: int) -> Counts:
    """Whole numbers nearest to what is wanted, which come to a total: the largest remainders are rounded up."""
    floors_B = np.floor(np.round(wanted_B, 6))
    counts_B = floors_B.astype(np.int64)
    missing = max(0, total - int(counts_B.sum()))
    counts_B[np.argsort(floors_B - wanted_B, kind="stable")[:missing]] += 1
    return counts_B


def _checked(scores: Sequence[float], sizes: Sequence[int], sparsity: float) -> tuple[Shares, Counts]:
    scores_B, sizes_B = np.asarray(scores, np.float64), np.asarray(sizes, np.int64)
    if scores_B.shape != sizes_B.shape or scores_B.ndim != 1 or not len(scores_B):
        raise BellmError(
            f"{scores_B.size} scores and {sizes_B.size} sizes of layers: give one of each for every layer."
        )
    if not np.isfinite(scores_B).all() or (sizes_B < 1).any():
        raise BellmError("Scores of layers must be finite, and their sizes at least 1.")
    check_sparsity(sparsity)
    return scores_B, sizes_B


def check_sparsity(sparsity: float) -> None:
    """Raise a BellmError unless a share of weights can go and some stay."""
    if not 0 < sparsity < 1:
        raise BellmError(f"sparsity={sparsity:g} is not between 0 and 1: it is the share of weights that goes.")


def _scaled(scores_B: Shares) -> Shares:
    """Scores from 0 to 1; a half for all where they are alike."""
    low, high = scores_B.min(), scores_B.max()
    return (scores_B - low) / (high - low) if high > low else np.full_like(scores_B, 0.5)


def _spend(shares_at: Callable[[float], Shares], levels: Sequence[float], sizes_B: Counts, sparsity: float) -> Shares:
    """Shares, clamped to 0...1, at the level at which they spend the budget.

    What they spend is piecewise linear in the level, with bends at `levels`.
    """
    total = round(sparsity * int(sizes_B.sum()))
    bends = np.unique(levels)
    spent = [np.clip(shares_at(level), 0, 1) @ sizes_B for level in bends]
    wanted_B = np.clip(shares_at(float(np.interp(total, spent, bends))), 0, 1) * sizes_B
    return apportion(wanted_B, total) / sizes_B
