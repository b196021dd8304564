"""Run a decoder: token ids to hidden states of one or every layer, or to logits.

Shapes: B batch, L tokens, D width, K layers, M chosen positions, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers, forward_parameters, get_decoder, get_layers, get_text_config
from bellm.backbone.hooks import causal_copy
from bellm.errors import BellmError, NonFiniteError

_SANE = 1e6
"""No weight of a working model is larger."""


def token_states(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor, layer: int = -1) -> Tensor:
    """Run the decoder without cache or head and return the states after a layer, (B, L, D).

    Args:
        model: A decoder-only model, open or not.
        ids_BL: Token ids, padded on either side.
        mask_BL: 1 for tokens, 0 for padding.
        layer: 0 for the embeddings, k after layer k, -1 for the last, normed state. In the parallel variant, the sum
            of both branches' states.
    """
    depth = count_layers(model)
    layer %= depth + 1
    if layer < depth:
        return all_layer_states(model, ids_BL, mask_BL)[layer]
    return _sum_branches(_run(model, ids_BL, mask_BL).last_hidden_state, ids_BL)


def states_after(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """States after each of several layers, as `token_states` gives them, of one forward pass."""
    depth = count_layers(model)
    if all(layer % (depth + 1) == depth for layer in layers):
        states_BLD = token_states(model, ids_BL, mask_BL)
        return [states_BLD for _ in layers]
    states = all_layer_states(model, ids_BL, mask_BL)
    return [states[layer] for layer in layers]


def all_layer_states(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
    """The token embeddings and the states after every layer, the last of them normed, each (B, L, D)."""
    output = _run(model, ids_BL, mask_BL, output_hidden_states=True)
    hidden = [*output.hidden_states[: count_layers(model)], output.last_hidden_state]
    return [_sum_branches(states, ids_BL) for states in hidden]


def without_autocast(model: PreTrainedModel) -> torch.autocast:
    """Inside, the model computes in its own dtype, whatever the caller's autocast says."""
    return torch.autocast(input_device(model).type, enabled=False)


def refuse_non_finite(model: PreTrainedModel) -> NoReturn:
    """Raise a NonFiniteError that says where a model's NaN or infinity comes from, and the way out."""
    dtype = str(model.dtype).removeprefix("torch.")
    broken = (name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all()))
    if name := next(broken, None):
        cause, advice = f"its weights hold them ({name})", "Load the checkpoint again, or take another."
    else:
        size, name = max((float(weight.detach().abs().max()), name) for name, weight in model.named_parameters())
        cause = f"{dtype} overflows" if dtype == "float16" else f"in {dtype}, from finite weights"
        advice = {"float16": "Load it with dtype='bfloat16' or 'float32'.", "float32": "Report the model."}.get(
            dtype, "Load it with dtype='float32'."
        )
        if size > _SANE:
            cause = f"its weights are as large as {size:.0e} ({name})"
            advice = "Load the checkpoint of an earlier step, or train with a lower learning rate."
    raise NonFiniteError(f"{type(model).__name__} gives NaN or infinity: {cause}. {advice}")


def _run(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor, **arguments: Any) -> Any:
    decoder = get_decoder(model)
    if "position_ids" in forward_parameters(decoder):
        # Left padding must not shift learned positions (gpt2 is off by 2.3 without).
        arguments["position_ids"] = (mask_BL.cumsum(1) - 1).clamp(min=0)
    return decoder(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, return_dict=True, **arguments)


def _sum_branches(hidden: Tensor, ids_BL: Tensor) -> Tensor:
    # Layers may lie on several devices. A `len` would be one number for a traced graph.
    hidden, rows = hidden.to(ids_BL.device), ids_BL.shape[0]
    return hidden if hidden.shape[0] == rows else hidden[:rows] + hidden[rows:]


def with_early_exits(model: PreTrainedModel) -> PreTrainedModel:
    """Causal copy of a model whose `all_layer_states` after layer k are those of a model of the first k layers.

    This is what dropping layers from the top means in BeLLM's degradation experiment (arXiv 2311.05296): the final norm
    stays, which `all_layer_states` of the model itself leaves out. The last layer hands on the states after every layer
    as one batch of K * B, so that whatever follows it is applied to all of them. The copy runs one call at a time.
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


def logits_at(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor, chosen_BL: Tensor) -> Tensor:
    """Logits (M, V) at the chosen positions of a batch, row after row, and nowhere else.

    The model's own forward computes them, with whatever it does around its head (caps, scales): a hook on its decoder
    selects the states that the head gets.

    Args:
        model: A language model, open or not.
        ids_BL: Token ids, padded on the right, so that positions count from 0.
        mask_BL: 1 for tokens, 0 for padding.
        chosen_BL: True at the positions that predict something.
    """
    check_lm_head(model)

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return select_states(output, chosen_BL)

    hook = get_decoder(model).register_forward_hook(keep)
    try:
        logits_1MV: Tensor = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    finally:
        hook.remove()
    return logits_1MV[0]


def check_lm_head(model: PreTrainedModel) -> None:
    """Raise a BellmError where the model has no language-model head."""
    if model.get_output_embeddings() is None:
        raise BellmError(
            f"{type(model).__name__} has no language-model head to predict tokens with. Load a checkpoint of a causal "
            "language model; quantized encoders and exports are without."
        )


def select_states(output: Any, chosen: Tensor | tuple[int, Tensor]) -> Any:
    """A decoder's output with only some of its states (B, L, D), as (1, M, D); `chosen` indexes B and L."""
    if isinstance(output, tuple):
        return (output[0][chosen][None], *output[1:])
    output.last_hidden_state = output.last_hidden_state[chosen][None]
    return output


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the token states."""
    return int(getattr(get_text_config(model), "hidden_size"))  # noqa: B009 - configurations are untyped


def input_device(model: PreTrainedModel) -> torch.device:
    """Device of the token embeddings."""
    return torch.device(model.get_input_embeddings().weight.device)
