"""What all losses of vectors have in common: gradients, length, order of rows and precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bellm.tensors.losses.contrastive import in_batch_graded, info_nce, similarity_kl
from bellm.tensors.losses.nested import compression, espresso, over_dimensions
from bellm.tensors.losses.ranking import angle, cosent

Columns = tuple[Tensor, Tensor, Tensor]
COLUMNS: Columns = tuple(torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
LABELS = torch.tensor([0.0, 0.9, 0.4, 1.0, 0.4], dtype=torch.float64)
IGNORED = torch.eye(5, dtype=torch.bool).roll(2, dims=1)

# Each loss of three columns of vectors and an order of their rows.
LOSSES: dict[str, Callable[[Columns, Tensor], Tensor]] = {
    "info_nce": lambda columns, _: info_nce(*columns, temperature=0.3),
    "symmetric": lambda columns, _: info_nce(*columns, temperature=0.3, symmetric=True),
    "several": lambda columns, order: info_nce(
        columns[0],
        torch.cat([columns[1], columns[2][order.argsort()[:2]]]),
        owners_P=torch.cat([torch.arange(5), order.argsort()[:2]]),
        temperature=0.3,
        symmetric=True,
    ),
    "ignored": lambda columns, order: info_nce(
        *columns[:2], temperature=0.3, ignored_BC=IGNORED[order][:, order], symmetric=True
    ),
    "in_batch_graded": lambda columns, order: in_batch_graded(*columns[:2], LABELS[order], temperature=0.3),
    "cosent": lambda columns, order: cosent(*columns[:2], LABELS[order], temperature=0.3),
    "angle": lambda columns, order: angle(*columns[:2], LABELS[order], temperature=0.3),
    "published": lambda columns, order: angle(*columns[:2], LABELS[order], temperature=0.3, form="published"),
    "over_dimensions": lambda columns, _: over_dimensions(info_nce, [2, 6])(*columns, temperature=0.3),
    "similarity_kl": lambda columns, _: similarity_kl(*columns[:2], temperature=0.3),
    "compression": lambda columns, _: compression(torch.cat(columns), 3),
    "espresso": lambda columns, _: espresso(info_nce, 3)(*(part.expand(2, 5, 6) for part in columns)),
}
SMOOTH = [name for name in LOSSES if name not in ("similarity_kl", "compression", "espresso")]
ORDER = torch.arange(5)

each_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.mark.parametrize("name", SMOOTH)  # The others hold a column back: their own tests have their gradients.
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    columns = tuple(part.clone().requires_grad_() for part in COLUMNS)
    assert torch.autograd.gradcheck(lambda *parts: LOSSES[name](parts, ORDER), columns)


def test_gradients_of_the_student_are_those_of_finite_differences() -> None:
    student = COLUMNS[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda part: similarity_kl(part, COLUMNS[1]), (student,))


@each_loss
def test_length_of_vectors_is_no_matter(name: str) -> None:
    lengths = 10 ** torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    scaled = (COLUMNS[0] * lengths, COLUMNS[1] * lengths.flip(0), COLUMNS[2] * 7)
    torch.testing.assert_close(LOSSES[name](scaled, ORDER), LOSSES[name](COLUMNS, ORDER))


@each_loss
def test_order_of_rows_is_no_matter_and_gradients_go_with_them(name: str) -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    columns = tuple(part.clone().requires_grad_() for part in COLUMNS)
    moved = tuple(part[order].requires_grad_() for part in COLUMNS)
    here, there = LOSSES[name](columns, ORDER), LOSSES[name](moved, order)
    torch.testing.assert_close(there, here)
    here.backward()
    there.backward()
    assert columns[0].grad is not None
    assert columns[0].grad.norm() > 1e-3
    for part, other in zip(columns, moved, strict=True):
        torch.testing.assert_close(other.grad, None if part.grad is None else part.grad[order])


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(name: str, dtype: torch.dtype) -> None:
    halves = tuple(part.to(dtype).requires_grad_() for part in COLUMNS)
    loss = LOSSES[name](halves, ORDER)
    assert loss.dtype == torch.float32
    assert loss == LOSSES[name](tuple(part.float() for part in halves), ORDER)
    loss.backward()
    assert halves[0].grad is not None
    assert halves[0].grad.dtype == dtype


@each_loss
def test_autocast_changes_nothing(name: str) -> None:
    singles = tuple(part.float() for part in COLUMNS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES[name](singles, ORDER)
    assert found == LOSSES[name](singles, ORDER)
