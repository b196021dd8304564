"""Batched logistic regression: many fits on subsets of the same rows, by one truncated Newton method.

SentEval (Conneau & Kiela 2018, arXiv:1803.05449) chooses the penalty inside each of ten folds, so that one task of ten
thousand sentences is some six hundred fits. All of them see the same vectors and differ in the rows that they learn
from. They are solved together (Lin, Weng & Keerthi 2008, "Trust region Newton method for large-scale logistic
regression", the method of LIBLINEAR): every product with the vectors serves all fits, and the fits of one C start from
the solutions for the last one.

Each fit has the one minimum of what scikit-learn's `LogisticRegression(C=C)` minimizes,

    |w|² / 2 + C * sum of the cross-entropy over the rows of the fit,

with an intercept that is not penalized; a sigmoid for two classes, a softmax for more.

Shapes: N rows, D axes (the vectors' width, and one for the intercept), M fits, K outputs (1 for two classes).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, pad, softplus

from bellm.types import Vectors

Rows = NDArray[np.intp]
Labels = NDArray[np.int64]

_NEWTON_STEPS, _CG_STEPS, _HALVINGS = 50, 50, 20
_CLOSE = 1e-4  # Root of the mean square by which logits may still move, each weighted by its curvature.
_FORCING = 0.1  # How far each Newton system is solved.
_ROUNDING = 1e-12  # Share of an objective below which more cannot be told from less.


class Split(NamedTuple):
    """Rows to fit on, and rows to predict."""

    fit: Rows
    test: Rows


class GridSearch(NamedTuple):
    """The splits of one search for C: the best mean accuracy over `trials` decides, `final` is fitted with it."""

    trials: tuple[Split, ...]
    final: Split


@dataclass(frozen=True)
class Fit:
    """The C that a grid search chose, and its predictions."""

    C: float
    accuracy: float
    """Mean over the trials at that C, in points."""
    predicted_N: Labels
    """Classes that the final fit gives to its test rows."""


def grid_search(
    vectors_ND: Vectors, labels_N: Labels, searches: Sequence[GridSearch], C_values: Sequence[float]
) -> list[Fit]:
    """Choose a C for each search, and predict with it.

    Accuracies are compared as SentEval does, to the second decimal of a point; of equal ones the first C wins.

    Args:
        vectors_ND: The features.
        labels_N: The classes, counted from 0.
        searches: The splits that choose C, and the one that is then fitted and predicted, of each search.
        C_values: Inverse strengths of the penalty, ascending: each fit starts from the solution for the one before.
    """
    splits = [split for search in searches for split in (*search.trials, search.final)]
    ends = np.cumsum([len(search.trials) + 1 for search in searches])[:-1]
    candidates: list[list[Fit]] = [[] for _ in searches]
    solutions = fit_logits(vectors_ND, labels_N, [split.fit for split in splits], C_values)
    for C, logits_NMK in zip(C_values, solutions, strict=True):
        classes_NM = logits_NMK.argmax(2) if logits_NMK.shape[2] > 1 else (logits_NMK[:, :, 0] > 0).astype(np.int64)
        for search, of_search_NM, fits in zip(searches, np.split(classes_NM, ends, axis=1), candidates, strict=True):
            right_NM = of_search_NM == labels_N[:, None]
            accuracies = [right_NM[trial.test, index].mean() for index, trial in enumerate(search.trials)]
            fits.append(Fit(C, round(100 * float(np.mean(accuracies)), 2), of_search_NM[search.final.test, -1]))
    return [max(fits, key=lambda fit: fit.accuracy) for fits in candidates]


def fit_logits(
    vectors_ND: Vectors, labels_N: Labels, fits: Sequence[Rows], C_values: Sequence[float]
) -> Iterator[NDArray[np.float32]]:
    """For each C, the logits of every row under each fit, (N, M, K); of two classes only that of class 1."""
    problem = _Problem(vectors_ND, torch.tensor(labels_N), fits)
    weights_DMK = torch.zeros(len(problem.penalty_D11), len(fits), problem.outputs, dtype=torch.float64)
    for C in C_values:
        weights_DMK, logits_NMK = _minimize(problem, C, weights_DMK)
        yield logits_NMK.float().numpy()


class _Problem:
    """The objective of all fits, its gradient and its curvature, by their logits."""

    def __init__(self, vectors_ND: Vectors, labels_N: Tensor, fits: Sequence[Rows]) -> None:
        # Rotating the vectors to their principal axes leaves the penalty, and so the problem, as it is, but makes its
        # Hessian nearly diagonal: few steps suffice even where a few axes hold most of the variance, as in language
        # models. No label is looked at.
        vectors = torch.tensor(vectors_ND, dtype=torch.float64)
        vectors -= vectors.mean(0)
        _, turn_DD = torch.linalg.eigh(vectors.T @ vectors)
        self.axes_ND = pad(vectors @ turn_DD, (0, 1), value=1)
        self.squares_D11 = self.axes_ND.square().sum(0)[:, None, None]
        self.penalty_D11 = torch.ones_like(self.squares_D11)
        self.penalty_D11[-1] = 0
        self.mask_NM1 = torch.zeros(len(labels_N), len(fits), 1, dtype=torch.float64)
        for fit, rows in enumerate(fits):
            self.mask_NM1[rows, fit] = 1
        classes = int(labels_N.max()) + 1
        self.outputs = classes if classes > 2 else 1
        self.target_N1K = (one_hot(labels_N, classes) if classes > 2 else labels_N[:, None]).double()[:, None]

    def forward(self, weights_DMK: Tensor) -> Tensor:
        return (self.axes_ND @ weights_DMK.flatten(1)).reshape(-1, *weights_DMK.shape[1:])

    def backward(self, values_NMK: Tensor) -> Tensor:
        return (self.axes_ND.T @ values_NMK.flatten(1)).reshape(-1, *values_NMK.shape[1:])

    def probabilities(self, logits_NMK: Tensor) -> Tensor:
        return logits_NMK.softmax(-1) if self.outputs > 1 else logits_NMK.sigmoid()

    def objective(self, C: float, weights_DMK: Tensor, logits_NMK: Tensor) -> Tensor:
        """What each fit minimizes, shape (M,)."""
        total_NM1 = logits_NMK.logsumexp(-1, keepdim=True) if self.outputs > 1 else softplus(logits_NMK)
        loss_NM1 = total_NM1 - (logits_NMK * self.target_N1K).sum(-1, keepdim=True)
        penalty_M = _dot(self.penalty_D11 * weights_DMK, weights_DMK) / 2
        return penalty_M + C * (loss_NM1 * self.mask_NM1).sum((0, 2))

    def curve(self, chance_NMK: Tensor, moved_NMK: Tensor) -> Tensor:
        """The Hessian of the loss by the logits, times a move of the logits."""
        if self.outputs == 1:
            return chance_NMK * (1 - chance_NMK) * moved_NMK * self.mask_NM1
        weighted_NMK = chance_NMK * moved_NMK
        return (weighted_NMK - chance_NMK * weighted_NMK.sum(-1, keepdim=True)) * self.mask_NM1


def _minimize(problem: _Problem, C: float, weights_DMK: Tensor) -> tuple[Tensor, Tensor]:
    """Take Newton steps from these weights to the minimum; the weights there, and the logits."""
    # Logits follow every step of the weights, so that they cost no product with the vectors of their own.
    logits_NMK = problem.forward(weights_DMK)
    for _ in range(_NEWTON_STEPS):
        chance_NMK = problem.probabilities(logits_NMK)
        residual_NMK = (chance_NMK - problem.target_N1K) * problem.mask_NM1
        slope_DMK = problem.penalty_D11 * weights_DMK + C * problem.backward(residual_NMK)
        step_DMK, moved_NMK = _newton(problem, C, chance_NMK, slope_DMK)
        fall_M = -_dot(slope_DMK, step_DMK)
        scale_M1 = _scale(problem, C, (weights_DMK, logits_NMK), (step_DMK, moved_NMK), fall_M)[:, None]
        weights_DMK = weights_DMK + scale_M1 * step_DMK
        logits_NMK = logits_NMK + scale_M1 * moved_NMK
        # Twice the decrease that a Newton step promises is the mean square move of the logits, weighted by curvature.
        if (fall_M <= _CLOSE**2 * C * problem.mask_NM1.sum((0, 2))).all():
            break
    return weights_DMK, logits_NMK


def _newton(problem: _Problem, C: float, chance_NMK: Tensor, slope_DMK: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the Newton step by conjugate gradients; the step, and how it moves the logits."""
    # All fits take the iterations of the slowest one; a fit that is solved has nothing left to move by.
    easier = _preconditioner(problem, C, chance_NMK)
    left_DMK, step_DMK, moved_NMK = -slope_DMK, torch.zeros_like(slope_DMK), torch.zeros_like(chance_NMK)
    scaled_DMK = easier(left_DMK)
    along_DMK, size_M = scaled_DMK, _dot(left_DMK, scaled_DMK)
    enough_M = _FORCING**2 * size_M
    for _ in range(_CG_STEPS):
        shift_NMK = problem.forward(along_DMK)
        curved_DMK = problem.penalty_D11 * along_DMK + C * problem.backward(problem.curve(chance_NMK, shift_NMK))
        rate_M1 = _ratio(size_M, _dot(along_DMK, curved_DMK))
        step_DMK = step_DMK + rate_M1 * along_DMK
        moved_NMK = moved_NMK + rate_M1 * shift_NMK
        left_DMK = left_DMK - rate_M1 * curved_DMK
        scaled_DMK = easier(left_DMK)
        before_M, size_M = size_M, _dot(left_DMK, scaled_DMK)
        if (size_M <= enough_M).all():
            break
        along_DMK = scaled_DMK + _ratio(size_M, before_M) * along_DMK
    return step_DMK, moved_NMK


def _preconditioner(problem: _Problem, C: float, chance_NMK: Tensor) -> Callable[[Tensor], Tensor]:
    """Divide by the Hessian as it would be if all rows of a fit had their mean curvature."""
    # It is then a product of the axes' squares (diagonal, see `_Problem`) and one K x K matrix, whose eigenvectors part
    # the outputs, so that what is left to divide by is a diagonal.
    chance_MNK = (chance_NMK * problem.mask_NM1).transpose(0, 1)
    mean_MKK = torch.diag_embed(chance_MNK.sum(1)) - chance_MNK.mT @ chance_NMK.transpose(0, 1)
    spread_MK, turn_MKK = torch.linalg.eigh(mean_MKK / len(chance_NMK))
    diagonal_DMK = problem.penalty_D11 + C * spread_MK * problem.squares_D11
    if problem.outputs > 1:  # One number added to all intercepts changes nothing.
        diagonal_DMK[-1, :, 0] = torch.inf

    def divide(slope_DMK: Tensor) -> Tensor:
        turned_DMK = torch.einsum("dmk,mkj->dmj", slope_DMK, turn_MKK) / diagonal_DMK
        return torch.einsum("dmj,mkj->dmk", turned_DMK, turn_MKK)

    return divide


def _scale(
    problem: _Problem, C: float, at: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor], fall_M: Tensor
) -> Tensor:
    """The share of each fit's step that lowers its objective enough (Armijo), by halving."""
    # Near the minimum the objective falls by less than its rounding, and an honest step must not be refused for that.
    limit_M = problem.objective(C, *at) * (1 + _ROUNDING)
    scale_M = torch.ones_like(fall_M)
    for _ in range(_HALVINGS):
        reached = (here + scale_M[:, None] * move for here, move in zip(at, step, strict=True))
        short_M = problem.objective(C, *reached) > limit_M - 1e-4 * scale_M * fall_M
        if not short_M.any():
            break
        scale_M = torch.where(short_M, scale_M / 2, scale_M)
    return scale_M


def _dot(left_DMK: Tensor, right_DMK: Tensor) -> Tensor:
    """Dot product of two arrays for each fit, shape (M,)."""
    return (left_DMK * right_DMK).sum((0, 2))


def _ratio(over_M: Tensor, under_M: Tensor) -> Tensor:
    """Quotient for each fit, shape (M, 1); 0 where a fit is solved and nothing is left to divide by."""
    return torch.where(under_M > 0, over_M / under_M, 0)[:, None]
