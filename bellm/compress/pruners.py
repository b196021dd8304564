"""Which weights of a matrix go: the smallest, those that do least to its output, or those that others make up for.

Shapes: O outputs, I inputs, N tokens.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bellm.compress.allocation import apportion
from bellm.errors import BellmError

PruneMethod = Literal["magnitude", "wanda", "sparsegpt"]

_BLOCK = 128
_DAMPING = 0.01  # Of the Gram matrix's mean diagonal.


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `group` consecutive weights of a row stay, as 2 of 4 for sparse kernels."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read `2:4`."""
        parts = re.fullmatch(r"(\d+):(\d+)", text)
        kept, group = (int(part) for part in parts.groups()) if parts else (0, 0)
        if not 0 < kept < group <= _BLOCK:
            raise BellmError(
                f"pattern={text!r} is not KEPT:GROUP, as in 2:4, which keeps 2 of every 4 weights; a group has at most "
                f"{_BLOCK}."
            )
        return cls(kept, group)

    @property
    def sparsity(self) -> float:
        """Share of weights that goes."""
        return 1 - self.kept / self.group

    def check(self, name: str, num_inputs: int) -> None:
        """Raise a BellmError where the rows of a matrix cannot be divided into groups."""
        if num_inputs % self.group:
            raise BellmError(f"{name} has rows of {num_inputs} weights, which are no groups of {self.group}.")


@dataclass
class InputStatistics:
    """What the inputs of a matrix were, summed over tokens."""

    num_tokens: int = 0
    squares_I: Tensor | float = 0.0
    """Sum of squares of each input."""
    gram_II: Tensor | float = 0.0
    """Sum of products of inputs; not taken where it is not needed."""

    def add(self, rows_NI: Tensor, *, with_gram: bool) -> None:
        """Take in the inputs of some tokens."""
        rows_NI = rows_NI.float()
        self.num_tokens += len(rows_NI)
        self.squares_I = self.squares_I + rows_NI.square().sum(0)
        if with_gram:
            self.gram_II = self.gram_II + rows_NI.T @ rows_NI


def wanda_scores(weight_OI: Tensor, inputs: InputStatistics) -> Tensor:
    """|W| times the norm of each input over the tokens (Wanda, arXiv 2306.11695)."""
    return weight_OI.float().abs() * torch.as_tensor(inputs.squares_I).sqrt()


def prune_matrix(
    weight_OI: Tensor, count: int, method: PruneMethod, inputs: InputStatistics, pattern: Pattern | None = None
) -> Tensor:
    """A copy of a matrix without `count` of its weights, or with those of a pattern alone.

    Args:
        weight_OI: The matrix.
        count: How many weights are zero afterwards, at least; a pattern decides it itself.
        method: `magnitude` removes the smallest of the matrix. `wanda` removes from each row those with the smallest
            score. `sparsegpt` (arXiv 2301.00774) goes from column to column, removes what the squared error of the
            output misses least, and corrects the columns behind it for that.
        inputs: Of calibration texts; `sparsegpt` needs their Gram matrix.
        pattern: Weights that stay in each group of a row.
    """
    if method == "sparsegpt":
        return _sparsegpt(weight_OI, count, torch.as_tensor(inputs.gram_II), pattern)
    scores_OI = weight_OI.float().abs() if method == "magnitude" else wanda_scores(weight_OI, inputs)
    if pattern:
        removed_OI = _outside_pattern(scores_OI, pattern)
    else:
        removed_OI = _smallest(scores_OI, count) if method == "magnitude" else _smallest_of_rows(scores_OI, count)
    return weight_OI.masked_fill(removed_OI, 0)


def relative_error(weight_OI: Tensor, pruned_OI: Tensor, gram_II: Tensor) -> float:
    """Squared error of the outputs over their squares, on the tokens of a Gram matrix."""

    def squares(matrix_OI: Tensor) -> Tensor:
        return ((matrix_OI @ gram_II) * matrix_OI).sum()

    return float(squares(weight_OI - pruned_OI) / squares(weight_OI))


def _smallest(scores_OI: Tensor, count: int) -> Tensor:
    removed = torch.zeros(scores_OI.numel(), dtype=torch.bool, device=scores_OI.device)
    removed[scores_OI.flatten().topk(count, largest=False, sorted=False).indices] = True
    return removed.view_as(scores_OI)


def _smallest_of_rows(scores_OI: Tensor, count: int) -> Tensor:
    """The same number of each row, but for one more in the first rows where it does not come out even."""
    rows = torch.arange(len(scores_OI), device=scores_OI.device)
    counts_O = count // len(scores_OI) + (rows < count % len(scores_OI)).long()
    ranks_OI = scores_OI.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks_OI < counts_O[:, None]


def _outside_pattern(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    groups = scores_OI.reshape(len(scores_OI), -1, pattern.group)
    ranks = groups.argsort(dim=2, stable=True).argsort(dim=2)
    return (ranks < pattern.group - pattern.kept).flatten(1)


def _sparsegpt(weight_OI: Tensor, count: int, gram_II: Tensor, pattern: Pattern | None) -> Tensor:
    work_OI = weight_OI.float().clone()
    damped_II = gram_II.clone()
    damped_II.diagonal().add_(_DAMPING * gram_II.diagonal().mean())
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(damped_II))
    # Row i holds, from i on, how the columns behind i make up for what column i loses.
    factor_II = torch.linalg.cholesky(inverse_II, upper=True)
    width = _BLOCK // pattern.group * pattern.group if pattern else _BLOCK
    starts = range(0, work_OI.shape[1], width)
    widths = torch.tensor([min(width, work_OI.shape[1] - start) for start in starts], dtype=torch.float64)
    counts = apportion((widths * count / work_OI.shape[1]).numpy(), count)
    for start, block_count in zip(starts, counts.tolist(), strict=True):
        end = min(start + width, work_OI.shape[1])
        block, factor = work_OI[:, start:end], factor_II[start:end, start:end]
        scales, errors = factor.diagonal(), torch.zeros_like(block)
        gone = torch.zeros_like(block, dtype=torch.bool) if pattern else _smallest((block / scales) ** 2, block_count)
        for column in range(end - start):
            if pattern and column % pattern.group == 0:  # By weights that are corrected already.
                group = slice(column, column + pattern.group)
                gone[:, group] = _outside_pattern((block[:, group] / scales[group]) ** 2, pattern)
            kept_O = block[:, column].masked_fill(gone[:, column], 0)
            errors[:, column] = (block[:, column] - kept_O) / scales[column]
            block[:, column:] -= errors[:, column, None] * factor[column, column:]
            block[:, column] = kept_O
        work_OI[:, end:] -= errors @ factor_II[start:end, end:]
    return work_OI.to(weight_OI.dtype)
