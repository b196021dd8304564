"""What each layer sees, measured and not believed.

Every decoder layer is run alone on real inputs, once more with the second half of its tokens changed and once more
with the first. Whatever moves in the other half has seen the change.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import get_open_layers
from bellm.backbone.states import input_device, token_states
from bellm.errors import LayerError
from bellm.layer_spec import format_layers
from bellm.tensors.tolerances import tolerances

NUM_SAMPLE_TOKENS = 24


@dataclass(frozen=True)
class LayerLeakage:
    """What one layer sees, as largest relative change of its update at the tokens that were not touched."""

    future: float
    """Change in the first half of the tokens when the second half changes; 0 for a causal layer."""
    past: float
    """Change in the second half when the first half changes."""
    reach: int
    """How many tokens ahead a change was seen, at most about half the tokens; windows and chunks shorten it."""


@torch.inference_mode()
def measure_leakage(model: PreTrainedModel, ids: Sequence[int]) -> list[LayerLeakage]:
    """Measure every decoder layer on one text of an even number of tokens."""
    ids_1L = torch.tensor([list(ids)], device=input_device(model))
    calls = _record(model, ids_1L)
    return [_sight(layer.module, len(ids), *calls[layer.index]) for layer in get_layers(model)]


def check_open_layers(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Make sure that the open layers, and only they, see the future.

    Raises:
        DirectionError: An open layer stays causal, or a closed layer sees the future.
    """
    chosen = set(get_open_layers(model))
    if not chosen:
        return
    name = type(model).__name__
    try:
        measured = measure_leakage(model, ids)
    except (RuntimeError, IndexError) as error:
        raise LayerError(
            f"{name} cannot run with layers {format_layers(sorted(chosen))} open this way: {error}"
        ) from error
    seen = {number for number, sight in enumerate(measured) if sight.future > tolerances(model.dtype).leakage}
    if blind := chosen - seen:
        raise LayerError(
            f"Layers {format_layers(sorted(blind))} of {name} were opened but still do not see the future: this "
            "attention does not heed its mask (a built-in triangle, for instance). bellm will not pass it off as "
            "bidirectional."
        )
    if leaky := seen - chosen:
        raise LayerError(
            f"Layers {format_layers(sorted(leaky))} of {name} see the future although they were not opened. The model "
            "is not causal to begin with; bellm cannot say what opening would mean."
        )


def sample_token_ids(model: PreTrainedModel) -> list[int]:
    """Token ids for a probe, spread over the vocabulary and away from its special tokens at the start."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [(7 + 131 * number) % (vocabulary - 7) + 7 for number in range(NUM_SAMPLE_TOKENS)]


def _record(model: PreTrainedModel, ids_1L: Tensor) -> dict[int, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of every decoder layer's call while the model reads the text."""
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as hooks:
        for layer in get_layers(model):

            def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = layer.index) -> None:
                calls[number] = args, kwargs

            handle = layer.module.register_forward_pre_hook(keep, with_kwargs=True)
            hooks.callback(handle.remove)
        token_states(model, ids_1L, torch.ones_like(ids_1L))
    return calls


def _sight(layer: nn.Module, num_tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerLeakage:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    axis = list(hidden.shape).index(num_tokens, 1)
    half = num_tokens // 2 + 1  # Odd, so that chunks of even length lie across it.

    def update(changed: slice | None = None) -> Tensor:
        states = hidden.clone()
        if changed is not None:
            tokens = states.movedim(axis, 0)
            tokens[changed] = tokens[changed].roll(1, dims=-1).neg()
        output = layer(states, *args[1:], **kwargs) if args else layer(**{**kwargs, "hidden_states": states})
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        return first

    def by_token(states: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(states.float().movedim(axis, 0).flatten(1), dim=1)
        return norms

    plain = update()
    scale = by_token(plain - hidden if plain.shape == hidden.shape else plain).clamp(min=1e-12)
    future = (by_token(update(slice(half, None)) - plain) / scale)[:half]
    past = (by_token(update(slice(half)) - plain) / scale)[half:]
    seen = torch.nonzero(future > 1e-5)
    return LayerLeakage(future.max().item(), past.max().item(), half - int(seen[0]) if len(seen) else 0)
