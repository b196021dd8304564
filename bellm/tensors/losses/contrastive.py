"""Losses of softmaxes over the texts of a batch: InfoNCE, in-batch negatives for rated pairs, a teacher's similarities.

A temperature divides cosines: 0.05 here is the scale of 20 by which other libraries multiply.

Shapes: B anchors, P positives, N hard negatives of all rows, C = P + N candidates, T texts, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError
from bellm.tensors.losses.loss_inputs import check_rows, cosine_matrix, mean_kl

_POSITIVE = 0.5  # The least label of a positive pair.


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
    >>> info_nce(anchors, positives, torch.tensor([[0.0, 5.0]]))  # The negative is as near as the positive: log 2.
    tensor(0.6931)

    Args:
        anchors_BD: Vectors of the queries.
        positives_PD: Vectors of what they should find.
        negatives_ND: Hard negatives; each is a negative of every anchor, whichever row it came with.
        owners_P: The anchor that each positive belongs to; None where positive i is anchor i's.
        temperature: Divides the cosines.
        symmetric: Also pick each positive's anchor among all anchors, and take the mean of both directions.
        ignored_BC: True where a candidate is left out of the anchor's denominator, in either direction, as
            `false_negatives` gives it. An anchor's own positives are never left out.
    """
    owners_P = _resolve_owners(owners_P, anchors_BD, positives_PD)
    num_positives = len(positives_PD)
    candidates_CD = positives_PD if negatives_ND is None else torch.cat([positives_PD, negatives_ND])
    scores_BC = cosine_matrix(anchors_BD, candidates_CD) / temperature
    # Own positives are masked too: each is added to its own denominator alone, by `_cross_entropy`.
    left_out_BC = _owner_mask(owners_P, *scores_BC.shape)
    if ignored_BC is not None:
        left_out_BC = left_out_BC | ignored_BC
    others_BC = scores_BC.masked_fill(left_out_BC, -torch.inf)
    target_P = scores_BC[owners_P, torch.arange(num_positives, device=owners_P.device)]
    loss_P = _cross_entropy(target_P, others_BC.logsumexp(1)[owners_P])
    if symmetric:
        loss_P = (loss_P + _cross_entropy(target_P, others_BC[:, :num_positives].logsumexp(0))) / 2
    return (loss_P / owners_P.bincount()[owners_P]).sum() / len(anchors_BD)


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
    near but for rounding, which a small margin covers. The mask is for `info_nce(ignored_BC=)`, never on an anchor's
    own positives.

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
    """
    owners_P = _resolve_owners(owners_P, guide_anchors_BD, guide_positives_PD)
    guides = [guide_positives_PD] if guide_negatives_ND is None else [guide_positives_PD, guide_negatives_ND]
    cosines_BC = cosine_matrix(guide_anchors_BD, torch.cat(guides))
    owned_BC = _owner_mask(owners_P, *cosines_BC.shape)
    positive_B1 = cosines_BC.masked_fill(~owned_BC, torch.inf).amin(1, keepdim=True)
    return (cosines_BC >= positive_B1 - margin) & ~owned_BC


def in_batch_graded(left_BD: Tensor, right_BD: Tensor, labels_B: Tensor, temperature: float = 0.05) -> Tensor:
    """In-batch negatives for pairs rated from 0 to 1: AnglE's `ibn` (arXiv 2309.12871, section 3.3).

    Each of the 2B texts picks its partner among the 2B - 1 others where their label is 0.5 or more. Other pairs add no
    loss, but are negatives of the rest. The mean is over all 2B texts.

    With labels 0 and 1 this is AnglE's released code. That code cuts labels to whole numbers and multiplies row numbers
    by them, so that graded labels below 1 count as negatives and labels above 1 can make unrelated texts partners.

    >>> texts = torch.eye(4)
    >>> in_batch_graded(texts[:2], texts[2:], torch.tensor([0.7, 0.0]))  # Two of four texts pick one of three: log 3.
    tensor(0.5493)

    Args:
        left_BD: Vectors of one text of each pair.
        right_BD: Vectors of the other.
        labels_B: Similarity scores of the pairs.
        temperature: Divides the cosines.
    """
    check_rows(left=left_BD, right=right_BD, labels=labels_B)
    texts_TD = torch.cat([left_BD, right_BD])
    scores_TT = cosine_matrix(texts_TD, texts_TD) / temperature
    itself_TT = torch.eye(len(texts_TD), dtype=torch.bool, device=texts_TD.device)
    partners_T = torch.arange(len(texts_TD), device=texts_TD.device).roll(len(left_BD))
    loss_T = functional.cross_entropy(scores_TT.masked_fill(itself_TT, -torch.inf), partners_T, reduction="none")
    return (loss_T * (labels_B >= _POSITIVE).repeat(2)).mean()


def similarity_kl(student_TD: Tensor, teacher_TE: Tensor, temperature: float = 0.05) -> Tensor:
    """KL(teacher || student) of the softmaxes of each text's cosines with the other texts, averaged over texts.

    Similarities within the batch are compared, not vectors, as in SEED (arXiv 2101.04731), so that the teacher's width
    may differ. No gradient flows to the teacher.

    >>> student, teacher = torch.eye(3), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> similarity_kl(student, teacher, temperature=1.0)  # Halves, where two of the teacher's texts have e : 1.
    tensor(0.0740)
    """
    check_rows(3, student=student_TD, teacher=teacher_TE)
    others_TT = ~torch.eye(len(student_TD), dtype=torch.bool, device=student_TD.device)
    student_TC, teacher_TC = (
        cosine_matrix(vectors, vectors)[others_TT].view(len(vectors), -1) / temperature
        for vectors in (student_TD, teacher_TE.detach())
    )
    return mean_kl(teacher_TC, student_TC)


def _resolve_owners(owners_P: Tensor | None, anchors_BD: Tensor, positives_PD: Tensor) -> Tensor:
    """Row number of each positive's anchor, shape (P,); None means that positive i is anchor i's."""
    if owners_P is None:
        check_rows(anchors=anchors_BD, positives=positives_PD)
        return torch.arange(len(anchors_BD), device=anchors_BD.device)
    check_rows(positives=positives_PD, owners=owners_P)
    rows = sorted(set(owners_P.tolist()))
    if rows != list(range(len(anchors_BD))):
        came = f"{len(anchors_BD)} anchors, but {len(rows)} owners from {rows[0]} to {rows[-1]}"
        raise BellmError(f"Got {came}. Each anchor needs a positive, each positive an anchor's row number.")
    return owners_P


def _owner_mask(owners_P: Tensor, num_anchors: int, num_candidates: int) -> Tensor:
    """True where a candidate is a positive of the anchor, shape (B, C); hard negatives belong to no anchor."""
    owned_BC = torch.zeros(num_anchors, num_candidates, dtype=torch.bool, device=owners_P.device)
    owned_BC[owners_P, torch.arange(len(owners_P), device=owners_P.device)] = True
    return owned_BC


def _cross_entropy(target_P: Tensor, others_P: Tensor) -> Tensor:
    """-log softmax of the target score against the others' log-sum-exp, finite where there are no others (-inf)."""
    return torch.logaddexp(others_P - target_P, torch.zeros_like(target_P))
