"""How much attention each layer would pay to later tokens if it were open.

Shapes: H heads, L tokens.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers, get_text_config
from bellm.backbone.attention import open_layers
from bellm.backbone.hooks import causal_copy
from bellm.backbone.states import token_states

Model = TypeVar("Model", bound=PreTrainedModel)


class FutureAttention:
    """Measures single texts; shares the model's weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Make two twins that give their attention weights, a causal one and one with all layers open."""
        numbers = [layer.index for layer in get_layers(model) if layer.can_open]
        self._causal = _eager(causal_copy(model))
        self._open = get_layers(_eager(open_layers(model, numbers)))

    @torch.inference_mode()
    def future_attention_mass(self, ids_1L: Tensor) -> list[float | None]:
        """Share of its attention that each layer alone would pay to later tokens, 0 to 1.

        Mean over heads and over all tokens but the last, which has none after it. The layers below stay causal. None
        for a layer without attention, or one that does not give its weights.
        """
        found: list[float | None] = [None] * len(self._open)
        with ExitStack() as hooks:
            for layer, other in zip(get_layers(self._causal), self._open, strict=True):
                for module, twin in zip(layer.attention, other.attention, strict=True):
                    hook = partial(_look, found, layer.index, twin)
                    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            token_states(self._causal, ids_1L, torch.ones_like(ids_1L))
        return found


def _look(
    found: list[float | None],
    number: int,
    twin: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    """Hook of a causal attention module: its open twin is asked the same."""
    weights = next((part for part in twin(*args, **kwargs)[1:] if isinstance(part, Tensor) and part.ndim == 4), None)
    if weights is not None and weights.shape[-1] == weights.shape[-2]:
        ahead_HL = weights[0].float().triu(1).sum(-1)
        found[number] = float(ahead_HL[:, :-1].mean())


def _eager(model: Model) -> Model:
    get_text_config(model)._attn_implementation_internal = "eager"  # type: ignore[attr-defined]
    return model
