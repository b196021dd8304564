"""Geometry against closed forms, scipy and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1
from scipy.stats import ortho_group, spearmanr

from bellm.errors import BellmError
from bellm.tensors.geometry import alignment, anisotropy, effective_rank, sentence_dependency, uniformity

DRAW = np.random.default_rng(0)
VECTORS = (DRAW.normal(size=(1100, 12)) + 0.5).astype(np.float32)  # More rows than a block has.
ROTATION = ortho_group.rvs(12, random_state=0).astype(np.float32)
OF_MANY = [uniformity, anisotropy, effective_rank]


def test_alignment_of_rows_turned_by_an_angle() -> None:
    angle_N = DRAW.uniform(-np.pi, np.pi, 200)
    left = np.float32([[3, 0]]).repeat(200, axis=0)
    right = 5 * np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
    assert alignment(left, right) == pytest.approx((2 - 2 * np.cos(angle_N)).mean(), abs=1e-5)
    assert alignment(VECTORS, 7 * VECTORS) == pytest.approx(0, abs=1e-12)
    assert alignment(VECTORS, -VECTORS) == pytest.approx(4)


def test_uniformity_is_that_of_the_paper_s_code() -> None:
    unit_ND = torch.nn.functional.normalize(torch.tensor(VECTORS).double())
    wanted = torch.pdist(unit_ND).pow(2).mul(-2).exp().mean().log()
    assert uniformity(VECTORS) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("width", [3, 16])
def test_points_drawn_evenly_from_a_sphere(width: int) -> None:
    points = np.random.default_rng(1).normal(size=(3000, width)).astype(np.float32)
    # The mean of exp(4 cos) on the sphere is a Bessel function.
    assert uniformity(points) == pytest.approx(-4 + np.log(hyp0f1(width / 2, 4)), abs=0.01)
    assert anisotropy(points) == pytest.approx(0, abs=0.005)
    assert effective_rank(points) == pytest.approx(width, rel=0.01)


def test_vectors_that_fall_to_one_direction() -> None:
    collapsed = DRAW.uniform(1, 9, size=(50, 1)).astype(np.float32) * VECTORS[:1]
    assert uniformity(collapsed) == pytest.approx(0, abs=1e-6)
    assert anisotropy(collapsed) == pytest.approx(1)
    assert effective_rank(collapsed) == pytest.approx(1, abs=1e-4)


def test_anisotropy_is_the_mean_cosine_of_different_rows() -> None:
    wanted = np.corrcoef(np.hstack([VECTORS, -VECTORS]))  # Rows without mean: correlation is cosine.
    assert anisotropy(VECTORS) == pytest.approx(wanted[~np.eye(len(VECTORS), dtype=bool)].mean(), abs=1e-6)


def test_effective_rank_counts_equal_directions_and_weighs_others() -> None:
    assert effective_rank(5 * ROTATION) == pytest.approx(12, rel=1e-5)
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits.
    assert effective_rank(np.diag(np.float32([2, 1, 1, 0]))) == pytest.approx(2**1.5)


@pytest.mark.parametrize("measure", OF_MANY)
def test_order_rotation_and_scale_change_nothing(measure: Callable[[Any], float]) -> None:
    value = measure(VECTORS)
    assert measure(DRAW.permutation(VECTORS)) == pytest.approx(value, rel=1e-9)
    assert measure(VECTORS @ ROTATION) == pytest.approx(value, rel=1e-5)
    assert measure(8 * VECTORS) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("pivot", [-1, 0, 3])
def test_dependency_is_scipy_s_spearman_with_every_other_token(pivot: int) -> None:
    states = np.round(DRAW.normal(size=(6, 40)) + DRAW.normal(size=40), 1).astype(np.float32)  # With ties.
    others = [token for token in range(6) if token != pivot % 6]
    wanted = np.mean([spearmanr(states[pivot], states[token]).statistic for token in others])
    assert sentence_dependency(states, pivot) == pytest.approx(wanted)


def test_dependency_finds_a_planted_correlation() -> None:
    draw = np.random.default_rng(2)
    pivot_D = draw.normal(size=20_000)
    others = 0.6 * pivot_D + 0.8 * draw.normal(size=(5, 20_000))
    found = sentence_dependency(np.vstack([np.exp(others), pivot_D]).astype(np.float32))
    assert found == pytest.approx(6 / np.pi * np.arcsin(0.6 / 2), abs=0.01)


def test_a_state_without_order_counts_as_zero() -> None:
    assert sentence_dependency(np.float32([[1, 2, 3], [7, 7, 7], [4, 5, 6]])) == pytest.approx(0.5)
    assert sentence_dependency(np.float32([[1, 2, 3], [4, 5, 6], [7, 7, 7]])) == 0


def test_what_has_no_direction_is_refused() -> None:
    holed = VECTORS.copy()
    holed[3], holed[5] = 0, np.nan
    with pytest.raises(BellmError, match="2 of 1100 vectors"):
        alignment(VECTORS, holed)
    for measure in (uniformity, anisotropy):
        with pytest.raises(BellmError, match="1 vectors; 2 or more"):
            measure(VECTORS[:1])
    for wrong in (np.zeros((2, 3), np.float32), holed, VECTORS[:0]):
        with pytest.raises(BellmError, match="no meaning"):
            effective_rank(wrong)
    for wrong in (VECTORS[:1], holed):
        with pytest.raises(BellmError, match="two or more"):
            sentence_dependency(wrong)
