"""What the causal layers make of a batch, kept for other models of the same weights.

Below its first open layer a model computes what the causal model does. Where many maps of one encoder embed the same
texts, each batch goes on from where an earlier one had the same states; those that open from the bottom up come first.

Shapes: N tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bellm.backbone.packed_batch import LayerState, PackedBatch, SharedPrefix
from bellm.backbone.packed_model import PackedModel

_in_use: ContextVar["ActivationCache | None"] = ContextVar("trunk", default=None)


@contextmanager
def share_activations() -> Iterator[None]:
    """Keep what the causal layers make of every batch inside, of encoders that differ in their maps and no more.

    It takes memory for one state of each token.
    """
    token = _in_use.set(ActivationCache())
    try:
        yield
    finally:
        _in_use.reset(token)


def active_cache() -> "ActivationCache | None":
    """What `one_trunk` keeps, inside of it."""
    return _in_use.get()


class ActivationCache:
    """How far each batch has come."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._reached: dict[bytes, LayerState] = {}
        self._holds: WeakKeyDictionary[PackedModel, bool] = WeakKeyDictionary()

    def states(self, model: PackedModel, batch: PackedBatch, beginning: SharedPrefix | None, stop: int) -> Tensor:
        """As `PackedModel.states`, without the layers whose outcome is known.

        A model's first batch is computed both ways; where they differ by a bit, it goes all the way.
        """
        name = b"".join(table.cpu().numpy().tobytes() for table in (batch.ids_M, batch.positions_M))
        known = self._reached.get(name)
        if known and known.layer > min(model.num_shared, stop):
            known = None
        if known and model not in self._holds:
            self._holds[model] = _same(model, batch, beginning, stop, known)
        if known and not self._holds[model]:
            known = None
        states, reached = model.states(batch, beginning, stop, known)
        if reached:
            self._reached[name] = reached
        return states


def _same(model: PackedModel, batch: PackedBatch, beginning: SharedPrefix | None, stop: int, known: LayerState) -> bool:
    try:
        one, other = (model.states(batch, beginning, stop, start)[0] for start in (None, known))
    except Exception:  # Models hand on more than states in ways of their own.
        return False
    return torch.equal(one, other)
