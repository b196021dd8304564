"""Readouts: what turns the token states of a forward pass into one vector for each text.

Shapes: B texts, L tokens, D width, K layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bellm.tensors.pooling import POOLERS
from bellm.types import PoolingName


class Readout(Protocol):
    """Turns token states into vectors; used by both runners, packed and padded."""

    @property
    def layer(self) -> int | None:
        """State that is read: 0 the embeddings, k after layer k, negative from the end; None for all of them."""

    @property
    def last_token_only(self) -> bool:
        """Whether only the last token of each text is read, so that the last layer computes no other."""

    @property
    def needs_spans(self) -> bool:
        """Whether vectors depend on where the text begins and ends within its prompt."""

    def __call__(self, hidden_BLD: Tensor, mask_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Read vectors, float32 (B, D), of padded states; a span is first and past-the-last token of a text."""


@dataclass(frozen=True)
class HiddenStateReadout:
    """Pooled states of one layer, or of every layer (K + 1 vectors a text; padded batches only)."""

    pooling: PoolingName
    layer: int | None = -1

    @property
    def last_token_only(self) -> bool:
        """Whether only the last token of each text is read."""
        return self.pooling == "last" and self.layer != 0

    @property
    def needs_spans(self) -> bool:
        """Whether the prompt's tokens are left out."""
        return self.pooling == "mean-text"

    def __call__(self, hidden_BLD: Tensor, mask_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Pool the states of each text, float32 (B, D)."""
        return POOLERS[self.pooling](hidden_BLD, text_mask(mask_BL, spans) if self.needs_spans else mask_BL)


def text_mask(mask_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Keep the tokens of the text and drop the prompt's; a row without text keeps its whole prompt."""
    kept_BL = mask_BL.clone()
    for row, (start, end) in enumerate(spans):
        if start < end:
            kept_BL[row, :start] = 0
            kept_BL[row, end:] = 0
    return kept_BL
