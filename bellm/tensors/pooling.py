"""Pool token states into one vector for each text.

Shapes: B batch, L tokens, D width. A mask is True where a token counts; rows may be padded on either side.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bellm.types import PoolingName


def last_pooling(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """State of the last token that counts."""
    positions_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return _at(hidden_BLD, (positions_L * mask_BL).argmax(1))


def first_pooling(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """State of the first token that counts."""
    return _at(hidden_BLD, mask_BL.long().argmax(1))


def mean_pooling(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean of the tokens that count; zeros where none does."""
    return _average(hidden_BLD, mask_BL.float())


def weighted_mean_pooling(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean weighted 1, 2, 3, ... along the tokens that count (SGPT, arXiv 2202.08904)."""
    return _average(hidden_BLD, mask_BL.cumsum(1) * mask_BL.float())


def max_pooling(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Largest value of each feature over the tokens that count; zeros where none does."""
    largest_BD = hidden_BLD.float().masked_fill(~mask_BL[..., None], -torch.inf).amax(1)
    return largest_BD.masked_fill(~mask_BL.any(1)[:, None], 0.0)


POOLERS: dict[PoolingName, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last_pooling,
    "mean": mean_pooling,
    "mean-text": mean_pooling,
    "weighted-mean": weighted_mean_pooling,
    "first": first_pooling,
    "max": max_pooling,
}
"""Pooler of each name; `mean-text` is `mean` over a mask that leaves the prompt's tokens out."""


def _at(hidden_BLD: Tensor, positions_B: Tensor) -> Tensor:
    # A `len` would be one number for a traced graph, whatever the batch.
    return hidden_BLD[torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device), positions_B].float()


def _average(hidden_BLD: Tensor, weight_BL: Tensor) -> Tensor:
    total_BD = torch.einsum("bld,bl->bd", hidden_BLD.float(), weight_BL)
    return total_BD / weight_BL.sum(1, keepdim=True).clamp(min=1)
