"""Cosines and relative distances of vectors, and how far rounding moves them by dtype.

Shapes: N and M texts, D width.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bellm.types import Vectors

if TYPE_CHECKING:  # Exported graphs are run without it.
    import torch
    from torch import Tensor

_SQUARES = 1e-15, 1e15
"""Lengths of which float32 holds the square."""


def normalize_rows(vectors_ND: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros stays zeros."""
    with np.errstate(over="ignore"):
        norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    if ((norm_N1 < _SQUARES[0]) | (norm_N1 > _SQUARES[1])).any():
        norm_N1 = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.where(norm_N1 > 0, norm_N1, 1), dtype=np.float32)


def is_constant(vectors_ND: Vectors, limit: float = 1e-3) -> bool:
    """Whether there are several rows and all are the same but for rounding, so that no cosine tells texts apart."""
    if len(vectors_ND) < 2:
        return False
    with np.errstate(over="ignore"):
        scaled_ND = vectors_ND / (np.abs(vectors_ND[0]).max() or 1)
        apart_N = np.linalg.norm(scaled_ND - scaled_ND[:1], axis=1)
    return bool((apart_N <= limit * np.linalg.norm(scaled_ND[0])).all())


def cosine_similarity(left_ND: Vectors, right_MD: Vectors) -> Vectors:
    """Cosine of every left row with every right row, shape (N, M)."""
    return normalize_rows(left_ND) @ normalize_rows(right_MD).T


def paired_cosine_similarity(left_ND: Vectors, right_ND: Vectors) -> NDArray[np.float32]:
    """Cosine of each left row with the right row of the same index, shape (N,)."""
    return np.asarray(np.einsum("nd,nd->n", normalize_rows(left_ND), normalize_rows(right_ND)), dtype=np.float32)


class Tolerances(NamedTuple):
    """Largest relative distances that rounding explains."""

    states: float
    """Between states that must be equal, such as a text's alone and in a batch."""
    packing: float
    """Between packed and padded vectors; a text that sees another is off by far more."""
    fingerprint: float
    """Between fingerprints of the same weights, a few times what backends differ by."""
    leakage: float
    """Of an update that must not see a change, as in experts that share a product."""


_FLOAT32 = Tolerances(states=1e-5, packing=1e-3, fingerprint=1e-3, leakage=1e-5)
_COARSEST = Tolerances(states=0.1, packing=0.1, fingerprint=0.05, leakage=1e-2)
_BY_DTYPE = {
    "float64": _FLOAT32,
    "float32": _FLOAT32,
    "float16": Tolerances(states=0.02, packing=0.02, fingerprint=0.02, leakage=1e-2),
}


def tolerances(*dtypes: "torch.dtype | str") -> Tolerances:
    """Tolerances between numbers of some dtypes: those of the coarsest."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return Tolerances(*map(max, zip(*(_BY_DTYPE.get(name, _COARSEST) for name in names), strict=True)))


def relative_distance(actual_ND: "Tensor | Vectors", expected_ND: "Tensor | Vectors") -> float:
    """Largest ‖actual - expected‖ / ‖expected‖ of any row; infinite where shapes differ or a number is missing."""
    import torch

    actual, expected = (
        table.float() if isinstance(table, torch.Tensor) else torch.from_numpy(np.array(table))
        for table in (actual_ND, expected_ND)
    )
    if actual.shape != expected.shape:
        return float("inf")
    length_N = expected.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((actual - expected).norm(dim=-1) / length_N).nan_to_num(nan=torch.inf).max())
