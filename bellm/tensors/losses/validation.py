"""What losses are given: as many rows of each, whose positive is whose, choices by name.

Shapes: B anchors, P positives, C candidates (positives, then hard negatives).
"""

from typing import Any, get_args

import torch
from torch import Tensor

from bellm.errors import BellmError


def check_rows(fewest: int = 1, /, **tensors: Tensor) -> None:
    """See that all tensors have equally many rows.

    Raises:
        BellmError: They have not, or fewer than `fewest`.
    """
    counts = [len(tensor) for tensor in tensors.values()]
    if len(set(counts)) > 1 or counts[0] < fewest:
        came = ", ".join(f"{count} {name}" for name, count in zip(tensors, counts, strict=True))
        raise BellmError(f"Got {came}. This loss needs as many of each, and {fewest} or more.")


def check_choice(name: str, choice: str, choices: Any) -> None:
    """See that a choice is one of a Literal's.

    Raises:
        BellmError: It is not.
    """
    if choice not in get_args(choices):
        raise BellmError(f"{name}={choice!r} is not known. Choose from {', '.join(get_args(choices))}.")


def owners(owners_P: Tensor | None, anchors_BD: Tensor, positives_PD: Tensor) -> Tensor:
    """The anchor of each positive; row i's is row i where nothing is said.

    Raises:
        BellmError: There is an anchor without a positive, a positive without an anchor, or nothing at all.
    """
    if owners_P is None:
        check_rows(anchors=anchors_BD, positives=positives_PD)
        return torch.arange(len(anchors_BD), device=anchors_BD.device)
    check_rows(positives=positives_PD, owners=owners_P)
    found = sorted(set(owners_P.tolist()))
    if found != list(range(len(anchors_BD))):
        came = f"{len(anchors_BD)} anchors, but {len(found)} owners from {found[0]} to {found[-1]}"
        raise BellmError(f"Got {came}. Each anchor needs a positive, each positive an anchor's row number.")
    return owners_P


def owned(owners_P: Tensor, anchors: int, candidates: int) -> Tensor:
    """True where a candidate is a positive of the anchor, shape (B, C); hard negatives are nobody's."""
    owned_BC = torch.zeros(anchors, candidates, dtype=torch.bool, device=owners_P.device)
    owned_BC[owners_P, torch.arange(len(owners_P), device=owners_P.device)] = True
    return owned_BC
