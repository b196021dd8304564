"""Ranking losses against complex arithmetic, loops and sentence-transformers."""

from math import exp, log
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bellm.errors import BellmError
from bellm.tensors.losses.ranking import AngleForm, angle, cosent

LEFT, RIGHT = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0.2, 5.0, 0.2, 0.9, 0.0, 5.0], dtype=torch.float64)  # With ties.


def written_out(scores: Tensor, labels: Tensor) -> Tensor:
    terms = [
        (scores[i] - scores[j]).exp() for i in range(len(scores)) for j in range(len(scores)) if labels[i] < labels[j]
    ]
    return (1 + sum(terms)).log()


def complex_of(vectors: Tensor) -> Tensor:
    return torch.complex(*vectors.chunk(2, dim=1))


def test_cosent_by_hand() -> None:
    # Cosines 0.6, 0 and 1 with labels 2, 1, 0: three pairs in the wrong or the right order, at temperature 1.
    left, right = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    wanted = log(1 + exp(0 - 0.6) + exp(1 - 0.6) + exp(1 - 0))
    assert float(cosent(left, right, torch.tensor([2, 1, 0]), temperature=1.0)) == pytest.approx(wanted)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_cosent_and_released_angle_equal_sentence_transformers(temperature: float) -> None:
    for ours, theirs in ((cosent, CoSENTLoss), (angle, AnglELoss)):
        wanted = theirs(None, scale=1 / temperature).compute_loss_from_embeddings([LEFT, RIGHT], LABELS)
        torch.testing.assert_close(ours(LEFT, RIGHT, LABELS, temperature=temperature), wanted)


def test_released_angle_is_a_complex_quotient_summed() -> None:
    # The authors' code divides by the right vector's length, and the quotient by the two lengths.
    z, w = complex_of(LEFT), complex_of(RIGHT)
    quotient = z * w.conj() / (z.abs().square().sum(1) * w.abs().square().sum(1)).sqrt()[:, None]
    similarity = (quotient.real + quotient.imag).sum(1).abs()
    torch.testing.assert_close(angle(LEFT, RIGHT, LABELS), written_out(similarity / 0.05, LABELS))


def test_published_angle_is_the_argument_of_the_quotient_and_small_for_high_labels() -> None:
    difference = (complex_of(LEFT) / complex_of(RIGHT)).angle().abs().mean(1)
    wanted = written_out(-difference / 0.05, LABELS)
    torch.testing.assert_close(angle(LEFT, RIGHT, LABELS, form="published"), wanted)


@pytest.mark.parametrize("form", ["released", "published"])
def test_turning_every_coordinate(form: AngleForm) -> None:
    # Right is left turned by these angles in all its coordinates: the published difference is the angle itself.
    turns = torch.tensor([0.3, -1.0, 2.5], dtype=torch.float64)
    turned = complex_of(LEFT[:3]) * torch.polar(torch.ones_like(turns), turns)[:, None]
    right, labels = torch.cat([turned.real, turned.imag], dim=1), torch.tensor([1, 0, 2])
    scores = -turns.abs() if form == "published" else (turns.cos() - turns.sin()).abs()
    found = angle(LEFT[:3], right, labels, temperature=1.0, form=form)
    torch.testing.assert_close(found, written_out(scores, labels))


def test_descent_brings_the_higher_label_nearer() -> None:
    forms: list[dict[str, Any]] = [{"form": "released"}, {"form": "published"}]
    for loss, others in [(cosent, {}), *[(angle, form) for form in forms]]:
        left, labels = LEFT.clone().requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 1])
        value = loss(left, RIGHT, labels, temperature=1.0, **others)
        (gradient,) = torch.autograd.grad(value, left)
        moved = LEFT - 0.05 * gradient
        assert loss(moved, RIGHT, labels, temperature=1.0, **others) < value
    left = LEFT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cosent(left, RIGHT, torch.tensor([0, 0, 0, 1, 1, 1])), left)
    gains = (cosine_similarity(LEFT - 1e-4 * gradient, RIGHT) - cosine_similarity(LEFT, RIGHT)).sign()
    assert gains.tolist() == [-1, -1, -1, 1, 1, 1]


def test_the_two_forms_pull_a_small_angle_apart_and_together() -> None:
    # Both pairs are less than 45 degrees apart, where the released form's s still grows with the angle.
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.9, -0.3], [0.8, -0.4]])
    slopes = []
    for form in ("released", "published"):
        turned = right.clone().requires_grad_()
        angle(left, turned, torch.tensor([0, 1]), form=form, temperature=1.0).backward()  # type: ignore[arg-type]
        assert turned.grad is not None
        slopes.append(float(turned.grad[1, 1].sign()))
    assert slopes == [1, -1]  # Released raises the second pair's angle, published lowers it.


@pytest.mark.parametrize("loss", [cosent, angle])
def test_no_order_is_no_loss(loss: Any) -> None:
    left = LEFT.clone().requires_grad_()
    value = loss(left, RIGHT, torch.ones(6))
    value.backward()
    assert value == 0
    assert left.grad is not None
    assert (left.grad == 0).all()
    assert loss(LEFT[:1], RIGHT[:1], torch.ones(1)) == 0


def test_published_angle_of_empty_coordinates_has_a_gradient() -> None:
    left = torch.zeros(2, 4).requires_grad_()
    angle(left, torch.ones(2, 4), torch.tensor([0, 1]), form="published").backward()
    assert left.grad is not None
    assert left.grad.isfinite().all()


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(BellmError, match="width 7"):
        angle(LEFT[:, :7], RIGHT[:, :7], LABELS)
    with pytest.raises(BellmError, match=r"form='arccos' is not one of released, published"):
        angle(LEFT, RIGHT, LABELS, form="arccos")  # type: ignore[arg-type]
    for loss in (cosent, angle):
        with pytest.raises(BellmError, match="6 left, 5 right"):
            loss(LEFT, RIGHT[:5], LABELS)
        with pytest.raises(BellmError, match="0 left"):
            loss(LEFT[:0], RIGHT[:0], LABELS[:0])
