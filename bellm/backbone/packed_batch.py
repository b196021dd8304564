"""Inputs and state of a packed forward pass.

Shapes: M tokens of the decoder's input, N tokens of a layer's input, G key heads, E width of a head, D width, P tokens
of the shared prefix, C rows that take logits.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from bellm.errors import LayerError
from bellm.tensors.packing import Packing


class NotPackableError(LayerError):
    """A model whose texts cannot be laid end to end; the message says why."""


@dataclass(frozen=True)
class LayerRange:
    """Input of a range of consecutive layers."""

    rows_N: Tensor | None  # Their tokens among the decoder's (for `pooled`, among the previous range's); None for all.
    packing: Packing  # Each text as a path through the shared prefix, if there is one, and these rows.


@dataclass(frozen=True)
class PackedBatch:
    """Texts of one forward pass, laid end to end."""

    ids_M: Tensor  # Tokens of the shared prefix, then those of the batch.
    positions_M: Tensor
    shared: LayerRange  # Below the first open layer: common prefixes once.
    whole: LayerRange | None  # From the first open layer on: every text in full. None if no layer or layer 0 is open.
    pooled: LayerRange | None  # Queries of the last layer; None where all states are read.


@dataclass(frozen=True)
class SharedPrefix:
    """Prefix of all texts, computed once: in causal layers nothing after it changes it."""

    keys: tuple[Tensor, ...]  # Keys of each layer below the first open one, (P, G, E).
    values: tuple[Tensor, ...]
    states_PD: Tensor  # Input of the first open layer; the last states where no layer is open.
    other_branch_PD: Tensor | None  # The same of the other branch; None without branches or open layers.


@dataclass(frozen=True)
class LayerState:
    """Input of a layer for a batch: the same for every model of the same weights that is causal below it."""

    layer: int
    states_ND: Tensor  # Common prefixes once, without the prefix of all texts.


@dataclass
class ForwardPass:
    """State of one forward pass."""

    batch: PackedBatch
    prefix: SharedPrefix | None
    stop: int  # Stop before this layer; the depth for the model's own end.
    windows: tuple[int | None, ...]
    current: LayerRange
    layer: int = 0
    key_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # Of the layers so far, without the prefix's.
    all_key_values: tuple[Tensor, Tensor] | None = None  # Of all rows, while only pooled rows have queries.
    stop_at_keys: bool = False
    logit_rows_C: Tensor | None = None  # Last states that the language-model head gets; None without a head.
    start: int = 0  # First layer to run.
    start_states_ND: Tensor | None = None  # Its input; None for the token embeddings.
    first_open_input_ND: Tensor | None = None  # Input of the first open layer, common prefixes once.
    other_branch_ND: Tensor | None = (
        None  # Of the branch that the current layer is not in; None without, or once added.
    )
    other_branch_is_open: bool = True

    def add_branches(self, states_ND: Tensor) -> Tensor:
        """Sum of both branches' states."""
        return states_ND if self.other_branch_ND is None else states_ND + self.other_branch_ND


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass early, with the tensors that were wanted."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


current_pass: ContextVar[ForwardPass] = ContextVar("current_pass")
