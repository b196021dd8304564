"""Candidates that are no negatives: what `info_nce` should leave out of an anchor's denominator.

Masks are True where a candidate is to be left out, never on an anchor's own positives, and join with `|`.

Shapes: B anchors, P positives, N hard negatives, C = P + N candidates, D width of the guide's vectors.
"""

import torch
from torch import Tensor

from bellm.tensors.losses.cosines import cosine_matrix
from bellm.tensors.losses.validation import check_rows, owned, owners


def false_negatives(
    guide_anchors_BD: Tensor,
    guide_positives_PD: Tensor,
    guide_negatives_ND: Tensor | None = None,
    *,
    owners_P: Tensor | None = None,
    margin: float = 0.0,
) -> Tensor:
    """Candidates that a guide finds at least as near to the anchor as the anchor's own positive, shape (B, C).

    GISTEmbed (arXiv 2402.16829) with another model's vectors; with the model's own it is self-similarity. Of several
    positives the least near decides: what is nearer than a text known to be right may be right too. Equal texts are as
    near but for rounding, which a small margin or `same_texts` covers.

    >>> anchors, positives = torch.eye(2), torch.tensor([[3.0, 4.0], [4.0, 3.0]])  # Each nearer to the other's.
    >>> false_negatives(anchors, positives)
    tensor([[False,  True],
            [ True, False]])

    Args:
        guide_anchors_BD: The guide's vectors of the anchors; no gradient flows.
        guide_positives_PD: Of the positives.
        guide_negatives_ND: Of the hard negatives.
        owners_P: The anchor that each positive belongs to; None where positive i is anchor i's.
        margin: Cosine by which a candidate may be further than the positive and still be left out.

    Raises:
        BellmError: No anchors, or an anchor or a positive without the other.
    """
    owners_P = owners(owners_P, guide_anchors_BD, guide_positives_PD)
    guides = [guide_positives_PD] if guide_negatives_ND is None else [guide_positives_PD, guide_negatives_ND]
    cosines_BC = cosine_matrix(guide_anchors_BD, torch.cat(guides))
    owned_BC = owned(owners_P, *cosines_BC.shape)
    positive_B1 = cosines_BC.masked_fill(~owned_BC, torch.inf).amin(1, keepdim=True)
    return (cosines_BC >= positive_B1 - margin) & ~owned_BC


def same_texts(
    anchors_B: Tensor, positives_P: Tensor, negatives_N: Tensor | None = None, *, owners_P: Tensor | None = None
) -> Tensor:
    """Candidates whose text is the anchor's, or that of one of its positives, shape (B, C).

    >>> same_texts(torch.tensor([1, 2]), torch.tensor([7, 7]), torch.tensor([2]))  # A shared positive; 2 is an anchor.
    tensor([[False,  True, False],
            [ True, False,  True]])

    Args:
        anchors_B: A whole number for each anchor's text, equal where texts are equal.
        positives_P: Of the positives.
        negatives_N: Of the hard negatives.
        owners_P: The anchor that each positive belongs to; None where positive i is anchor i's.

    Raises:
        BellmError: No anchors, or an anchor or a positive without the other.
    """
    check_rows(anchors=anchors_B)
    owners_P = owners(owners_P, anchors_B, positives_P)
    candidates_C = positives_P if negatives_N is None else torch.cat([positives_P, negatives_N])
    same_BC = anchors_B[:, None] == candidates_C
    same_PC = positives_P[:, None] == candidates_C
    counts_BC = same_BC.long().index_add(0, owners_P, same_PC.long())
    return (counts_BC > 0) & ~owned(owners_P, *counts_BC.shape)
