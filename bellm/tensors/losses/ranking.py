"""Pairwise ranking losses of rated pairs: CoSENT and AnglE's angle objective.

A temperature divides similarities: 0.05 here is the scale of 20 by which other libraries multiply. Only the order of
the labels counts, and pairs of equal labels are not compared.

Shapes: B pairs, D width, H = D / 2 complex coordinates.
"""

from typing import Literal

import torch
from torch import Tensor

from bellm.errors import BellmError, check_choice
from bellm.tensors.losses.loss_inputs import check_rows, normalize, row_cosines, upcast

AngleForm = Literal["released", "published"]
"""AnglE's angle objective as its authors' code has it, or as their paper has it; see `angle`."""


def cosent(left_BD: Tensor, right_BD: Tensor, labels_B: Tensor, temperature: float = 0.05) -> Tensor:
    """Pairwise ranking loss that puts the cosines in the order of the labels.

    log(1 + sum of e^((cos_i - cos_j) / t) over pairs with label_i < label_j): CoSENT (Su 2022; doi
    10.1109/TASLP.2024.3402087), AnglE's cosine objective. Descent raises the cosine of the higher label. 0 where no two
    labels differ.

    >>> left, right = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> cosent(left, right, torch.tensor([0.2, 0.9]))  # Equal cosines: log 2.
    tensor(0.6931)

    Args:
        left_BD: Vectors of one text of each pair.
        right_BD: Vectors of the other.
        labels_B: Similarity scores of the pairs.
        temperature: Divides the cosines.
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


def _pairwise_ranking(scores_B: Tensor, labels_B: Tensor) -> Tensor:
    """log(1 + sum of e^(score_i - score_j) over label_i < label_j)."""
    lower, higher = (labels_B[:, None] < labels_B[None, :]).nonzero(as_tuple=True)
    return torch.cat([scores_B.new_zeros(1), scores_B[lower] - scores_B[higher]]).logsumexp(0)


def _complex_quotient(left_BD: Tensor, right_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of left / right per complex coordinate, up to a positive factor."""
    (a_BH, b_BH), (c_BH, d_BH) = left_BD.chunk(2, dim=1), right_BD.chunk(2, dim=1)
    return a_BH * c_BH + b_BH * d_BH, b_BH * c_BH - a_BH * d_BH
