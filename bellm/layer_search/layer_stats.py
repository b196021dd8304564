"""Per-layer statistics of a causal model: sentence dependency, and attention to later tokens if the layer were open.

Shapes: N texts, K layers, L tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bellm.backbone.leakage import FutureAttention
from bellm.backbone.states import all_layer_states, with_early_exits
from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.tensors.geometry import sentence_dependency

_FEWEST_TOKENS = 2


@dataclass(frozen=True)
class LayerStats:
    """Statistics of each layer of a causal model, first to last, in percent; means over texts."""

    num_texts: int
    dependency: tuple[float, ...]
    """Sentence-level dependency of BeLLM's pilot study after the layer: what the last token, the pivot, has in common
    with the others."""
    looks_ahead: tuple[float | None, ...]
    """Share of its attention that the layer, opened alone, pays to later tokens; None where it cannot be measured."""


def measure_layers(encoder: Encoder, texts: Sequence[str]) -> LayerStats:
    """Measure every layer on a few hundred texts in the encoder's prompt; texts of one token are left out.

    States are those that the first layers alone would give, through the final norm, as in the degradation curve.

    Raises:
        BellmError: No text has two tokens.
    """
    rows = [ids for ids in encoder.tokenize(texts).ids if len(ids) >= _FEWEST_TOKENS]
    if not rows:
        raise BellmError(f"None of {len(texts)} texts has {_FEWEST_TOKENS} tokens, a pivot and another.")
    model, ahead = with_early_exits(encoder.model), FutureAttention(encoder.model)
    dependency_NK, ahead_NK = [], []
    for ids in rows:
        ids_1L = torch.tensor([ids], device=encoder.device)
        with torch.inference_mode():
            states = all_layer_states(model, ids_1L, torch.ones_like(ids_1L))[1:]
        dependency_NK.append([sentence_dependency(hidden[0].float().cpu().numpy()) for hidden in states])
        ahead_NK.append(ahead.future_attention_mass(ids_1L))
    dependency_K, ahead_K = (
        100 * np.array(table, dtype=np.float64).mean(axis=0) for table in (dependency_NK, ahead_NK)
    )
    looks_ahead = tuple(None if np.isnan(share) else float(share) for share in ahead_K)
    return LayerStats(len(rows), tuple(map(float, dependency_K)), looks_ahead)
