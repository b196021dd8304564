"""Activation cache for the causal lower layers, shared by encoders that differ only in which layers are open.

Each batch resumes from the highest layer input that an earlier encoder left for it; encoders that open fewer lower
layers should therefore come later.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bellm.backbone.packed_model import PackedModel
from bellm.backbone.packed_pass import LayerState, PackedBatch, SharedPrefix

active_cache: ContextVar["ActivationCache | None"] = ContextVar("activation_cache", default=None)
"""The cache of `share_activations`, inside of it."""


@contextmanager
def share_activations() -> Iterator[None]:
    """Share one cache, of one state a token, among all encoders used inside; only their open layers may differ."""
    token = active_cache.set(ActivationCache())
    try:
        yield
    finally:
        active_cache.reset(token)


class ActivationCache:
    """Input of the first open layer for each batch."""

    def __init__(self) -> None:
        self._layer_states: dict[bytes, LayerState] = {}
        self._resumable: WeakKeyDictionary[PackedModel, bool] = WeakKeyDictionary()

    def states(self, model: PackedModel, batch: PackedBatch, prefix: SharedPrefix | None, stop: int) -> Tensor:
        """As `PackedModel.states`, resumed from a cached layer input where there is one.

        A model's first batch is computed both ways; where they differ by a bit, the model never resumes.
        """
        key = b"".join(table.cpu().numpy().tobytes() for table in (batch.ids_M, batch.positions_M))
        cached = self._layer_states.get(key)
        if cached and cached.layer > min(model.num_shared, stop):
            cached = None
        if cached and model not in self._resumable:
            self._resumable[model] = _resumes_exactly(model, batch, prefix, stop, cached)
        states, layer_state = model.states(batch, prefix, stop, cached if cached and self._resumable[model] else None)
        if layer_state:
            self._layer_states[key] = layer_state
        return states


def _resumes_exactly(
    model: PackedModel, batch: PackedBatch, prefix: SharedPrefix | None, stop: int, cached: LayerState
) -> bool:
    try:
        return torch.equal(*(model.states(batch, prefix, stop, resume)[0] for resume in (None, cached)))
    except Exception:  # Some models pass more than states from layer to layer.
        return False
