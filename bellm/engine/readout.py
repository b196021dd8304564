"""Readouts: what turns a forward pass into one vector for each text.

Shapes: B texts, L tokens, D width of a state or number of experts, W width of a vector, K layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from bellm.backbone.routing import count_experts, dense_layers
from bellm.backbone.states import hidden_size
from bellm.config import EncoderConfig
from bellm.errors import BellmError, NoOpWarning, warn
from bellm.tensors.placement import to_device
from bellm.tensors.pooling import POOLERS
from bellm.types import PoolingName

Tap = int | Literal["routing"]
"""What is read of each token: a state (0 the embeddings, k after layer k, -1 the last), or the routing weights."""

Spans = Sequence[tuple[int, int]]
"""First and past-the-last token of each text within its prompt."""


class Readout(Protocol):
    """Turns what it taps of a forward pass into vectors; used by both runners, packed and padded."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What is read, in this order."""

    @property
    def last_token_only(self) -> bool:
        """Whether only the last token of each text is read, so that the last layer computes no other."""

    @property
    def needs_spans(self) -> bool:
        """Whether vectors depend on where the text begins and ends within its prompt."""

    def width(self, model: PreTrainedModel) -> int:
        """Width of the vectors."""

    def __call__(self, tapped: Sequence[Tensor], mask_BL: Tensor, spans: Spans) -> Tensor:
        """Read vectors, float32 (B, W), of what was tapped, padded, each (B, L, D)."""


@dataclass(frozen=True)
class _PooledReadout:
    pooling: PoolingName

    @property
    def last_token_only(self) -> bool:
        """Whether only the last token of each text is read."""
        return self.pooling == "last"

    @property
    def needs_spans(self) -> bool:
        """Whether the prompt's tokens are left out."""
        return self.pooling == "mean-text"

    def __call__(self, tapped: Sequence[Tensor], mask_BL: Tensor, spans: Spans) -> Tensor:
        """Pool the one thing that was tapped, float32 (B, D)."""
        (tapped_BLD,) = tapped
        return POOLERS[self.pooling](tapped_BLD, text_mask(mask_BL, spans) if self.needs_spans else mask_BL)


@dataclass(frozen=True)
class HiddenStateReadout(_PooledReadout):
    """Pooled states of one layer."""

    layer: int = -1

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The states."""
        return (self.layer,)

    def width(self, model: PreTrainedModel) -> int:
        """Width of a state."""
        return hidden_size(model)


@dataclass(frozen=True)
class RoutingReadout(_PooledReadout):
    """Pooled routing weights: the share of every expert in every layer that has experts (MoEE, arXiv 2410.10814)."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The routing weights."""
        return ("routing",)

    def width(self, model: PreTrainedModel) -> int:
        """Number of experts in all layers."""
        return count_experts(model)


@dataclass(frozen=True)
class JoinedReadout:
    """Vectors of several readouts of one forward pass, as one vector or one matrix for each text."""

    parts: tuple[Readout, ...]
    join: Literal["concat", "mean", "stack"]
    """Vectors of length 1 side by side, or their mean; `stack` leaves them as they are, (B, parts, W)."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """All that the parts read."""
        return tuple(tap for part in self.parts for tap in part.taps)

    @property
    def last_token_only(self) -> bool:
        """Whether no part reads another token than the last."""
        return all(part.last_token_only for part in self.parts)

    @property
    def needs_spans(self) -> bool:
        """Whether any part leaves the prompt out."""
        return any(part.needs_spans for part in self.parts)

    def width(self, model: PreTrainedModel) -> int:
        """Width of the joined vector."""
        widths = [part.width(model) for part in self.parts]
        return sum(widths) if self.join == "concat" else widths[0]

    def __call__(self, tapped: Sequence[Tensor], mask_BL: Tensor, spans: Spans) -> Tensor:
        """Read each part's vectors and join them."""
        rest = iter(tapped)
        vectors = [part(list(islice(rest, len(part.taps))), mask_BL, spans) for part in self.parts]
        if self.join == "stack":
            return torch.stack(vectors, 1)
        unit = [normalize(part_BW, dim=-1) for part_BW in vectors]
        return torch.cat(unit, -1) if self.join == "concat" else torch.stack(unit).mean(0)


def make_readout(config: EncoderConfig) -> Readout:
    """The readout that the settings of an encoder ask for."""
    if config.readout == "routing":
        return RoutingReadout(config.pooling)
    parts = tuple(HiddenStateReadout(config.pooling, layer) for layer in config.layers)
    return parts[0] if len(parts) == 1 else JoinedReadout(parts, "mean" if config.averages_layers else "concat")


def check_readout(config: EncoderConfig, model: PreTrainedModel) -> None:
    """Check that a model has what the settings read.

    Raises:
        BellmError: It has no experts, or its vectors have fewer numbers than `truncate_dim`.

    Warns:
        NoOpWarning: Some layers have no experts, and no part of the vector.
    """
    width = make_readout(config).width(model)
    if config.truncate_dim and config.truncate_dim > width:
        raise BellmError(f"truncate_dim={config.truncate_dim} is more than the {width} numbers of the model's vectors.")
    if config.readout == "routing" and (dense := dense_layers(model)) != "none":
        message = f"Layers {dense} have no experts: the routing vector is that of the others ({width} experts)."
        warn(message, NoOpWarning)


def refuse_other_readouts(config: EncoderConfig, what: str) -> None:
    """Raise a BellmError unless vectors are read from the states of one layer, as `what` takes those of each layer."""
    if config.readout != "hidden" or len(config.layers) > 1:
        raise BellmError(
            f"{what} the states of each layer, and readout={config.readout!r} with layer={config.layer!r} reads "
            "others: take readout='hidden' and one layer."
        )


def all_states_readout(pooling: PoolingName, num_layers: int) -> Readout:
    """Vectors of the embeddings and of the states after every layer, (B, K + 1, D)."""
    return JoinedReadout(tuple(HiddenStateReadout(pooling, layer) for layer in range(num_layers + 1)), "stack")


def text_mask(mask_BL: Tensor, spans: Spans) -> Tensor:
    """Keep the tokens of the text and drop the prompt's; a row without text keeps its whole prompt.

    Without spans the mask is that of the texts already.
    """
    if not spans:
        return mask_BL
    starts, ends = np.array(spans, dtype=np.int64).T
    starts_B1, ends_B1 = (to_device(table, mask_BL.device)[:, None] for table in (starts, ends))
    positions_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return mask_BL & ((starts_B1 >= ends_B1) | ((positions_L >= starts_B1) & (positions_L < ends_B1)))
