"""What a packed forward pass works on: a batch of texts laid end to end, and the state of the pass under way.

Shapes: M tokens that the decoder is given, N of them that a layer works on, G key heads, E width of a head, D width,
P tokens of the shared prefix, C chosen rows.
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
    """What the layers of one part of the stack work on."""

    rows_N: Tensor | None
    """Which of the decoder's tokens they are (for `pooled`, which of the stage before); None for all."""
    packing: Packing
    """The texts as paths through the beginning, if there is one, and these rows."""


@dataclass(frozen=True)
class PackedBatch:
    """What goes through the model in one forward pass."""

    ids_M: Tensor
    """The beginning's tokens, and those of the batch."""
    positions_M: Tensor
    shared: LayerRange
    """Up to the first open layer: every beginning once."""
    whole: LayerRange | None
    """From the first open layer on: every text in full. None where no layer opens, or the first does."""
    pooled: LayerRange | None
    """The last layer's queries; None where every state is wanted."""


@dataclass(frozen=True)
class SharedPrefix:
    """What all texts begin with, computed once: nothing that follows has an influence on it."""

    keys: tuple[Tensor, ...]
    """Keys of each layer below the first open one, (P, G, E)."""
    values: tuple[Tensor, ...]
    states_PD: Tensor
    """What the first open layer gets; the last states where no layer is open."""
    other_branch_PD: Tensor | None
    """Of the other branch, where there are two and a layer opens."""


@dataclass(frozen=True)
class LayerState:
    """How far the causal layers have brought a batch: the same for every model of the same weights that opens later."""

    layer: int
    states_ND: Tensor
    """What this layer gets, beginnings once and without the one of all texts."""


@dataclass
class ForwardPass:
    """One forward pass under way."""

    batch: PackedBatch
    beginning: SharedPrefix | None
    stop: int
    """The layer before which to stop; the depth for the model's own end."""
    windows: tuple[int | None, ...]
    stage: LayerRange
    layer: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of the layers so far, without the beginning's."""
    answers_for: tuple[Tensor, Tensor] | None = None
    """Keys and values of all rows, while the pooled rows ask."""
    stops_at_keys: bool = False
    predicts_C: Tensor | None = None
    """Which of the last states go through the language-model head; None where there is no such end."""
    start: int = 0
    """The first layer to run."""
    entering_ND: Tensor | None = None
    """What the first layer to run gets; None for the token embeddings."""
    first_open_input_ND: Tensor | None = None
    """What has reached the first open layer, beginnings once."""
    other_branch_ND: Tensor | None = None
    """States of the branch that the layer under way is not of; None where there are no branches, or no more."""
    other_branch_is_open: bool = True

    def sum_of(self, states_ND: Tensor) -> Tensor:
        """Of both branches."""
        return states_ND if self.other_branch_ND is None else states_ND + self.other_branch_ND


class StopForward(Exception):  # noqa: N818 - news, not an error
    """All that is wanted has been computed."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


current_pass: ContextVar[ForwardPass] = ContextVar("pass")
