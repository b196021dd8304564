"""Which texts go through the model together."""

from collections.abc import Sequence

MAX_BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included."""


def batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group row numbers into batches of similar length, longest first.

    Longest first, so that a shortage of memory shows at once and not after an hour.

    Args:
        lengths: Tokens of each row.
        max_tokens: Most tokens of one batch once padded to its longest row; a longer row goes alone.
    """
    groups: list[list[int]] = []
    widest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not groups or (len(groups[-1]) + 1) * widest > max_tokens:
            groups.append([])
            widest = lengths[row]
        groups[-1].append(row)
    return groups
