"""Logistic regression on frozen vectors, many fits at once.

SentEval (Conneau & Kiela 2018, arXiv:1803.05449) chooses the strength of the penalty inside each of ten folds, so that
one task of ten thousand sentences is some six hundred fits. All of them see the same vectors and differ in the rows
that they may learn from. They are therefore solved together, by a truncated Newton method (Lin, Weng & Keerthi 2008,
"Trust region Newton method for large-scale logistic regression", the method of LIBLINEAR): every product with the
vectors serves all fits, and the fits of one strength begin where those of the last one ended.

Each fit has the one minimum of what scikit-learn's `LogisticRegression(C=strength)` minimises,

    |w|² / 2 + strength * sum of the cross-entropy over the rows of the fit,

with an intercept that is not penalised; a sigmoid for two classes, a softmax for more.

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

from bellm.progress import progress_bar
from bellm.types import Vectors

Rows = NDArray[np.intp]
"""Numbers of rows."""

Labels = NDArray[np.int64]
"""Classes, counted from 0."""

_NEWTON_STEPS, _CG_STEPS, _HALVINGS = 50, 50, 20
_CLOSE = 1e-4  # Root of the mean square by which logits may still move, each weighted by its curvature.
_FORCING = 0.1  # How far each Newton system is solved.
_ROUNDING = 1e-12  # Share of an objective below which more cannot be told from less.


class Split(NamedTuple):
    """Rows to learn from, and rows to be judged by."""

    fit: Rows
    test: Rows


class GridSearch(NamedTuple):
    """The strength with the best mean accuracy over the trials is the one of the final fit."""

    trials: tuple[Split, ...]
    final: Split


@dataclass(frozen=True)
class Fit:
    """What a search found."""

    C: float
    accuracy: float
    """Mean over the trials at that strength, in points."""
    predicted_N: Labels
    """Classes that the final fit gives to its test rows."""


def grid_search(
    vectors_ND: Vectors,
    labels_N: Labels,
    searches: Sequence[GridSearch],
    C_values: Sequence[float],
    *,
    progress: bool = False,
) -> list[Fit]:
    """Choose a strength for each search, and predict with it.

    Accuracies are compared as SentEval does, to the second decimal of a point; of equal ones the first strength wins.

    Args:
        vectors_ND: Shape (rows, width).
        labels_N: The class of each row.
        searches: What to choose from which rows.
        C_values: Inverse strengths of the penalty, ascending: each fit begins where the one before ended.
        progress: Show a progress bar.
    """
    fits = [trial.fit for one in searches for trial in (*one.trials, one.final)]
    ends = np.cumsum([len(one.trials) + 1 for one in searches])[:-1]
    choices: list[list[Fit]] = [[] for _ in searches]
    solutions = zip(C_values, fit_logits(vectors_ND, labels_N, fits, C_values), strict=True)
    with progress_bar(len(C_values), unit="strength", shown=progress) as done:
        for C, logits_NMK in solutions:
            predicted = np.split(_classes(logits_NMK), ends, axis=1)
            for one, mine_NM, found in zip(searches, predicted, choices, strict=True):
                found.append(_choice(C, one, mine_NM, labels_N))
            done(1)
    return [max(found, key=lambda choice: choice.accuracy) for found in choices]


def fit_logits(
    vectors_ND: Vectors, labels_N: Labels, fits: Sequence[Rows], C_values: Sequence[float]
) -> Iterator[NDArray[np.float32]]:
    """For each strength, what each fit says of every row, shape (N, M, K).

    The only output of two classes is the logit of class 1.
    """
    axes_ND = _axes(vectors_ND)
    mask_NM1 = torch.zeros(len(labels_N), len(fits), 1, dtype=torch.float64)
    for number, rows in enumerate(fits):
        mask_NM1[rows, number] = 1
    problem = _Problem(axes_ND, mask_NM1, torch.tensor(labels_N))
    weights_DMK = torch.zeros(axes_ND.shape[1], len(fits), problem.outputs, dtype=torch.float64)
    for C in C_values:
        weights_DMK, logits_NMK = _minimise(problem, C, weights_DMK)
        yield logits_NMK.float().numpy()


def _axes(vectors_ND: Vectors) -> Tensor:
    """The vectors in the frame of their principal axes, and a column of ones.

    There the problem is the same, and its Hessian nearly diagonal, so that few steps suffice even where a few axes
    hold most of the variance, as in language models. No label is looked at.
    """
    vectors = torch.tensor(vectors_ND, dtype=torch.float64)
    vectors -= vectors.mean(0)
    _, turn_DD = torch.linalg.eigh(vectors.T @ vectors)
    return pad(vectors @ turn_DD, (0, 1), value=1)


class _Problem:
    """The fits' objective, its slope and its curvature, for the logits of all fits."""

    def __init__(self, axes_ND: Tensor, mask_NM1: Tensor, labels_N: Tensor) -> None:
        classes = int(labels_N.max()) + 1
        self.outputs = classes if classes > 2 else 1
        self.axes_ND, self.mask_NM1 = axes_ND, mask_NM1
        target_NK = one_hot(labels_N, classes).double() if classes > 2 else labels_N[:, None].double()
        self.target_N1K = target_NK[:, None]
        self.penalty_D11 = torch.ones(axes_ND.shape[1], 1, 1, dtype=torch.float64)
        self.penalty_D11[-1] = 0
        self.squares_D11 = axes_ND.square().sum(0)[:, None, None]

    def forward(self, weights_DMK: Tensor) -> Tensor:
        return (self.axes_ND @ weights_DMK.flatten(1)).reshape(-1, *weights_DMK.shape[1:])

    def backward(self, values_NMK: Tensor) -> Tensor:
        return (self.axes_ND.T @ values_NMK.flatten(1)).reshape(-1, *values_NMK.shape[1:])

    def probabilities(self, logits_NMK: Tensor) -> Tensor:
        return logits_NMK.softmax(-1) if self.outputs > 1 else logits_NMK.sigmoid()

    def losses(self, logits_NMK: Tensor) -> Tensor:
        """Cross-entropy summed over the rows of each fit, shape (M,)."""
        total_NM1 = logits_NMK.logsumexp(-1, keepdim=True) if self.outputs > 1 else softplus(logits_NMK)
        loss_NM1 = total_NM1 - (logits_NMK * self.target_N1K).sum(-1, keepdim=True)
        return (loss_NM1 * self.mask_NM1).sum((0, 2))

    def residual(self, chance_NMK: Tensor) -> Tensor:
        return (chance_NMK - self.target_N1K) * self.mask_NM1

    def curve(self, chance_NMK: Tensor, moved_NMK: Tensor) -> Tensor:
        """How the residual answers to a small move of the logits."""
        if self.outputs == 1:
            return chance_NMK * (1 - chance_NMK) * moved_NMK * self.mask_NM1
        weighted_NMK = chance_NMK * moved_NMK
        return (weighted_NMK - chance_NMK * weighted_NMK.sum(-1, keepdim=True)) * self.mask_NM1


def _minimise(problem: _Problem, C: float, weights_DMK: Tensor) -> tuple[Tensor, Tensor]:
    """Newton steps from these weights to the minimum; the weights there, and the logits."""
    logits_NMK = problem.forward(weights_DMK)
    for _ in range(_NEWTON_STEPS):
        chance_NMK = problem.probabilities(logits_NMK)
        slope_DMK = problem.penalty_D11 * weights_DMK + C * problem.backward(problem.residual(chance_NMK))
        step_DMK, moved_NMK = _newton(problem, C, chance_NMK, slope_DMK)
        fall_M = -_dot(slope_DMK, step_DMK)
        scale_M1 = _scale(problem, C, (weights_DMK, logits_NMK), (step_DMK, moved_NMK), fall_M)[:, None]
        weights_DMK = weights_DMK + scale_M1 * step_DMK
        logits_NMK = logits_NMK + scale_M1 * moved_NMK
        if (fall_M <= _CLOSE**2 * C * problem.mask_NM1.sum((0, 2))).all():
            break
    return weights_DMK, logits_NMK


def _newton(problem: _Problem, C: float, chance_NMK: Tensor, slope_DMK: Tensor) -> tuple[Tensor, Tensor]:
    """Conjugate gradients for the Newton step; the step, and how it moves the logits."""
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
    """Divides by the Hessian as it would be if all rows of a fit had their mean curvature."""
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
    limit_M = _objective(problem, C, *at) * (1 + _ROUNDING)
    scale_M = torch.ones_like(fall_M)
    for _ in range(_HALVINGS):
        weights_DMK, logits_NMK = (here + scale_M[:, None] * move for here, move in zip(at, step, strict=True))
        reached_M = _objective(problem, C, weights_DMK, logits_NMK)
        short_M = reached_M > limit_M - 1e-4 * scale_M * fall_M
        if not short_M.any():
            break
        scale_M = torch.where(short_M, scale_M / 2, scale_M)
    return scale_M


def _objective(problem: _Problem, C: float, weights_DMK: Tensor, logits_NMK: Tensor) -> Tensor:
    return _dot(problem.penalty_D11 * weights_DMK, weights_DMK) / 2 + C * problem.losses(logits_NMK)


def _dot(left_DMK: Tensor, right_DMK: Tensor) -> Tensor:
    """For each fit, shape (M,)."""
    return (left_DMK * right_DMK).sum((0, 2))


def _ratio(over_M: Tensor, under_M: Tensor) -> Tensor:
    """Shape (M, 1); 0 where a fit is solved and nothing is left to divide by."""
    return torch.where(under_M > 0, over_M / under_M, 0)[:, None]


def _classes(logits_NMK: NDArray[np.float32]) -> NDArray[np.int64]:
    if logits_NMK.shape[2] == 1:
        return (logits_NMK[:, :, 0] > 0).astype(np.int64)
    classes_NM: NDArray[np.int64] = logits_NMK.argmax(2)
    return classes_NM


def _choice(C: float, search: GridSearch, predicted_NM: NDArray[np.int64], labels_N: Labels) -> Fit:
    right_NM = predicted_NM == labels_N[:, None]
    accuracies = [right_NM[trial.test, number].mean() for number, trial in enumerate(search.trials)]
    return Fit(C, round(100 * float(np.mean(accuracies)), 2), predicted_NM[search.final.test, -1])
