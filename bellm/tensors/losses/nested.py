"""Matryoshka and 2D-Matryoshka wrappers: apply a loss to truncated embeddings and intermediate layers.

They wrap any loss. Its floating-point positional arguments of two or more dimensions (three for stacks of layers) are
vectors; everything else, such as labels, temperatures or None, is passed on unchanged.

Shapes: J layers, N texts, D width, K leading dimensions, R axes (the smaller of N and D).
"""

from collections.abc import Callable, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError
from bellm.tensors.losses.loss_inputs import mean_kl, normalize

Loss = Callable[..., Tensor]


def over_dimensions(loss: Loss, dims: Sequence[int]) -> Loss:
    """The loss averaged over the first `dims` dimensions of its vectors: Matryoshka (arXiv 2205.13147, equation 1).

    The paper sums where this takes the mean, so that the learning rate keeps its meaning.

    >>> from bellm.tensors.losses.contrastive import info_nce
    >>> nested = over_dimensions(info_nce, dims=[1, 2])
    >>> left, right = torch.tensor([[1.0, 0.0], [1.0, 9.0]]), torch.tensor([[1.0, 0.0], [1.0, 9.0]])
    >>> nested(left, right, temperature=1.0)  # The mean of log 2 and log(1 + e^-0.89).
    tensor(0.5187)
    """
    if not dims or min(dims) < 1:
        raise BellmError(f"dims={list(dims)}: give one or more dims, each 1 or more.")

    def nested(*vectors: Any, **others: Any) -> Tensor:
        return torch.stack([loss(*_truncate(vectors, dim), **others) for dim in dims]).mean()

    return nested


def espresso(loss: Loss, dims: int, *, temperature: float = 1.0) -> Loss:
    """The loss on all layers: Espresso embeddings, once 2DMSE (arXiv 2402.14776).

    The wrapped loss takes stacks of shape (J, N, D), lowest layer first and the encoder's own vectors last, and gives

    L(last) + E(last) + 1 / (J - 1) * sum over layers i = 0 ... J - 2 of E(layer i) / (1 + ln(1 + i)),

    where E is L on the first `dims` dimensions plus their `compression` from that layer's full vectors. Lower layers
    weigh more, as in the authors' code, which stacks the token embeddings as layer 0.

    >>> from bellm.tensors.losses.contrastive import info_nce
    >>> stack = torch.eye(2).expand(3, 2, 2)
    >>> espresso(info_nce, dims=2)(stack, stack) < 1e-6
    tensor(True)
    """

    def expressed(vectors: Sequence[Any], others: dict[str, Any]) -> Tensor:
        full_ND = torch.cat([part for part in vectors if _is_vectors(part, 2)])
        return loss(*_truncate(vectors, dims), **others) + compression(full_ND, dims, temperature=temperature)

    def nested(*stacks: Any, **others: Any) -> Tensor:
        layers = {len(part) for part in stacks if _is_vectors(part, 3)}
        if len(layers) != 1:
            raise BellmError(f"Stacks of {sorted(layers)} layers. Espresso needs (layers, texts, width), layers alike.")
        *lower, last = ([part[at] if _is_vectors(part, 3) else part for part in stacks] for at in range(layers.pop()))
        total = loss(*last, **others) + expressed(last, others)
        for at, vectors in enumerate(lower):
            total = total + expressed(vectors, others) / (1 + log(1 + at)) / len(lower)
        return total

    return nested


def compression(full_ND: Tensor, dims: int, *, temperature: float = 1.0) -> Tensor:
    """Distance of the first dimensions from the principal components of the full vectors.

    Mean squared difference + temperature * KL(components || first dimensions), the latter over softmaxes of each text's
    coordinates: Espresso's learning to compress (arXiv 2402.14776). All at unit length; no gradient flows into the
    components.

    Components are those of an exact PCA about the origin, as cosines are, signed to correlate with the dimension that
    they are compared with. The authors' code takes a random low-rank decomposition of softmax(M^T M / sqrt(D)), whose
    axes change sign from batch to batch and whose softmax depends on the vectors' lengths.

    >>> compression(torch.tensor([[4.0, 3.0, 0.0], [-8.0, 6.0, 0.0]]), dims=2) < 1e-6  # No third dimension to lose.
    tensor(True)
    """
    (short_NK,) = _truncate([full_ND], dims)
    short_NK = normalize(short_NK)
    target_NK = normalize(_components(full_ND.detach(), dims))
    divergence = mean_kl(target_NK / temperature, short_NK / temperature)
    return functional.mse_loss(short_NK, target_NK) + temperature * divergence


def _components(full_ND: Tensor, dims: int) -> Tensor:
    """Coordinates on the `dims` longest principal axes."""
    unit_ND = normalize(full_ND)
    left_NR, lengths_R, _ = torch.linalg.svd(unit_ND, full_matrices=False)
    coordinates_NK = (left_NR * lengths_R)[:, :dims]
    # Fewer texts than dims have fewer axes: the missing coordinates are zeros.
    coordinates_NK = functional.pad(coordinates_NK, (0, dims - coordinates_NK.shape[1]))
    flipped_K = (coordinates_NK * unit_ND[:, :dims]).sum(0) < 0
    return torch.where(flipped_K, -coordinates_NK, coordinates_NK)


def _truncate(vectors: Sequence[Any], dims: int) -> list[Any]:
    widths = [part.shape[-1] for part in vectors if _is_vectors(part, 2)]
    if not widths or min(widths) < dims:
        raise BellmError(f"Vectors of width {widths} have no first {dims} dimensions. Ask for fewer.")
    return [part[..., :dims] if _is_vectors(part, 2) else part for part in vectors]


def _is_vectors(part: Any, fewest: int) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.dim() >= fewest
