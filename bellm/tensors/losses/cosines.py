"""Cosines with gradients, in float32 or better whatever comes in.

Shapes: N and M texts, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it came in half precision, else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def normalize(vectors_ND: Tensor) -> Tensor:
    """Vectors at length 1; zeros stay zeros."""
    return functional.normalize(upcast(vectors_ND), dim=-1)


def cosine_matrix(left_ND: Tensor, right_MD: Tensor) -> Tensor:
    """Cosine of every left row with every right row, shape (N, M).

    >>> cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    # Autocast would bring the product, and only the product, back to half precision.
    with torch.autocast(left_ND.device.type, enabled=False):
        return normalize(left_ND) @ normalize(right_MD).T


def row_cosines(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Cosine of each left row with the right row of the same number, shape (N,)."""
    return (normalize(left_ND) * normalize(right_ND)).sum(-1)
