"""Early exit: every layer's states passed through whatever follows the last layer, mostly the final norm.

The last layer's output is replaced by the states after every layer as one large batch, so that the model itself applies
its end to all of them.

Shapes: K layers, B batch, L tokens, D width.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.hooks import causal_copy


def with_early_exits(model: PreTrainedModel) -> PreTrainedModel:
    """Causal copy of a model whose `all_layer_states` after layer k are those of a model of the first k layers.

    This is what dropping layers from the top means in BeLLM's degradation experiment (arXiv 2311.05296): the final norm
    stays, which `all_layer_states` of the model itself leaves out. The copy needs memory for K times the states of a
    batch, and runs one call at a time.
    """
    copied = causal_copy(model)
    layers = get_layers(copied)
    depth, states = len(layers), list[Tensor]()  # Hooks that held the layers would be a cycle, and keep the weights.

    def collect(layer_index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if layer_index == 0:
            states.clear()  # What an interrupted call left.
        states.append(output if isinstance(output, Tensor) else output[0])
        if len(states) < depth:
            return None
        states_NLD = torch.cat(states)  # N = K * B
        states.clear()
        return states_NLD if isinstance(output, Tensor) else (states_NLD, *output[1:])

    def split(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        parts = output.last_hidden_state.chunk(depth)
        output.hidden_states = (output.hidden_states[0], *parts)
        output.last_hidden_state = parts[-1]
        return output

    for layer in layers:
        layer.module.register_forward_hook(partial(collect, layer.index))
    get_decoder(copied).register_forward_hook(split)
    return copied
