"""Many fits at once against scikit-learn, one by one."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from bellm.evaluate.logistic_regression import GridSearch, Labels, Split, fit_logits, grid_search
from bellm.types import Vectors

C_VALUES = (0.25, 2.0, 8.0)


def drawn(rows: int = 600, width: int = 24, classes: int = 2, *, noise: float = 1.0) -> tuple[Vectors, Labels]:
    """Vectors as language models give them, far from zero and with a few large axes, and classes that they tell."""
    rng = np.random.default_rng(0)
    scale_D = np.exp(rng.normal(size=width))
    axes_ND = rng.normal(size=(rows, width))
    labels_N = (axes_ND @ rng.normal(size=(width, classes)) + noise * rng.gumbel(size=(rows, classes))).argmax(1)
    turn_DD = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return ((axes_ND * scale_D + 5 * scale_D) @ turn_DD).astype(np.float32), labels_N


def chances(logits_NK: Vectors) -> np.ndarray:
    if logits_NK.shape[1] > 1:
        return softmax(logits_NK, axis=1)
    return np.hstack([1 - expit(logits_NK), expit(logits_NK)])


def reference(
    vectors_ND: Vectors, labels_N: Labels, fit: np.ndarray, C: float, solver: str = "newton-cholesky"
) -> LogisticRegression:
    model = LogisticRegression(C=C, solver=solver, tol=1e-10, max_iter=10_000)
    return model.fit(vectors_ND[fit].astype(np.float64), labels_N[fit])


def accuracy(vectors_ND: Vectors, labels_N: Labels, trial: Split, C: float) -> float:
    model = reference(vectors_ND, labels_N, trial.fit, C)
    return float(accuracy_score(labels_N[trial.test], model.predict(vectors_ND[trial.test])))


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("noise", [0.2, 5.0])
def test_every_fit_is_that_of_scikit_learn(classes: int, noise: float) -> None:
    vectors_ND, labels_N = drawn(classes=classes, noise=noise)
    fits = [np.arange(400), np.arange(250, 600), np.arange(0, 600, 2)]
    for C, logits_NMK in zip(C_VALUES, fit_logits(vectors_ND, labels_N, fits, C_VALUES), strict=True):
        for number, fit in enumerate(fits):
            model = reference(vectors_ND, labels_N, fit, C)
            expected = model.predict_proba(vectors_ND.astype(np.float64))
            np.testing.assert_allclose(chances(logits_NMK[:, number]), expected, atol=2e-4)


def test_more_axes_than_rows() -> None:
    vectors_ND, labels_N = drawn(rows=60, width=200, classes=3)
    fit = np.arange(45)
    *_, logits_NMK = fit_logits(vectors_ND, labels_N, [fit], C_VALUES)
    # The line search of newton-cholesky is decided by rounding here, and not on every processor alike.
    expected = reference(vectors_ND, labels_N, fit, C_VALUES[-1], "newton-cg").predict_proba(
        vectors_ND.astype(np.float64)
    )
    np.testing.assert_allclose(chances(logits_NMK[:, 0]), expected, atol=2e-4)


def test_a_newton_step_that_is_too_long_is_shortened() -> None:
    rng = np.random.default_rng(328)  # One of few draws on which full steps diverge.
    vectors_ND = (10 * rng.standard_t(1, size=(24, 2))).astype(np.float32)
    labels_N = np.r_[:4, rng.integers(4, size=24)[4:]]
    fit = np.arange(24)
    *_, logits_NMK = fit_logits(vectors_ND, labels_N, [fit], (1e-3, 100.0))
    expected = reference(vectors_ND, labels_N, fit, 100.0).predict_proba(vectors_ND.astype(np.float64))
    np.testing.assert_allclose(chances(logits_NMK[:, 0]), expected, atol=2e-4)


def test_vectors_that_say_nothing_leave_the_shares_of_the_classes() -> None:
    labels_N = np.array([0, 1, 1, 1] * 5)
    (logits_NMK,) = fit_logits(np.ones((20, 3), dtype=np.float32), labels_N, [np.arange(20)], [1.0])
    np.testing.assert_allclose(expit(logits_NMK), 0.75, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_rows_outside_a_fit_do_not_change_it(classes: int) -> None:
    vectors_ND, labels_N = drawn(classes=classes)
    other_ND, other_N = vectors_ND.copy(), labels_N.copy()
    other_ND[400:] = 3 * other_ND[400:][::-1] + 1
    other_N[400:] = (other_N[400:] + 1) % classes
    fit = np.arange(400)
    *_, before_NMK = fit_logits(vectors_ND, labels_N, [fit], C_VALUES)
    *_, after_NMK = fit_logits(other_ND, other_N, [fit], C_VALUES)
    np.testing.assert_allclose(chances(after_NMK[:400, 0]), chances(before_NMK[:400, 0]), atol=2e-4)


def test_search_is_the_loop_written_out() -> None:
    vectors_ND, labels_N = drawn(width=60, classes=3, noise=20.0)
    thirds = np.array_split(np.random.default_rng(1).permutation(600), 3)
    searches = [
        GridSearch(
            (Split(np.r_[thirds[one][:100], thirds[two]], thirds[one][100:]), Split(thirds[one], thirds[two])),
            Split(np.r_[thirds[one], thirds[two]], thirds[three]),
        )
        for one, two, three in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    ]
    grid = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    found = grid_search(vectors_ND, labels_N, searches, grid)
    for one, choice in zip(searches, found, strict=True):
        found_by = [[accuracy(vectors_ND, labels_N, trial, C) for trial in one.trials] for C in grid]
        means = np.mean(found_by, axis=1)
        assert grid[means.argmax()] == choice.C
        assert choice.accuracy == pytest.approx(100 * means.max(), abs=0.01)
        model = reference(vectors_ND, labels_N, one.final.fit, choice.C)
        np.testing.assert_array_equal(choice.predicted_N, model.predict(vectors_ND[one.final.test]))
    assert len({choice.C for choice in found}) > 1


def test_of_equal_C_values_the_first_is_chosen() -> None:
    vectors_ND = np.repeat(np.array([[-1.0], [1.0]], dtype=np.float32), 10, axis=0)
    rows, labels_N = np.arange(20), np.repeat([0, 1], 10)
    (choice,) = grid_search(vectors_ND, labels_N, [GridSearch((Split(rows, rows),), Split(rows, rows))], C_VALUES)
    assert (choice.C, choice.accuracy) == (C_VALUES[0], 100)


def test_the_same_again() -> None:
    vectors_ND, labels_N = drawn(classes=3)
    first, again = ([*fit_logits(vectors_ND, labels_N, [np.arange(500)], C_VALUES)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
