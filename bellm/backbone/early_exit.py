"""What a decoder would give if it ended after an earlier layer: every layer's states through the model's own end.

The last layer hands on the states after every layer as one large batch, and the model does with all of them what it
does with its last ones (a norm, mostly). Nothing has to know what that is.

Shapes: K layers, B batch, L tokens, D width.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.hooks import causal_copy


@dataclass
class _Exits:
    """Hooks of a decoder and its layers."""

    depth: int
    states: list[Tensor] = field(default_factory=list)
    """Of the layers so far."""

    def keep(self, number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if number == 0:
            self.states.clear()
        self.states.append(output if isinstance(output, Tensor) else output[0])
        if len(self.states) < self.depth:
            return None
        states_NLD = torch.cat(self.states)  # N = K * B
        self.states.clear()
        return states_NLD if isinstance(output, Tensor) else (states_NLD, *output[1:])

    def part(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        parts = output.last_hidden_state.chunk(self.depth)
        output.hidden_states = (output.hidden_states[0], *parts)
        output.last_hidden_state = parts[-1]
        return output


def with_early_exits(model: PreTrainedModel) -> PreTrainedModel:
    """A causal twin, for `all_states`: its state after layer k is what the first k layers alone would give.

    This is what dropping layers from the top means in BeLLM's degradation experiment (arXiv 2311.05296): the final
    norm stays. `all_states` of the model itself has the states before that norm. The twin takes memory for K times the
    states of a batch, and one call at a time.
    """
    copied = causal_copy(model)
    layers = get_layers(copied)
    exits = _Exits(len(layers))
    for layer in layers:
        layer.module.register_forward_hook(partial(exits.keep, layer.index))
    get_decoder(copied).register_forward_hook(exits.part)
    return copied
