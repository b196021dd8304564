"""Measure which tokens each layer sees, and how much attention it would pay to later ones if it were open.

Every decoder layer is run alone on real inputs, then with the second half of its tokens changed, then with the first.
Where states of the other half change, the layer has seen the changed tokens.

Shapes: H heads, L tokens.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers, get_text_config
from bellm.backbone.attention import get_open_layers, open_layers
from bellm.backbone.hooks import Arguments, Model, causal_copy
from bellm.backbone.kept_checks import KeptCheck
from bellm.backbone.states import input_device, refuse_non_finite, token_states, without_autocast
from bellm.errors import LayerError
from bellm.layer_spec import format_layers
from bellm.tensors.similarity import tolerances

NUM_SAMPLE_TOKENS = 24


@dataclass(frozen=True)
class LayerLeakage:
    """What one layer sees: the largest relative change of its update at tokens that were not changed themselves."""

    future: float
    """Change in the first half of the tokens when the second half changes; 0 for a causal layer."""
    past: float
    """Change in the second half when the first half changes."""
    reach: int
    """How many tokens ahead a change was seen, at most half of the tokens; windows and chunks shorten it."""


@torch.inference_mode()
def measure_leakage(model: PreTrainedModel) -> list[LayerLeakage]:
    """Leakage of every decoder layer, on one text of `sample_token_ids`."""
    ids_1L = torch.tensor([sample_token_ids(model)], device=input_device(model))
    with without_autocast(model):
        calls = _record_calls(model, ids_1L)
        if missing := [layer.index for layer in get_layers(model) if layer.index not in calls]:
            raise LayerError(
                f"Layers {format_layers(missing)} of {type(model).__name__} did not run: a function in place of its "
                "forward runs another model, or leaves them out. Take it away, or give bellm a class with that forward."
            )
        return [_measure_layer(layer.module, *calls[layer.index]) for layer in get_layers(model)]


def check_open_layers(model: PreTrainedModel) -> None:
    """Raise a LayerError where an open layer stays causal, or a closed one sees the future.

    A model that passed in another process is not measured again, see `kept_checks`.
    """
    kept = KeptCheck("leakage", model)
    if kept.passed:
        return
    opened = set(get_open_layers(model))
    name = type(model).__name__
    try:
        measured = measure_leakage(model)
    except (RuntimeError, IndexError) as error:
        layers, reason = format_layers(sorted(opened)), " ".join(str(error).split())[:240]
        if isinstance(error, TorchDynamoException):
            reason = f"its attention cannot be compiled here ({reason}). Give attention='sdpa'."
        raise LayerError(f"{name} cannot run with layers {layers} open this way: {reason}") from error
    if any(math.isnan(leakage.future) for leakage in measured):
        refuse_non_finite(model)
    seen = {index for index, leakage in enumerate(measured) if leakage.future > tolerances(model.dtype).leakage}
    blind = opened - seen
    if stuck := [index for index in sorted(blind) if measured[index].past <= tolerances(model.dtype).leakage]:
        raise LayerError(
            f"Layers {format_layers(stuck)} of {name} see no other token, neither before nor after: their weights are "
            "constant, or so large that nothing else counts, as after a training that diverged. Load other weights, or "
            "train with a lower learning rate."
        )
    if blind:
        raise LayerError(
            f"Layers {format_layers(sorted(blind))} of {name} were opened but still do not see the future: this "
            "attention does not heed its mask (a built-in triangle, for instance). bellm will not pass it off as "
            "bidirectional."
        )
    if leaky := seen - opened:
        raise LayerError(
            f"Layers {format_layers(sorted(leaky))} of {name} see the future although they were not opened. The model "
            "is not causal to begin with; bellm cannot say what opening would mean."
        )
    kept.keep()


def sample_token_ids(model: PreTrainedModel) -> list[int]:
    """Token ids spread over the vocabulary, away from the special tokens at its start."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [(7 + 131 * index) % (vocabulary - 7) + 7 for index in range(NUM_SAMPLE_TOKENS)]


def _record_calls(model: PreTrainedModel, ids_1L: Tensor) -> dict[int, Arguments]:
    """Arguments of every decoder layer's call while the model runs on the text."""
    calls: dict[int, Arguments] = {}
    with ExitStack() as hooks:
        for layer in get_layers(model):

            def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = layer.index) -> None:
                calls[index] = args, kwargs

            handle = layer.module.register_forward_pre_hook(record, with_kwargs=True)
            hooks.callback(handle.remove)
        token_states(model, ids_1L, torch.ones_like(ids_1L))
    return calls


def _measure_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerLeakage:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    axis = list(hidden.shape).index(NUM_SAMPLE_TOKENS, 1)  # Some models have several streams of states.
    half = NUM_SAMPLE_TOKENS // 2 + 1  # Odd, so that chunks of even length straddle the halves.

    def run(changed: slice | None = None) -> Tensor:
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

    plain = run()
    scale = by_token(plain - hidden if plain.shape == hidden.shape else plain).clamp(min=1e-12)
    future = (by_token(run(slice(half, None)) - plain) / scale)[:half]
    past = (by_token(run(slice(half)) - plain) / scale)[half:]
    moved = torch.nonzero(future > 1e-5)
    return LayerLeakage(future.max().item(), past.max().item(), half - int(moved[0]) if len(moved) else 0)


class FutureAttention:
    """Measure how much attention each layer would pay to later tokens, a text at a time, on two shared copies."""

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
