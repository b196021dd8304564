"""Pairwise ranking losses of rated pairs: CoSENT, AnglE, and AnglE's weighted sum.

A temperature divides similarities: 0.05 here is the scale of 20 by which other libraries multiply. Only the order of
the labels counts, and pairs of equal labels are not compared.

Shapes: B pairs or triplets, D width, H = D / 2 complex coordinates.
"""

from typing import Literal

import torch
from torch import Tensor

from bellm.errors import BellmError
from bellm.tensors.losses.contrastive import in_batch_graded, info_nce
from bellm.tensors.losses.loss_inputs import check_choice, check_rows, normalize, row_cosines, upcast

AngleForm = Literal["released", "published"]
"""AnglE's angle objective as its authors' code has it, or as their paper has it; see `angle`."""


def cosent(left_BD: Tensor, right_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Pairwise ranking loss that puts the cosines in the order of the labels.

    log(1 + sum of e^((cos_i - cos_j) / t) over pairs with label_i < label_j): CoSENT (Su 2022; doi
    10.1109/TASLP.2024.3402087), AnglE's cosine objective. Descent raises the cosine of the higher label. 0 where no two
    labels differ.

    >>> left, right = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> cosent(left, right, torch.tensor([0.2, 0.9]))  # Equal cosines: log 2.
    tensor(0.6931)

    Raises:
        BellmError: No pairs, or not as many left, right and labels.
    """
    check_rows(left=left_BD, right=right_BD, labels=labels_B)
    return _pairwise_ranking(row_cosines(left_BD, right_BD) / temperature, labels_B)


def angle(
    left_BD: Tensor,
    right_BD: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 0.05,
    form: AngleForm = "released",
) -> Tensor:
    """AnglE's angle objective (arXiv 2309.12871, section 3.4): a ranking loss of angles in complex space.

    A vector's first half is the real part of H complex coordinates, its second half the imaginary part. Two forms:

    - `released`: what the authors' code computes, and sentence-transformers with it. With z = a + bi the left vector,
      w = c + di the right, s = |sum of (ac + bd) + (bc - ad)| / (|z| |w|), the cosine plus an antisymmetric term, is
      ordered like a similarity: descent raises s of the higher label. It is not symmetric in left and right.
    - `published`: what the paper says, angle differences that are small for pairs of high label. The difference is the
      mean over coordinates of |arg(z_h / w_h)|, 0 to pi, and descent lowers it for the higher label.

    So they differ in the measure and in the order of the subtraction. The paper also writes the difference as the
    modulus of z/w at equal lengths, which is 1 whatever the angle; here its words decide. It does not say how
    coordinates are reduced; with the mean, a temperature means the same at any width.

    >>> left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> angle(left, right, torch.tensor([0.0, 1.0]), form="published", temperature=1.0)  # log(1 + e^(pi/2 - 0)).
    tensor(1.7597)

    Args:
        left_BD: Vectors of one text of each pair, of even width.
        right_BD: Vectors of the other.
        labels_B: Similarity scores of the pairs.
        temperature: Divides s or the angle. The released code's function has 1, its command line 0.05.
        form: The code's or the paper's.

    Raises:
        BellmError: No pairs, not as many left, right and labels, an odd width, or an unknown form.
    """
    check_choice("form", form, AngleForm)
    check_rows(left=left_BD, right=right_BD, labels=labels_B)
    if left_BD.shape[-1] % 2:
        raise BellmError(f"Vectors of width {left_BD.shape[-1]} have no two halves. AnglE needs an even width.")
    if form == "released":
        real_BH, imaginary_BH = _complex_quotient(normalize(left_BD), normalize(right_BD))
        return _pairwise_ranking((real_BH + imaginary_BH).sum(1).abs() / temperature, labels_B)
    real_BH, imaginary_BH = _complex_quotient(upcast(left_BD), upcast(right_BD))
    return _pairwise_ranking(-torch.atan2(imaginary_BH, real_BH).abs().mean(1) / temperature, labels_B)


def angle_sum(
    left_BD: Tensor,
    right_BD: Tensor,
    labels_B: Tensor,
    *,
    cosine_w: float = 0.0,
    ibn_w: float = 1.0,
    angle_w: float = 0.02,
    temperature: float = 0.05,
    threshold: float = 0.5,
    form: AngleForm = "released",
) -> Tensor:
    """AnglE's objective for rated pairs: cosine_w `cosent` + ibn_w `in_batch_graded` + angle_w `angle`.

    Default weights are angle-emb 0.6.1's. (In 0.3.10 these names were accepted and ignored, and all weights were 1,
    among them in BeLLM's published training command.)

    >>> left, right = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> angle_sum(left, right, torch.tensor([0.2, 0.9]), cosine_w=10.0, ibn_w=0.0, angle_w=0.0)
    tensor(6.9315)

    Args:
        left_BD: Vectors of one text of each pair, of even width.
        right_BD: Vectors of the other.
        labels_B: Similarity scores of the pairs.
        cosine_w: Weight of `cosent`.
        ibn_w: Weight of `in_batch_graded`.
        angle_w: Weight of `angle`.
        temperature: Of all three.
        threshold: The least label of a positive pair in `in_batch_graded`.
        form: Of `angle`.

    Raises:
        BellmError: As `angle`.
    """
    cosines = cosent(left_BD, right_BD, labels_B, temperature=temperature)
    in_batch = in_batch_graded(left_BD, right_BD, labels_B, temperature=temperature, threshold=threshold)
    angles = angle(left_BD, right_BD, labels_B, temperature=temperature, form=form)
    return cosine_w * cosines + ibn_w * in_batch + angle_w * angles


def angle_sum_of_triplets(
    anchors_BD: Tensor,
    positives_BD: Tensor,
    negatives_BD: Tensor,
    *,
    cosine_w: float = 0.0,
    ibn_w: float = 1.0,
    cln_w: float = 1.0,
    angle_w: float = 0.02,
    temperature: float = 0.05,
    form: AngleForm = "released",
) -> Tensor:
    """AnglE's objective for triplets: anchor and positive are a pair of label 1, anchor and negative one of label 0.

    (ibn_w `info_nce` of anchors and positives + cln_w `info_nce` with the negatives too) / 2 + angle_w `angle` +
    cosine_w `cosent`, the last two over all 2B pairs. Default weights are angle-emb 0.6.1's.

    >>> anchors, positives, negatives = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 3.0]]])
    >>> angle_sum_of_triplets(anchors, positives, negatives, angle_w=0.0, temperature=1.0)  # log(1 + e^-1) / 2.
    tensor(0.1566)

    Args:
        anchors_BD: Vectors of even width.
        positives_BD: One for each anchor.
        negatives_BD: One for each anchor.
        cosine_w: Weight of `cosent`.
        ibn_w: Weight of `info_nce` without the negatives.
        cln_w: Weight of `info_nce` with the negatives.
        angle_w: Weight of `angle`.
        temperature: Of all terms.
        form: Of `angle`.

    Raises:
        BellmError: No triplets, not one positive and one negative an anchor, or an odd width.
    """
    check_rows(anchors=anchors_BD, positives=positives_BD, negatives=negatives_BD)
    left_TD, right_TD = anchors_BD.repeat(2, 1), torch.cat([positives_BD, negatives_BD])
    labels_T = torch.arange(len(left_TD), device=left_TD.device) < len(anchors_BD)
    in_batch = info_nce(anchors_BD, positives_BD, temperature=temperature)
    with_negatives = info_nce(anchors_BD, positives_BD, negatives_BD, temperature=temperature)
    cosines = cosent(left_TD, right_TD, labels_T, temperature=temperature)
    angles = angle(left_TD, right_TD, labels_T, temperature=temperature, form=form)
    return (ibn_w * in_batch + cln_w * with_negatives) / 2 + angle_w * angles + cosine_w * cosines


def _pairwise_ranking(scores_B: Tensor, labels_B: Tensor) -> Tensor:
    """log(1 + sum of e^(score_i - score_j) over label_i < label_j)."""
    lower, higher = (labels_B[:, None] < labels_B[None, :]).nonzero(as_tuple=True)
    return torch.cat([scores_B.new_zeros(1), scores_B[lower] - scores_B[higher]]).logsumexp(0)


def _complex_quotient(left_BD: Tensor, right_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of left / right per complex coordinate, up to a positive factor."""
    (a_BH, b_BH), (c_BH, d_BH) = left_BD.chunk(2, dim=1), right_BD.chunk(2, dim=1)
    return a_BH * c_BH + b_BH * d_BH, b_BH * c_BH - a_BH * d_BH
