"""Cosines against scipy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bellm.tensors.similarity import cosine_similarity, is_constant, normalize_rows, paired_cosine_similarity

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


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_lengths_do_not_matter(scale: float) -> None:
    vectors = np.array([[3, 4], [-4, 3], [3, 4]], dtype=np.float32) * np.float32(scale)
    np.testing.assert_allclose(normalize_rows(vectors), [[0.6, 0.8], [-0.8, 0.6], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(cosine_similarity(vectors[:1], vectors), [[1, 0, 1]], atol=1e-6)
    assert not is_constant(vectors)
    assert is_constant(vectors[[0, 2]])
    mixed = np.array([[1, 0], [scale, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(normalize_rows(mixed), [[1, 0], [1, 0], [0, 0]])
