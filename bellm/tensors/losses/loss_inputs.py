"""Float32 cosines and input checks that all losses share.

Shapes: B anchors, P positives, C candidates (positives, then hard negatives), N and M texts, D width.
"""

from typing import Any, get_args

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


def check_rows(fewest: int = 1, /, **tensors: Tensor) -> None:
    """Check that all tensors have equally many rows.

    Raises:
        BellmError: They have not, or fewer than `fewest`.
    """
    counts = [len(tensor) for tensor in tensors.values()]
    if len(set(counts)) > 1 or counts[0] < fewest:
        came = ", ".join(f"{count} {name}" for name, count in zip(tensors, counts, strict=True))
        raise BellmError(f"Got {came}. This loss needs as many of each, and {fewest} or more.")


def check_candidates(left_BC: Tensor, right_BC: Tensor) -> None:
    """Check that two score matrices match and hold two candidates or more of one query or more.

    Raises:
        BellmError: They do not.
    """
    if left_BC.shape != right_BC.shape or not len(left_BC) or left_BC.shape[1] < 2:
        came = f"{tuple(left_BC.shape)} and {tuple(right_BC.shape)}"
        raise BellmError(f"Scores of shapes {came}. Give both a row a query, of two or more candidates.")


def check_choice(name: str, choice: str, choices: Any) -> None:
    """Check that a choice is one of a Literal's.

    Raises:
        BellmError: It is not.
    """
    if choice not in get_args(choices):
        raise BellmError(f"{name}={choice!r} is not known. Choose from {', '.join(get_args(choices))}.")


def resolve_owners(owners_P: Tensor | None, anchors_BD: Tensor, positives_PD: Tensor) -> Tensor:
    """Row number of each positive's anchor, shape (P,); None means that positive i is anchor i's.

    Raises:
        BellmError: There is an anchor without a positive, a positive without an anchor, or nothing at all.
    """
    if owners_P is None:
        check_rows(anchors=anchors_BD, positives=positives_PD)
        return torch.arange(len(anchors_BD), device=anchors_BD.device)
    check_rows(positives=positives_PD, owners=owners_P)
    rows = sorted(set(owners_P.tolist()))
    if rows != list(range(len(anchors_BD))):
        came = f"{len(anchors_BD)} anchors, but {len(rows)} owners from {rows[0]} to {rows[-1]}"
        raise BellmError(f"Got {came}. Each anchor needs a positive, each positive an anchor's row number.")
    return owners_P


def owner_mask(owners_P: Tensor, num_anchors: int, num_candidates: int) -> Tensor:
    """True where a candidate is a positive of the anchor, shape (B, C); hard negatives belong to no anchor."""
    owned_BC = torch.zeros(num_anchors, num_candidates, dtype=torch.bool, device=owners_P.device)
    owned_BC[owners_P, torch.arange(len(owners_P), device=owners_P.device)] = True
    return owned_BC
