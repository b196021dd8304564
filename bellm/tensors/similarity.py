"""Cosine similarity of vectors.

Shapes: N and M texts, D width.
"""

import numpy as np
from numpy.typing import NDArray

from bellm.types import Vectors


def normalize_rows(vectors_ND: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros stays zeros."""
    norm_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norm_N1, np.finfo(np.float32).tiny), dtype=np.float32)


def cosine_similarity(left_ND: Vectors, right_MD: Vectors) -> Vectors:
    """Cosine of every left row with every right row, shape (N, M)."""
    return normalize_rows(left_ND) @ normalize_rows(right_MD).T


def paired_cosine_similarity(left_ND: Vectors, right_ND: Vectors) -> NDArray[np.float32]:
    """Cosine of each left row with the right row of the same index, shape (N,)."""
    return np.asarray(np.einsum("nd,nd->n", normalize_rows(left_ND), normalize_rows(right_ND)), dtype=np.float32)
