"""Nested losses against sums written out and an eigendecomposition."""

from math import log

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bellm.errors import BellmError
from bellm.tensors.losses.contrastive import info_nce
from bellm.tensors.losses.loss_inputs import cosine_matrix
from bellm.tensors.losses.nested import compression, espresso, over_dimensions
from bellm.tensors.losses.ranking import cosent

STACKS = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # Four layers.
ANCHORS, POSITIVES, NEGATIVES = STACKS[:, -1]


def components(full: Tensor, dims: int) -> Tensor:
    """By the eigenvectors of the second moments, the longest axis first, each the way of its dimension."""
    unit = normalize(full)
    axes = torch.linalg.eigh(unit.T @ unit).eigenvectors.flip(1)[:, :dims]
    found = unit @ axes
    return found * (found * unit[:, :dims]).sum(0).sign()


def compression_of(full: Tensor, dims: int, temperature: float, target: Tensor | None = None) -> Tensor:
    slim = normalize(full[:, :dims])
    target = normalize(components(full, dims)) if target is None else target
    shares, wanted = (slim / temperature).softmax(1), (target / temperature).softmax(1)
    divergence = (wanted * (wanted / shares).log()).sum(1).mean()
    return (slim - target).square().mean() + temperature * divergence


def test_over_dimensions_is_the_mean_over_prefixes() -> None:
    parts = [info_nce(*(part[:, :dim] for part in (ANCHORS, POSITIVES, NEGATIVES))) for dim in (2, 5, 8)]
    torch.testing.assert_close(over_dimensions(info_nce, [2, 5, 8])(ANCHORS, POSITIVES, NEGATIVES), sum(parts) / 3)


def test_labels_settings_and_nothing_are_passed_on() -> None:
    labels = torch.tensor([0.1, 0.9, 0.4, 0.4, 1.0, 0.0])
    found = over_dimensions(cosent, [3])(ANCHORS, POSITIVES, labels, temperature=0.5)
    assert found == cosent(ANCHORS[:, :3], POSITIVES[:, :3], labels, temperature=0.5)
    pairs = torch.eye(6, dtype=torch.bool)  # Of two dimensions, and no vectors.
    found = over_dimensions(lambda left, right, mask: cosine_matrix(left, right)[mask].sum(), [3])(
        ANCHORS, POSITIVES, pairs
    )
    assert found == cosine_matrix(ANCHORS[:, :3], POSITIVES[:, :3]).diagonal().sum()
    ignored = torch.eye(6, dtype=torch.bool).roll(1, 1)
    found = over_dimensions(info_nce, [3])(ANCHORS, POSITIVES, None, ignored_BC=ignored)
    assert found == info_nce(ANCHORS[:, :3], POSITIVES[:, :3], ignored_BC=ignored)


def test_dimensions_behind_the_last_prefix_learn_nothing() -> None:
    anchors = ANCHORS.clone().requires_grad_()
    over_dimensions(info_nce, [2, 5])(anchors, POSITIVES).backward()
    assert anchors.grad is not None
    assert anchors.grad[:, :5].all()
    assert not anchors.grad[:, 5:].any()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("dims", [3, 8])
def test_compression_equals_an_eigendecomposition(dims: int, temperature: float) -> None:
    full = STACKS.flatten(0, 2)
    wanted = compression_of(full, dims, temperature)
    torch.testing.assert_close(compression(full, dims, temperature=temperature), wanted)
    assert wanted > 0.01


def test_components_that_fewer_texts_do_not_have_are_zeros() -> None:
    unit = normalize(ANCHORS[:2])
    axes = torch.linalg.svd(unit).Vh[:2]
    two = unit @ axes.T
    target = normalize(torch.cat([two * (two * unit[:, :2]).sum(0).sign(), torch.zeros(2, 3)], dim=1))
    torch.testing.assert_close(compression(ANCHORS[:2], 5), compression_of(ANCHORS[:2], 5, 1.0, target))


def test_only_the_first_dimensions_learn_to_compress() -> None:
    full, target = ANCHORS.clone().requires_grad_(), normalize(components(ANCHORS, 3))
    (found,) = torch.autograd.grad(compression(full, 3), full)
    (wanted,) = torch.autograd.grad(compression_of(full, 3, 1.0, target), full)
    torch.testing.assert_close(found, wanted)
    assert not found[:, 3:].any()


def test_compression_falls_on_descent() -> None:
    full = STACKS[0, 0].clone().requires_grad_()
    values = []
    for _ in range(20):
        values.append(compression(full, 3))
        (gradient,) = torch.autograd.grad(values[-1], full)
        full = (full - 2.0 * gradient).detach().requires_grad_()
    assert values[-1] < 0.5 * values[0]


def test_espresso_is_its_formula() -> None:
    def expressed(at: int) -> Tensor:
        vectors = [stack[at] for stack in STACKS]
        return info_nce(*(part[:, :3] for part in vectors)) + compression_of(torch.cat(vectors), 3, 0.7)

    wanted = info_nce(ANCHORS, POSITIVES, NEGATIVES) + expressed(3)
    wanted = wanted + (expressed(0) + expressed(1) / (1 + log(2)) + expressed(2) / (1 + log(3))) / 3
    torch.testing.assert_close(espresso(info_nce, 3, temperature=0.7)(*STACKS), wanted)


def test_espresso_passes_on_labels_and_reaches_every_layer() -> None:
    labels = torch.tensor([0.1, 0.9, 0.4, 0.4, 1.0, 0.0])
    left = STACKS[0].clone().requires_grad_()
    espresso(cosent, 3)(left, STACKS[1], labels, temperature=0.5).backward()
    assert left.grad is not None
    assert left.grad[:, :, :3].all()
    assert left.grad[-1].all()  # The last layer's full vectors learn the loss itself.
    assert not left.grad[:-1, :, 3:].any()


def test_a_single_layer_has_no_lower_ones() -> None:
    last = STACKS[:, -1:]
    cut = [part[:, :3] for part in (ANCHORS, POSITIVES, NEGATIVES)]
    wanted = info_nce(ANCHORS, POSITIVES, NEGATIVES) + info_nce(*cut)
    wanted = wanted + compression_of(last.flatten(0, 2), 3, 1.0)
    torch.testing.assert_close(espresso(info_nce, 3)(*last), wanted)


@pytest.mark.parametrize("dims", [[], [0, 4]])
def test_dims_without_meaning_are_refused(dims: list[int]) -> None:
    with pytest.raises(BellmError, match="give one or more dims"):
        over_dimensions(info_nce, dims)


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BellmError, match="no first 9 dimensions"):
        over_dimensions(info_nce, [4, 9])(ANCHORS, POSITIVES)
    with pytest.raises(BellmError, match="no first 9 dimensions"):
        compression(ANCHORS, 9)
    for stacks in ([ANCHORS, POSITIVES], [STACKS[0], STACKS[1, :2]]):
        with pytest.raises(BellmError, match="layers alike"):
            espresso(info_nce, 3)(*stacks)
