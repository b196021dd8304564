"""Measures of representational similarity: two matrices with a row for each text to one number.

Widths may differ. Nothing is padded: products of the two matrices are rectangular, which gives what zero columns at the
end of the narrower would. What a measure centers and scales, it says; definitions follow Klabunde et al. (2023,
arXiv 2305.06329) where they do not say otherwise.

Shapes: N texts, D and E widths, R and S ranks, K nearest neighbors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bellm.analyse.representation import NEIGHBORS, Pair, Representation
from bellm.types import Vectors

Invariance = Literal["orthogonal", "scaling", "translation", "linear"]
"""Maps of either side that change nothing: rotations and reflections, a factor, a shift, any invertible matrix."""

_SVCCA_VARIANCE = 0.99
_ROUNDING = 1e-6  # Of numbers that were float32 once.
_NEAR = 0.1  # A squared distance below which errors of 1e-7 show.


@dataclass(frozen=True)
class Measure:
    """A function of two matrices with its facts. All are invariant to one permutation of the rows of both."""

    name: str
    title: str
    of_pair: Callable[[Pair], float]
    low: float
    high: float
    """Ends of the range; of a debiased measure, of what it estimates."""
    is_distance: bool
    """Whether 0 is for the same representation; else 1 is."""
    invariances: frozenset[Invariance]
    paper: str
    compares_texts: bool = False
    """Whether it looks at all pairs of texts, which takes N^2 memory."""
    is_paired: bool = True
    """Whether it matters which row of one is which row of the other."""
    is_symmetric: bool = True
    """Whether left and right may change places."""
    is_slow: bool = False
    """Whether it decomposes the cross-product of each pair, which takes D^3 steps, slow ones."""

    def __call__(self, left_ND: NDArray[Any], right_NE: NDArray[Any]) -> float:
        """Compare vectors of the same texts, in the same order.

        Raises:
            BellmError: They cannot be compared, or are too few; see `Representation`.
        """
        return self.of_pair(Pair(Representation(left_ND), Representation(right_NE)))

    @property
    def best(self) -> float:
        """Its value for two equal representations."""
        return 0.0 if self.is_distance else 1.0

    @property
    def worst(self) -> float:
        """Its value where nothing is shared, with texts without end: 0, or the largest distance."""
        return self.high if self.is_distance else 0.0


MEASURES: dict[str, Measure] = {}
"""All measures by name; each is a function of two float arrays."""


def _measure(
    title: str, invariances: str, paper: str, *, low: float = 0.0, high: float = 1.0, **facts: Any
) -> Callable[[Callable[[Pair], float]], Measure]:
    def register(function: Callable[[Pair], float]) -> Measure:
        kinds: frozenset[Any] = frozenset(invariances.split())
        known: dict[str, Any] = {"is_distance": False, **facts}
        measure = Measure(function.__name__, title, function, low, high, invariances=kinds, paper=paper, **known)
        object.__setattr__(measure, "__doc__", function.__doc__)
        MEASURES[measure.name] = measure
        return measure

    return register


@_measure(
    "orthogonal Procrustes",
    "orthogonal scaling translation",
    "Schönemann 1966; Ding et al. 2021, arXiv 2108.01661",
    high=math.sqrt(2),
    is_distance=True,
    is_slow=True,
)
def procrustes(pair: Pair) -> float:
    """Distance after the best rotation: sqrt(2 - 2 ||X'Y||_*), both centered and at Frobenius norm 1."""
    norms = np.linalg.norm(pair.left.centered.scales_R) * np.linalg.norm(pair.right.centered.scales_R)
    squared = 2 - 2 * _singular_values(pair.scaled_RR).sum() / norms
    if squared < _NEAR:
        squared = 2 - 2 * np.linalg.svd(pair.scaled_RR, compute_uv=False).sum() / norms
    return math.sqrt(max(squared, 0))


def _singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Singular values to 1e-7 of the largest, by the eigenvalues of the smaller product: three times as fast."""
    product = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    values = np.linalg.eigvalsh(product)
    return np.sqrt(np.where(values > len(values) * np.finfo(np.float64).eps * values[-1], values, 0))


@_measure("aligned cosine", "orthogonal scaling", "Hamilton et al. 2016, arXiv 1605.09096", low=-1.0, is_slow=True)
def aligned_cosine(pair: Pair) -> float:
    """Mean cosine of a text's two vectors after the best rotation of one; neither centered nor scaled before."""
    left_CM, _, right_MC = np.linalg.svd(pair.product_CC, full_matrices=False)
    left_NM, right_NM = pair.left.coordinates_NC @ left_CM, pair.right.coordinates_NC @ right_MC.T
    dots_N = np.einsum("nm,nm->n", left_NM, right_NM)
    return float((dots_N / (pair.left.lengths_N * pair.right.lengths_N)).mean())


@_measure(
    "norm of the RSM difference",
    "orthogonal scaling",
    "Shahbazi et al. 2021; Klabunde et al. 2023, arXiv 2312.02730",
    high=2.0,
    is_distance=True,
    compares_texts=True,
)
def rsm_difference(pair: Pair) -> float:
    """Root mean square of the difference of the cosines of two texts; the Frobenius norm by sqrt(N (N - 1))."""
    size = len(pair.left)
    return float(np.linalg.norm(pair.left.cosines_NN - pair.right.cosines_NN) / math.sqrt(size * (size - 1)))


@_measure(
    "RSA",
    "orthogonal scaling translation",
    "Kriegeskorte et al. 2008",
    low=-1.0,
    compares_texts=True,
)
def rsa(pair: Pair) -> float:
    """Spearman's correlation of the Euclidean distances of two texts, ties at their average rank."""
    return _dot(pair.left.distance_ranks_NN, pair.right.distance_ranks_NN)


def _dot(left_NN: Vectors, right_NN: Vectors) -> float:
    return float(np.einsum("nm,nm->n", left_NN, right_NN).sum(dtype=np.float64))


@_measure("linear CKA", "orthogonal scaling translation", "Kornblith et al. 2019, arXiv 1905.00414")
def cka(pair: Pair) -> float:
    """||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F) of the centered matrices. Grows with D / N, whatever they hold."""
    norms = np.linalg.norm(pair.left.centered.scales_R**2) * np.linalg.norm(pair.right.centered.scales_R**2)
    return float((pair.scaled_RR**2).sum() / norms)


@_measure(
    "debiased CKA",
    "orthogonal scaling translation",
    "Song et al. 2012; Nguyen et al. 2021, arXiv 2010.15327",
    low=-1.0,
)
def cka_debiased(pair: Pair) -> float:
    """Linear CKA from unbiased estimates of HSIC: 0 in the mean for independent matrices of any width.

    0 too where a matrix has all texts equally far apart: its estimate with itself is rounding alone.
    """
    left, right = pair.left, pair.right
    norms = [float((side.centered.scales_R**4).sum()) for side in (left, right)]
    own = [_unbiased_hsic(norm, side, side) for norm, side in zip(norms, (left, right), strict=True)]
    if any(estimate <= _ROUNDING * norm for estimate, norm in zip(own, norms, strict=True)):
        return 0.0
    return _unbiased_hsic((pair.scaled_RR**2).sum(), left, right) / math.sqrt(own[0] * own[1])


def _unbiased_hsic(norm: float, left: Representation, right: Representation) -> float:
    """Song et al. (2012, equation 5) times N (N - 3), of centered rows: each Gram matrix has rows that sum to 0."""
    size = len(left)
    left_N, right_N = left.centered_squares_N, right.centered_squares_N
    means = left_N.sum() * right_N.sum() / ((size - 1) * (size - 2))
    return float(norm - left_N @ right_N * size / (size - 2) + means)


@_measure(
    "kNN Jaccard",
    "orthogonal scaling",
    "Schumacher et al. 2021, arXiv 2005.10039",
    compares_texts=True,
)
def knn_jaccard(pair: Pair) -> float:
    """Mean over texts of shared nearest neighbors by all, of the 10 nearest by cosine."""
    shared_N = pair.shared_NKK.sum(axis=(1, 2))
    return float((shared_N / (2 * NEIGHBORS - shared_N)).mean())


@_measure(
    "second-order cosine",
    "orthogonal scaling",
    "Hamilton et al. 2016, arXiv 1606.02821",
    low=-1.0,
    compares_texts=True,
)
def second_order_cosine(pair: Pair) -> float:
    """Mean over texts of the cosine of two lists: cosines with the 10 nearest of either side, left and right."""
    left, right = pair.left, pair.right
    union_NU = np.concatenate([left.neighbors_NK, right.neighbors_NK], axis=1)
    left_NU, right_NU = (np.take_along_axis(side.cosines_NN, union_NU, axis=1) for side in (left, right))
    left_NU[:, NEIGHBORS:][pair.shared_NKK.any(axis=1)] = 0  # Those of both sides once.
    right_NU[:, NEIGHBORS:][pair.shared_NKK.any(axis=1)] = 0
    norms_N = np.linalg.norm(left_NU, axis=1) * np.linalg.norm(right_NU, axis=1)
    dots_N = np.einsum("nu,nu->n", left_NU, right_NU)
    return float(np.divide(dots_N, norms_N, out=np.zeros_like(dots_N), where=norms_N > 0).mean())


@_measure(
    "rank similarity",
    "orthogonal scaling",
    "Wang et al. 2020, arXiv 2004.14199",
    compares_texts=True,
)
def rank_similarity(pair: Pair) -> float:
    """Mean over texts of how alike the ranks of shared neighbors are, near ones counting more; 0 without any.

    sum of 2 / ((1 + |r - r'|) (r + r')) over the shared of the 10 nearest by cosine, by the first as many terms of the
    harmonic series. Ranks alone: few shared neighbors in the same order are as good as many.
    """
    rank_K = np.arange(1, NEIGHBORS + 1)
    weights_KK = 2 / ((1 + np.abs(rank_K[:, None] - rank_K)) * (rank_K[:, None] + rank_K))
    total_N = (pair.shared_NKK * weights_KK).sum(axis=(1, 2))
    harmonic = np.concatenate([[1.0], np.cumsum(1 / rank_K)])
    return float((total_N / harmonic[pair.shared_NKK.sum(axis=(1, 2))]).mean())


@_measure(
    "distance correlation",
    "orthogonal scaling translation",
    "Székely et al. 2007, arXiv 0803.4101",
    compares_texts=True,
)
def distance_correlation(pair: Pair) -> float:
    """Correlation of double-centered Euclidean distances, its square root. Biased upwards where texts are few."""
    return math.sqrt(max(_dot(pair.left.centered_distances_NN, pair.right.centered_distances_NN), 0))


@_measure("SVCCA", "orthogonal scaling translation", "Raghu et al. 2017, arXiv 1706.05806", is_slow=True)
def svcca(pair: Pair) -> float:
    """Mean canonical correlation of the principal components that hold 99 % of each variance."""
    left, right = (_num_components(side.centered.scales_R) for side in (pair.left, pair.right))
    return float(_singular_values(pair.overlap_RR[:left, :right]).mean())


def _num_components(scales_R: NDArray[np.float64]) -> int:
    shares_R = np.cumsum(scales_R**2)
    return int(np.searchsorted(shares_R, _SVCCA_VARIANCE * shares_R[-1])) + 1


@_measure("PWCCA", "scaling translation", "Morcos et al. 2018, arXiv 1806.05759", is_symmetric=False, is_slow=True)
def pwcca(pair: Pair) -> float:
    """Canonical correlations, weighted by how much of the left's columns each left direction holds.

    Centered. A rotation of the left changes which columns there are. 1 as soon as D + E reaches N.
    """
    squares_M, left_RM = np.linalg.eigh(pair.overlap_RR @ pair.overlap_RR.T)
    correlations_M = np.sqrt(np.maximum(squares_M, 0))
    weights_M = np.linalg.norm(left_RM.T @ pair.left.loadings_RD, ord=1, axis=1)
    # Where the right has fewer directions, the left's others correlate with nothing and have no weight.
    weights_M[: max(len(squares_M) - pair.overlap_RR.shape[1], 0)] = 0
    return float(np.average(correlations_M, weights=weights_M))


@_measure(
    "linear regression R²",
    "orthogonal scaling translation",
    "Kornblith et al. 2019, arXiv 1905.00414",
    is_symmetric=False,
)
def linear_regression(pair: Pair) -> float:
    """Share of the right's variance that a linear map of the left explains, both centered.

    An invertible map of the left changes nothing. Independent matrices give D / (N - 1) in the mean.
    """
    scales_R = pair.right.centered.scales_R
    return float(((pair.overlap_RR * scales_R) ** 2).sum() / (scales_R**2).sum())


@_measure("eigenspace overlap", "orthogonal scaling linear", "May et al. 2019, arXiv 1909.01264")
def eigenspace_overlap(pair: Pair) -> float:
    """||U'V||_F^2 by the larger rank, of orthonormal bases of the columns as they are, not centered."""
    missing_KE, overlap_EE = pair.left.missing_EK.T @ pair.extended_EE, pair.extended_EE
    gone = (missing_KE**2).sum() + ((overlap_EE @ pair.right.missing_EK) ** 2).sum()
    shared = (overlap_EE**2).sum() - gone + ((missing_KE @ pair.right.missing_EK) ** 2).sum()
    ranks = (len(side.missing_EK) - side.missing_EK.shape[1] for side in (pair.left, pair.right))
    return float(shared / max(ranks))


@_measure(
    "uniformity difference",
    "orthogonal scaling",
    "Wang and Isola 2020, arXiv 2005.10242",
    high=8.0,
    is_distance=True,
    is_paired=False,
)
def uniformity_difference(pair: Pair) -> float:
    """Absolute difference of log mean exp(-2 d^2) over pairs of texts, d between vectors at length 1."""
    return abs(pair.left.uniformity - pair.right.uniformity)


@_measure(
    "magnitude difference",
    "orthogonal",
    "Wang et al. 2020, arXiv 2004.14199",
    high=math.inf,
    is_distance=True,
    is_paired=False,
)
def magnitude_difference(pair: Pair) -> float:
    """Absolute difference of the lengths of the mean vectors."""
    return abs(pair.left.magnitude - pair.right.magnitude)


@_measure(
    "concentricity difference",
    "orthogonal scaling",
    "Wang et al. 2020, arXiv 2004.14199",
    high=2.0,
    is_distance=True,
    is_paired=False,
)
def concentricity_difference(pair: Pair) -> float:
    """Absolute difference of the mean cosines of vectors with their mean."""
    return abs(pair.left.concentricity - pair.right.concentricity)
