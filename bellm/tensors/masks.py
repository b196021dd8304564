"""Bidirectional attention masks from causal ones.

A causal mask holds all that a bidirectional one needs. Its diagonal says which tokens are real, because every real
token sees itself; its lower triangle says which pairs may attend: all, or those in one window, chunk or document.

Shapes: B batch, H heads or 1, L tokens, (query, key) last.
"""

from torch import Tensor, finfo


def bidirectional_mask(mask_BHLL: Tensor, *, keep_window: bool = True) -> Tensor:
    """Make a causal mask symmetric, except for padding, which stays masked.

    A window of W causal tokens becomes W-1 tokens on either side. A row that would see nothing (padding) sees every
    real token, so that no softmax is empty.

    Masks are boolean (True may be seen) or additive (very negative may not); the result is of the same kind, shape and
    dtype. Without `keep_window` every pair of real tokens meets, whatever the window, chunk or document.
    """
    additive = mask_BHLL.is_floating_point()
    allowed_BHLL = mask_BHLL > finfo(mask_BHLL.dtype).min / 2 if additive else mask_BHLL.bool()
    real_BHL = allowed_BHLL.diagonal(dim1=-2, dim2=-1)
    open_BHLL = real_BHL[..., None, :].expand_as(allowed_BHLL)
    if keep_window:
        near_BHLL = open_BHLL & (allowed_BHLL | allowed_BHLL.mT)
        open_BHLL = near_BHLL | (
            open_BHLL & ~near_BHLL.any(-1, keepdim=True)
        )  # ONNX Runtime has no `where` of booleans.
    if not additive:
        return open_BHLL.to(mask_BHLL.dtype)
    # Keep a bias that depends on the key alone (ALiBi in falcon), which the diagonal has.
    bias_BHLL = mask_BHLL.diagonal(dim1=-2, dim2=-1)[..., None, :].expand_as(mask_BHLL)
    return bias_BHLL.masked_fill(~open_BHLL, finfo(mask_BHLL.dtype).min)
