"""Token Prepending: backward flow in a causal model, without training (Fu et al. 2025, arXiv 2412.11556).

A placeholder stands before the text. From the second layer on it is given, before a layer runs, the last token's state:
the sentence as it is known so far. So the text's tokens, which come after it, attend to a summary of what stands behind
them, although attention stays causal. Above a chosen layer nothing is given any more.

Shapes: B rows, L tokens, D width.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.hooks import BellmHook, Model, causal_copy, hooks_of
from bellm.errors import LayerError

PLACEHOLDER = -1
"""Stands for the placeholder among token ids; no token has it, and no other model takes it."""

_positions: ContextVar[tuple[Tensor, Tensor]] = ContextVar("places")
"""Where the placeholder and the last token of each row stand, (B,) each. Every call says it anew, in its own thread."""


def with_token_prepending(model: Model, depth: int, token_id: int) -> Model:
    """Give a causal model that shares every weight with this one and fills the placeholders of its rows.

    Rows may be padded on either side. A row without a placeholder is read as by the model itself.

    Args:
        model: Any decoder-only model of transformers, open or not.
        depth: Layers that take part, counted from 1: before each of the layers 2 to `depth` the placeholder is given
            the last token's state. With 1 it stays the token that it is.
        token_id: Token that the first layer sees in the placeholder's stead.

    Raises:
        DirectionError: The model has no such layer.
    """
    copied = causal_copy(model)
    layers = get_layers(copied)
    if not 1 <= depth <= len(layers):
        raise LayerError(
            f"Token Prepending in {depth} layers does not fit: the model has {len(layers)} layers, so give 1 to "
            f"{len(layers)}."
        )
    get_decoder(copied).register_forward_pre_hook(_FindPlaceholders(token_id), with_kwargs=True)
    for layer in layers[1:depth]:
        layer.module.register_forward_pre_hook(_FillPlaceholders(), with_kwargs=True)
    return copied


def has_token_prepending(model: PreTrainedModel) -> bool:
    """Whether this model fills placeholders."""
    return any(True for _ in hooks_of(get_decoder(model), _FindPlaceholders))


@dataclass
class _FindPlaceholders(BellmHook):
    """Forward pre-hook of the decoder, as `bellm.backbone.states` calls it: says where placeholders are."""

    token_id: int

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids_BL, mask_BL = kwargs["input_ids"], kwargs["attention_mask"]
        is_placeholder_BL = ids_BL == PLACEHOLDER
        last_B = (torch.arange(mask_BL.shape[1], device=mask_BL.device) * mask_BL).argmax(1)
        # A last token that is given its own state stays as it is.
        place_B = torch.where(is_placeholder_BL.any(1), is_placeholder_BL.int().argmax(1), last_B)
        _positions.set((place_B, last_B))
        return args, {**kwargs, "input_ids": ids_BL.masked_fill(is_placeholder_BL, self.token_id)}


class _FillPlaceholders(BellmHook):
    """Forward pre-hook of a layer: each placeholder is given the state of its row's last token."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]  # (..., B, L, D); some have several streams.
        place_B, last_B = (position_B.to(hidden.device) for position_B in _positions.get())
        row_B = torch.arange(len(place_B), device=hidden.device)
        filled = hidden.clone()
        filled[..., row_B, place_B, :] = hidden[..., row_B, last_B, :]
        return ((filled, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": filled})
