"""Cosines and divergences in float32, and input checks, that the losses share.

Shapes: N and M texts, C candidates of each, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision, else unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def normalize(vectors_ND: Tensor) -> Tensor:
    """Vectors of unit length, in float32 or better; zero vectors stay zero."""
    return functional.normalize(upcast(vectors_ND), dim=-1)


def cosine_matrix(left_ND: Tensor, right_MD: Tensor) -> Tensor:
    """Cosine of every left row with every right row, shape (N, M).

    >>> cosine_matrix(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    # Autocast would compute the product, and only the product, in half precision.
    with torch.autocast(left_ND.device.type, enabled=False):
        return normalize(left_ND) @ normalize(right_MD).T


def row_cosines(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Cosine of each left row with the right row at the same index, shape (N,)."""
    return (normalize(left_ND) * normalize(right_ND)).sum(-1)


def mean_kl(target_NC: Tensor, actual_NC: Tensor) -> Tensor:
    """KL(target || actual) of the softmaxes of two rows of scores, averaged over rows."""
    target_NC, actual_NC = upcast(target_NC).log_softmax(1), upcast(actual_NC).log_softmax(1)
    return functional.kl_div(actual_NC, target_NC, reduction="batchmean", log_target=True)


def check_rows(fewest: int = 1, /, **tensors: Tensor) -> None:
    """Raise a BellmError unless all tensors have equally many rows, `fewest` or more."""
    counts = [len(tensor) for tensor in tensors.values()]
    if len(set(counts)) > 1 or counts[0] < fewest:
        came = ", ".join(f"{count} {name}" for name, count in zip(tensors, counts, strict=True))
        raise BellmError(f"Got {came}. This loss needs as many of each, and {fewest} or more.")
