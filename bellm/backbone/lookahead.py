"""How much attention each layer would pay to later tokens if it were open.

Shapes: H heads, L tokens.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers, get_text_config
from bellm.backbone.attention import open_layers
from bellm.backbone.hooks import Model, causal_copy
from bellm.backbone.states import token_states


class FutureAttention:
    """Measures one text at a time, with two copies that share the model's weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Copy the model with eager attention, which returns its weights: causal, and with all layers open."""
        openable = [layer.index for layer in get_layers(model) if layer.can_open]
        self._causal = _eager(causal_copy(model))
        self._open = get_layers(_eager(open_layers(model, openable)))

    @torch.inference_mode()
    def future_attention_mass(self, ids_1L: Tensor) -> list[float | None]:
        """Share of its attention that each layer would pay to later tokens if it alone were open, 0 to 1.

        Mean over heads and over all tokens but the last. None for a layer without attention, or one that does not
        return its weights.
        """
        masses: list[float | None] = [None] * len(self._open)

        def measure(
            open_module: nn.Module,
            index: int,
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            """Forward hook of a causal attention module: run the open one on the same input."""
            outputs = open_module(*args, **kwargs)[1:]
            weights = next((part for part in outputs if isinstance(part, Tensor) and part.ndim == 4), None)
            if weights is not None and weights.shape[-1] == weights.shape[-2]:
                future_HL = weights[0].float().triu(1).sum(-1)
                masses[index] = float(future_HL[:, :-1].mean())

        with ExitStack() as hooks:
            for layer, open_layer in zip(get_layers(self._causal), self._open, strict=True):
                for module, open_module in zip(layer.attention, open_layer.attention, strict=True):
                    hook = partial(measure, open_module, layer.index)
                    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            token_states(self._causal, ids_1L, torch.ones_like(ids_1L))
        return masses


def _eager(model: Model) -> Model:
    get_text_config(model)._attn_implementation_internal = "eager"  # type: ignore[attr-defined]
    return model
