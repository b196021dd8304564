"""One matrix of vectors, and what similarity measures need of it; two of them, and what measures share.

A Gram matrix is N by N and a cross-product of coordinates C by C: whichever is smaller carries the same information, so
vectors that are wider than there are texts are rotated to N coordinates first. No measure but PWCCA sees a rotation.

Shapes: N texts, D width, C = min(N, D) coordinates, R rank, K nearest neighbors.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from bellm.errors import BellmError
from bellm.tensors.geometry import uniformity
from bellm.types import Vectors

Floats = NDArray[np.float64]

NEIGHBORS = 10
"""Nearest neighbors of a text, by cosine."""

FEWEST_TEXTS = NEIGHBORS + 2
"""With one less, every other text would be a neighbor."""

# What has a row for each text, and what has a row and a column.
_ROWS = ("vectors_ND", "lengths_N", "centered_squares_N", "basis_NR")
_SQUARES = ("cosines_NN", "distance_ranks_NN", "centered_distances_NN")


_ROUNDING = 1e-6
"""Of the Frobenius norm: directions that hold less are none, or CCA would take them for as good as any other."""


@dataclass(frozen=True)
class Basis:
    """Orthonormal basis of the columns of a matrix: coordinates (N, C) @ whitening (C, R)."""

    whitening_CR: Floats
    scales_R: Floats
    """Singular values, largest first."""


def all_alike(vectors_ND: NDArray[Any]) -> bool:
    """Whether all rows are the same but for rounding."""
    vectors_ND = vectors_ND.astype(np.float64)
    apart = np.linalg.norm(vectors_ND - vectors_ND.mean(axis=0))
    return bool(apart <= _ROUNDING * np.linalg.norm(vectors_ND))


class Representation:
    """Vectors of some texts, and what is computed of them; in float64 but for what is N by N."""

    def __init__(self, vectors_ND: NDArray[Any]) -> None:
        """Take the vectors of N texts, (N, D), of any real dtype.

        Raises:
            BellmError: It is no matrix of finite numbers with `FEWEST_TEXTS` rows or more, or all rows are the same.
        """
        vectors_ND = np.asarray(vectors_ND)
        if vectors_ND.ndim != 2 or vectors_ND.dtype.kind not in "fiub" or not vectors_ND.size:
            raise BellmError(f"An array of shape {vectors_ND.shape} and {vectors_ND.dtype} is no matrix of vectors.")
        if len(vectors_ND) < FEWEST_TEXTS:
            raise BellmError(f"Vectors of {len(vectors_ND)} texts cannot be compared: give {FEWEST_TEXTS} or more.")
        if not np.isfinite(vectors_ND).all():
            raise BellmError("Vectors with NaN or infinity cannot be compared. Embed again with dtype='float32'.")
        self.vectors_ND = vectors_ND if vectors_ND.dtype == np.float32 else vectors_ND.astype(np.float64)
        if all_alike(self.vectors_ND):
            raise BellmError(f"All {len(vectors_ND)} vectors are the same: nothing can be compared.")

    def __len__(self) -> int:
        return len(self.vectors_ND)

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors_ND.shape[1])

    def take(self, rows: NDArray[np.intp]) -> "Representation":
        """Some of the texts; all is computed anew."""
        return Representation(self.vectors_ND[rows])

    def permuted(self, order_N: NDArray[np.intp], *, exact: bool = True) -> "Representation":
        """The same vectors in another order. What has been computed is put in order, not computed again.

        Without `exact` that is also the basis, by which such a pair is measured; see `Pair`.
        """
        if not exact:
            _ = self.basis_NR
        other = copy.copy(self)
        known = vars(other)
        known |= {name: known[name][order_N] for name in _ROWS if name in known}
        is_rotated = self.coordinates_NC is not self.vectors_ND
        known["coordinates_NC"] = self.coordinates_NC[order_N] if is_rotated else other.vectors_ND
        known |= {name: known[name][order_N][:, order_N] for name in _SQUARES if name in known}
        if "neighbors_NK" in known:
            position_N = np.empty_like(order_N)
            position_N[order_N] = np.arange(len(order_N))
            known["neighbors_NK"] = position_N[self.neighbors_NK[order_N]]
        return other

    @cached_property
    def _rotation_CD(self) -> Floats | None:
        """Orthonormal rows that hold all vectors, where these are wider than there are texts."""
        if self.width <= len(self):
            return None
        vectors_ND = self.vectors_ND.astype(np.float64)
        return self._basis(vectors_ND.T).whitening_CR.T @ vectors_ND

    @cached_property
    def coordinates_NC(self) -> NDArray[Any]:
        """The vectors, or their coordinates in at most N directions that hold them all."""
        rotation_CD = self._rotation_CD
        return self.vectors_ND if rotation_CD is None else self.vectors_ND @ rotation_CD.T

    @cached_property
    def mean_C(self) -> Floats:
        """Mean of the coordinates."""
        return np.asarray(self.coordinates_NC.mean(axis=0, dtype=np.float64))

    @cached_property
    def centered(self) -> Basis:
        """Of the coordinates less their mean."""
        return self._basis(self.coordinates_NC - self.mean_C)

    @cached_property
    def basis_NR(self) -> Vectors:
        """Orthonormal basis of the columns of the centered coordinates, in float32."""
        return np.asarray((self.coordinates_NC - self.mean_C) @ self.centered.whitening_CR, dtype=np.float32)

    @property
    def parts_EC(self) -> Floats:
        """The coordinates by the basis, and the constant column of length 1 after it (E = R + 1)."""
        basis = self.centered
        mean_1C = math.sqrt(len(self)) * self.mean_C[None]
        return np.concatenate([basis.scales_R[:, None] * (basis.whitening_CR * basis.scales_R).T, mean_1C])

    @cached_property
    def missing_EK(self) -> Floats:
        """Orthonormal directions of the basis with the constant column that no column of the coordinates has."""
        parts_EC = self.parts_EC
        values_E, axes_EE = np.linalg.eigh(parts_EC @ parts_EC.T)
        return axes_EE[:, np.sqrt(np.maximum(values_E, 0)) <= _ROUNDING * np.linalg.norm(self.vectors_ND)]

    def _basis(self, matrix_NC: Floats) -> Basis:
        # Several times as fast as singular values, and as exact as numbers that were float32 once.
        values_C, axes_CC = np.linalg.eigh(matrix_NC.T @ matrix_NC)
        scales_C = np.sqrt(np.maximum(values_C, 0))
        # Against the numbers that came, not those that are left after centering.
        kept_R = np.flatnonzero(scales_C > _ROUNDING * np.linalg.norm(self.vectors_ND))[::-1]
        return Basis(axes_CC[:, kept_R] / scales_C[kept_R], scales_C[kept_R])

    @cached_property
    def loadings_RD(self) -> Floats:
        """Products of the centered basis with every column of the centered vectors."""
        basis, rotation_CD = self.centered, self._rotation_CD
        loadings_RC = (basis.whitening_CR * basis.scales_R**2).T
        return loadings_RC if rotation_CD is None else loadings_RC @ rotation_CD

    @cached_property
    def centered_squares_N(self) -> Floats:
        """Squared lengths of the centered vectors."""
        return np.asarray(((self.coordinates_NC - self.mean_C) ** 2).sum(axis=1))

    @cached_property
    def lengths_N(self) -> Floats:
        """Lengths of the vectors.

        Raises:
            BellmError: One is zero, and has no cosine.
        """
        lengths_N = np.linalg.norm(self.vectors_ND.astype(np.float64), axis=1)
        if zeros := np.count_nonzero(lengths_N == 0):
            raise BellmError(f"{zeros} of {len(self)} vectors are zero, and have no cosines. Leave these texts out.")
        return np.asarray(lengths_N)

    @cached_property
    def cosines_NN(self) -> Vectors:
        """Cosines of all pairs of texts, in float32 like all that is N by N."""
        unit_NC = self.coordinates_NC / self.lengths_N[:, None]
        return np.asarray(unit_NC @ unit_NC.T, dtype=np.float32)

    @cached_property
    def distance_ranks_NN(self) -> Vectors:
        """Ranks of the Euclidean distances of two texts, less their mean, of length 1; 0 on the diagonal."""
        ranks_P = rankdata(self._distances())
        ranks_P -= ranks_P.mean()
        ranks_P /= np.linalg.norm(ranks_P) * math.sqrt(2) or 1.0  # Each pair stands in the square twice.
        return np.asarray(squareform(ranks_P.astype(np.float32)))

    @cached_property
    def centered_distances_NN(self) -> Vectors:
        """Euclidean distances less the means of rows and columns, of length 1."""
        distances_NN = squareform(self._distances())
        mean_N = distances_NN.mean(axis=0)
        centered_NN = distances_NN - mean_N - mean_N[:, None] + mean_N.mean()
        return np.asarray(centered_NN / np.linalg.norm(centered_NN), dtype=np.float32)

    def _distances(self) -> Floats:
        return np.asarray(pdist(self.coordinates_NC.astype(np.float64)))

    @cached_property
    def neighbors_NK(self) -> NDArray[np.intp]:
        """The `NEIGHBORS` nearest other texts by cosine, nearest first."""
        away_NN = -self.cosines_NN
        np.fill_diagonal(away_NN, np.inf)
        return np.argsort(away_NN, axis=1, kind="stable")[:, :NEIGHBORS].copy()  # A view would keep the whole.

    @cached_property
    def uniformity(self) -> float:
        """How evenly directions fill the sphere; see `bellm.tensors.geometry`."""
        return uniformity(self.vectors_ND)

    @cached_property
    def magnitude(self) -> float:
        """Length of the mean vector."""
        return float(np.linalg.norm(self.mean_C))

    @cached_property
    def concentricity(self) -> float:
        """Mean cosine of the vectors with their mean; 0 where the mean is zero."""
        cosines_N = self.coordinates_NC @ self.mean_C / self.lengths_N
        return float(cosines_N.mean() / self.magnitude) if self.magnitude else 0.0


class Pair:
    """Two representations of the same texts, the same row for each.

    Measures of all columns need one product of the two: that of their bases. The columns are the basis, with one that
    is constant, times `Representation.parts_EC`.
    """

    def __init__(self, left: Representation, right: Representation, *, exact: bool = True) -> None:
        """Pair two representations.

        Args:
            left: Of one model.
            right: Of another.
            exact: Take the product in float64; else that of the bases in float32, which is several times as fast and
                moves measures by some 1e-7, Procrustes near 0 by some 1e-4.

        Raises:
            BellmError: They are of different numbers of texts.
        """
        if len(left) != len(right):
            raise BellmError(f"{len(left)} vectors and {len(right)}: give those of the same texts, in the same order.")
        self.left, self.right, self._is_exact = left, right, exact

    @cached_property
    def overlap_RR(self) -> Floats:
        """Cross-product of the orthonormal bases of the centered coordinates."""
        left, right = self.left, self.right
        if not self._is_exact:
            return (left.basis_NR.T @ right.basis_NR).astype(np.float64)
        product_CC = (left.coordinates_NC - left.mean_C).T @ (right.coordinates_NC - right.mean_C)
        return np.asarray(left.centered.whitening_CR.T @ product_CC @ right.centered.whitening_CR)

    @cached_property
    def scaled_RR(self) -> Floats:
        """Cross-product of the centered coordinates, each side rotated to its principal axes."""
        return self.left.centered.scales_R[:, None] * self.overlap_RR * self.right.centered.scales_R

    @cached_property
    def extended_EE(self) -> Floats:
        """Cross-product of the bases with the constant column, which is orthogonal to both."""
        return np.asarray(block_diag(self.overlap_RR, 1.0))

    @cached_property
    def product_CC(self) -> Floats:
        """Cross-product of the coordinates, not centered."""
        return np.asarray(self.left.parts_EC.T @ self.extended_EE @ self.right.parts_EC)

    @cached_property
    def shared_NKK(self) -> NDArray[np.bool_]:
        """Whether the left's k-th neighbor of a text is the right's l-th."""
        return np.asarray(self.left.neighbors_NK[:, :, None] == self.right.neighbors_NK[:, None, :])
