"""Allocations spend the budget, to the weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm import BellmError
from bellm.compress import allocate, allocate_by_outliers
from bellm.compress.allocation import apportion

LLAMA = np.linspace(0, 1, 32) ** 1.1578
"""Like the exponents of LLaMA-7B's 32 layers: from 2.609 to 4.220, and with their mean."""
SIZES = [202_375_168] * 32

LAYERS = st.lists(st.tuples(st.floats(1.1, 20), st.integers(1, 10**7)), min_size=1, max_size=40)


def exponents() -> np.ndarray:
    return 2.609 + 1.611 * LLAMA


@pytest.mark.parametrize(
    ("eps", "level", "low", "high"), [(0.2, 0.7100, 0.568, 0.852), (0.3, 0.7152, 0.501, 0.930)], ids=str
)
def test_llama_at_70_percent(eps: float, level: float, low: float, high: float) -> None:
    shares = allocate(exponents(), SIZES, 0.7, eps)
    assert (shares.min(), shares.max()) == pytest.approx((low, high), abs=5e-4)
    assert shares.max() / (1 + eps) == pytest.approx(level, abs=2e-4)


def test_what_a_layer_cannot_lose_the_others_lose() -> None:
    """At 80 % the authors' code asks a layer of LLaMA-7B for 1.0625 of its weights."""
    shares = allocate(exponents(), SIZES, 0.8, 0.3)
    assert shares.max() == 1
    assert 0.8 / (0.7 + 0.6 * LLAMA.mean()) * 1.3 == pytest.approx(1.0625, abs=1e-3)
    assert round(float(shares @ SIZES)) == round(0.8 * sum(SIZES))
    whole = shares == 1
    factors = (0.7 + 0.6 * LLAMA)[~whole]
    np.testing.assert_allclose(shares[~whole] / factors, (shares[~whole] / factors)[0], rtol=1e-6)


@given(LAYERS, st.floats(0.001, 0.999), st.floats(0, 0.99), st.booleans())
def test_budgets_are_exact_to_one_weight(
    layers: list[tuple[float, int]], sparsity: float, eps: float, by_outliers: bool
) -> None:
    scores, sizes = zip(*layers, strict=True)
    shares = (
        allocate_by_outliers(scores, sizes, sparsity, eps / 2)
        if by_outliers
        else allocate(scores, sizes, sparsity, eps)
    )
    counts = shares * np.array(sizes)
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-6)
    assert np.rint(counts).sum() == round(sparsity * sum(sizes))


@given(st.lists(st.floats(1.1, 20), min_size=2, max_size=40), st.floats(0.05, 0.95), st.floats(0, 0.9))
def test_of_equal_layers_the_lighter_tail_loses_more(alphas: list[float], sparsity: float, eps: float) -> None:
    shares = allocate(alphas, [10**6] * len(alphas), sparsity, eps)
    assert (np.diff(shares[np.argsort(alphas, kind="stable")]) >= -1.5e-6).all()
    by_outliers = allocate_by_outliers(alphas, [10**6] * len(alphas), sparsity)
    assert (np.diff(by_outliers[np.argsort(alphas, kind="stable")]) <= 1.5e-6).all()


def test_without_a_difference_all_lose_alike() -> None:
    np.testing.assert_array_equal(allocate([3, 3], [10, 30], 0.5), [0.5, 0.5])
    np.testing.assert_array_equal(allocate([2, 4], [10, 30], 0.5, eps=0), [0.5, 0.5])


def test_owl_by_hand() -> None:
    shares = allocate_by_outliers([0.01, 0.03, 0.02], [1000, 1000, 1000], 0.7)
    np.testing.assert_allclose(shares, [0.78, 0.62, 0.70], atol=1e-3)


def test_apportioned_counts() -> None:
    assert apportion(np.array([1.5, 1.5, 2.0]), 5).tolist() == [2, 1, 2]
    assert apportion(np.array([0.4, 0.4, 0.2]), 1).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([2, 3], [10, 10], 1.0), "sparsity=1 is not between 0 and 1"),
        (([2, 3], [10, 10], 0), "sparsity=0 is not between"),
        (([2, 3], [10, 10], 0.5, 1), "eps=1 is not from 0"),
        (([2, 3], [10], 0.5), "2 scores and 1 sizes"),
        (([], [], 0.5), "0 scores"),
        (([2, float("nan")], [10, 10], 0.5), "must be finite"),
        (([2, 3], [10, 0], 0.5), "at least 1"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments: tuple, said: str) -> None:
    with pytest.raises(BellmError, match=said) as raised:
        allocate(*arguments)
    assert "\n" not in str(raised.value)
