"""Attention masks that look both ways, made from causal ones.

A causal mask tells everything that a bidirectional one needs. Its diagonal says which tokens are real, because
every real token sees itself. Its lower triangle says which pairs may meet: all of them, those within a sliding
window, those in one chunk, those in one packed document. So nothing but the mask itself has to travel.

Shapes: B batch, H heads or 1, L tokens, (query, key) last.
"""

import torch
from torch import Tensor, finfo


def bidirectional_mask(mask_BHLL: Tensor, *, keep_window: bool = True) -> Tensor:
    """Let two tokens see each other wherever the causal mask lets one of them see the other; never padding.

    A window of W causal tokens becomes W-1 tokens on either side. A row that would see nothing (padding) sees every
    real token, so that no softmax is empty.

    Args:
        mask_BHLL: Square causal mask, boolean (True may be seen) or additive (very negative may not be seen).
        keep_window: False lets every pair of real tokens meet, whatever the window, chunk or document.

    Returns:
        A mask of the same kind, shape and dtype.
    """
    additive = mask_BHLL.is_floating_point()
    allowed_BHLL = mask_BHLL > finfo(mask_BHLL.dtype).min / 2 if additive else mask_BHLL.bool()
    real_BHL = allowed_BHLL.diagonal(dim1=-2, dim2=-1)
    open_BHLL = real_BHL[..., None, :].expand_as(allowed_BHLL)
    if keep_window:
        near_BHLL = open_BHLL & (allowed_BHLL | allowed_BHLL.mT)
        open_BHLL = torch.where(near_BHLL.any(-1, keepdim=True), near_BHLL, open_BHLL)
    if not additive:
        return open_BHLL.to(mask_BHLL.dtype)
    # A bias that depends on the key alone (ALiBi in falcon) rides in the mask: the diagonal carries it along.
    bias_BHLL = mask_BHLL.diagonal(dim1=-2, dim2=-1)[..., None, :].expand_as(mask_BHLL)
    return bias_BHLL.masked_fill(~open_BHLL, finfo(mask_BHLL.dtype).min)
