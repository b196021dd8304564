"""Relative distance of vectors, and how much of it rounding explains by dtype.

Shapes: N vectors, D width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bellm.types import Vectors


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


def tolerances(*dtypes: torch.dtype | str) -> Tolerances:
    """Tolerances between numbers of some dtypes: those of the coarsest."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return Tolerances(*map(max, zip(*(_BY_DTYPE.get(name, _COARSEST) for name in names), strict=True)))


def relative_distance(actual_ND: Tensor | Vectors, expected_ND: Tensor | Vectors) -> float:
    """Largest ‖actual - expected‖ / ‖expected‖ of any row; infinite where shapes differ or a number is missing."""
    actual, expected = (
        table.float() if isinstance(table, Tensor) else torch.from_numpy(np.array(table))
        for table in (actual_ND, expected_ND)
    )
    if actual.shape != expected.shape:
        return float("inf")
    length_N = expected.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((actual - expected).norm(dim=-1) / length_N).nan_to_num(nan=torch.inf).max())
