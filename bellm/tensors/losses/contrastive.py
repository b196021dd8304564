"""Positives nearer than everything else in the batch.

A temperature divides cosines: 0.05 here is the 20 by which other libraries multiply.

Shapes: B anchors, P positives, N hard negatives of all rows, C = P + N candidates, T = 2B texts, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bellm.tensors.losses.cosines import cosine_matrix
from bellm.tensors.losses.validation import check_rows, owned, owners


def info_nce(
    anchors_BD: Tensor,
    positives_PD: Tensor,
    negatives_ND: Tensor | None = None,
    *,
    owners_P: Tensor | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    ignored_BC: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of picking an anchor's positive among all candidates of the batch.

    mean over anchors i of -log(e^(cos(i, i+)/t) / sum over candidates c of e^(cos(i, c)/t)): supervised SimCSE (arXiv
    2104.08821, equation 5) and BeLLM (arXiv 2311.05296). An anchor with several positives has the mean of their losses,
    each without the others in its denominator. One anchor with nothing to compare has loss 0.

    >>> anchors, positives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> info_nce(anchors, positives, torch.tensor([[0.0, 5.0]]))  # As near as the positive: log 2.
    tensor(0.6931)

    Args:
        anchors_BD: The texts that search.
        positives_PD: What they should find.
        negatives_ND: What none of them should find, whichever row it came with.
        owners_P: The anchor that each positive belongs to; None where positive i is anchor i's.
        temperature: Divides the cosines.
        symmetric: Also pick each positive's anchor among all anchors, and take the mean of both directions.
        ignored_BC: True where a candidate is no negative of the anchor (`masking`), in either direction. An anchor's
            own positives stay, whatever it says.

    Raises:
        BellmError: No anchors, or an anchor or a positive without the other.
    """
    owners_P = owners(owners_P, anchors_BD, positives_PD)
    positives = len(positives_PD)
    candidates_CD = positives_PD if negatives_ND is None else torch.cat([positives_PD, negatives_ND])
    scores_BC = cosine_matrix(anchors_BD, candidates_CD) / temperature
    left_out_BC = owned(owners_P, *scores_BC.shape)
    if ignored_BC is not None:
        left_out_BC = left_out_BC | ignored_BC
    others_BC = scores_BC.masked_fill(left_out_BC, -torch.inf)
    target_P = scores_BC[owners_P, torch.arange(positives, device=owners_P.device)]
    loss_P = _against(target_P, others_BC.logsumexp(1)[owners_P])
    if symmetric:
        loss_P = (loss_P + _against(target_P, others_BC[:, :positives].logsumexp(0))) / 2
    return (loss_P / owners_P.bincount()[owners_P]).sum() / len(anchors_BD)


def in_batch_graded(
    left_BD: Tensor, right_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05, threshold: float = 0.5
) -> Tensor:
    """In-batch negatives for rated pairs: AnglE's `ibn` (arXiv 2309.12871, section 3.3).

    Each of the 2B texts picks its partner among the 2B - 1 others where their label is `threshold` or more. Other pairs
    add no loss, but are negatives of the rest. The mean is over all 2B texts.

    With labels 0 and 1 this is AnglE's released code. That code cuts labels to whole numbers and multiplies row numbers
    by them, so that graded labels below 1 count as negatives and labels above 1 can make strangers partners.

    >>> texts = torch.eye(4)
    >>> in_batch_graded(texts[:2], texts[2:], torch.tensor([0.7, 0.0]))  # Two of four texts pick one of three: log 3.
    tensor(0.5493)

    Args:
        left_BD: One text of each pair.
        right_BD: The other.
        labels_B: How alike the two are.
        temperature: Divides the cosines.
        threshold: The least label of a positive pair; 0.5 is meant for labels from 0 to 1.

    Raises:
        BellmError: No pairs, or not as many left, right and labels.
    """
    check_rows(left=left_BD, right=right_BD, labels=labels_B)
    texts_TD = torch.cat([left_BD, right_BD])
    scores_TT = cosine_matrix(texts_TD, texts_TD) / temperature
    itself_TT = torch.eye(len(texts_TD), dtype=torch.bool, device=texts_TD.device)
    partners_T = torch.arange(len(texts_TD), device=texts_TD.device).roll(len(left_BD))
    loss_T = functional.cross_entropy(scores_TT.masked_fill(itself_TT, -torch.inf), partners_T, reduction="none")
    return (loss_T * (labels_B >= threshold).repeat(2)).mean()


def _against(target_P: Tensor, others_P: Tensor) -> Tensor:
    """-log of the target's share, with the others given as the logarithm of their sum."""
    return torch.logaddexp(others_P - target_P, torch.zeros_like(target_P))
