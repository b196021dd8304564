"""Cosines against scipy."""

import numpy as np
from scipy.spatial.distance import cdist

from bellm.tensors.similarity import cosine_similarity, normalize_rows, paired_cosine_similarity

DRAW = np.random.default_rng(0)
LEFT, RIGHT = DRAW.normal(size=(5, 8)).astype(np.float32), DRAW.normal(size=(5, 8)).astype(np.float32)


def test_cosine_is_that_of_scipy() -> None:
    np.testing.assert_allclose(cosine_similarity(LEFT, RIGHT), 1 - cdist(LEFT, RIGHT, "cosine"), atol=1e-6)


def test_paired_cosine_is_the_diagonal() -> None:
    np.testing.assert_allclose(
        paired_cosine_similarity(LEFT, RIGHT), np.diag(cosine_similarity(LEFT, RIGHT)), atol=1e-6
    )


def test_rows_get_length_one_and_zeros_stay_zeros() -> None:
    rows = normalize_rows(np.vstack([LEFT, np.zeros((1, 8), dtype=np.float32)]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert rows.dtype == np.float32
