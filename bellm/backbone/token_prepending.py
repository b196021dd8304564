"""Token Prepending: backward flow in a causal model, without training (Fu et al. 2025, arXiv 2412.11556).

A placeholder token precedes the text. Before each of the layers 2 to K its state is replaced by that of the last token,
so that the text's tokens attend to a summary of what follows them, although attention stays causal.

Shapes: B rows, L tokens, D width.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.hooks import Arguments, BellmHook, Model, causal_copy, hooks_of
from bellm.errors import LayerError

PLACEHOLDER = -1
"""Id of the placeholder; no token has it, and no other model takes it."""

_positions: ContextVar[tuple[Tensor, Tensor]] = ContextVar("placeholder_positions")
"""Positions of the placeholder and of the last token of each row, (B,) each; set by every call, in its own thread."""


def with_token_prepending(model: Model, depth: int, token_id: int) -> Model:
    """Copy a model, causal, with hooks that fill the placeholders of its rows; both share every weight.

    The first layer sees `token_id` in their place; before the others up to `depth`, counted from 1, they get the state
    of the last token. Rows may be padded on either side. A row without a placeholder runs as in the model itself.
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
    return bool(hooks_of(get_decoder(model), _FindPlaceholders))


@dataclass
class _FindPlaceholders(BellmHook):
    """Forward pre-hook of the decoder, as `bellm.backbone.states` calls it, that locates placeholders."""

    token_id: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        ids_BL, mask_BL = kwargs["input_ids"], kwargs["attention_mask"]
        is_placeholder_BL = ids_BL == PLACEHOLDER
        last_B = (torch.arange(mask_BL.shape[1], device=mask_BL.device) * mask_BL).argmax(1)
        # A last token that is given its own state stays as it is.
        placeholder_B = torch.where(is_placeholder_BL.any(1), is_placeholder_BL.int().argmax(1), last_B)
        _positions.set((placeholder_B, last_B))
        return args, {**kwargs, "input_ids": ids_BL.masked_fill(is_placeholder_BL, self.token_id)}


class _FillPlaceholders(BellmHook):
    """Forward pre-hook of a layer that gives each placeholder the state of its row's last token."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]  # (..., B, L, D); some have several streams.
        placeholder_B, last_B = (position_B.to(hidden.device) for position_B in _positions.get())
        row_B = torch.arange(len(placeholder_B), device=hidden.device)
        filled = hidden.clone()
        filled[..., row_B, placeholder_B, :] = hidden[..., row_B, last_B, :]
        return ((filled, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": filled})
