"""Routing weights of a mixture of experts: its routers, and the share that each expert gets of each token.

Shapes: B batch, L tokens, N tokens of a layer's input, E experts of a layer, F experts of all layers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers, get_text_config
from bellm.backbone.attention import get_open_layers
from bellm.backbone.hooks import shared_copy
from bellm.backbone.states import input_device, token_states
from bellm.errors import BellmError
from bellm.layer_spec import format_layers

_NAMES = re.compile(r"(gate|router|wg)$")
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

_num_experts: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Router:
    """A module that gives each token a number for each expert."""

    layer: int
    module: nn.Module
    output: int | None
    """Which of its outputs the logits are, as transformers declares; None for a matrix whose product they are."""


def find_routers(model: PreTrainedModel) -> tuple[Router, ...]:
    """Routers of all layers, first to last; none where the model is dense.

    transformers declares them for `output_router_logits`. In a model without that declaration they are found by name
    and shape: a matrix of experts by width that is called gate or router.
    """
    declarations = _declarations(model)

    def routers_of(layer: nn.Module) -> Iterator[tuple[nn.Module, int | None]]:
        return _declared(declarations, layer) if declarations else _named(model, layer)

    return tuple(Router(layer.index, *found) for layer in get_layers(model) for found in routers_of(layer.module))


def get_routers(model: PreTrainedModel) -> tuple[Router, ...]:
    """As `find_routers`; a BellmError where the model is dense."""
    if not (routers := find_routers(model)):
        raise BellmError(
            f"readout='routing' reads the routers of a mixture of experts, and {type(model).__name__} has none. Take "
            "readout='hidden', or a model with experts."
        )
    return routers


def dense_layers(model: PreTrainedModel) -> str:
    """Layers without a router, as a layer spec; `none` where all have one."""
    routed = {router.layer for router in get_routers(model)}
    return format_layers([layer.index for layer in get_layers(model) if layer.index not in routed])


def count_experts(model: PreTrainedModel) -> int:
    """Experts of all layers, F; measured on one token, once for a model."""
    if model not in _num_experts:
        ids_BL = torch.ones(1, 1, dtype=torch.long, device=input_device(model))
        recorder = RoutingRecorder(model)
        with torch.inference_mode(), recorder.recording(ids_BL) as weights:
            token_states(recorder.model, ids_BL, torch.ones_like(ids_BL))
        _num_experts[model] = sum(weights_BLE.shape[-1] for weights_BLE in weights)
    return _num_experts[model]


def routing_weights(router: nn.Module, args: tuple[Any, ...], output: Any, index: int | None) -> Tensor:
    """Softmax over all experts, float32 (N, E), of what a router was called with and returned."""
    if index is None:
        logits = functional.linear(args[0].float(), router.get_parameter("weight").float(), _bias(router))
    else:
        logits = output[index] if isinstance(output, tuple) else output
    weights = logits.float().softmax(-1)
    return weights.reshape(-1, weights.shape[-1])


class RoutingRecorder:
    """A copy of a model, on its weights, that records the routing weights of padded batches; one call at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Copy the model and hook the routers of the copy."""
        self.model = shared_copy(model)
        self._recorded: list[tuple[int, Tensor]] = []
        self._open = get_open_layers(model)
        for router in get_routers(self.model):
            record = partial(_record, self._recorded, router.layer, router.output)
            router.module.register_forward_hook(record)

    @contextmanager
    def recording(self, ids_BL: Tensor) -> Iterator[list[Tensor]]:
        """Give a list which holds, after a forward pass of these ids, the weights (B, L, E) of each router."""
        self._recorded.clear()  # What an interrupted call left.
        weights: list[Tensor] = []
        yield weights
        for layer, weights_NE in self._recorded:
            # In the parallel variant a layer's own branch is one half of the batch.
            halves = torch.split(weights_NE.to(ids_BL.device), ids_BL.numel())
            weights.append(halves[-1 if layer in self._open else 0].reshape(*ids_BL.shape, -1))
        self._recorded.clear()


def _record(
    recorded: list[tuple[int, Tensor]],
    layer: int,
    index: int | None,
    router: nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> None:
    recorded.append((layer, routing_weights(router, args, output, index)))


def _declarations(model: PreTrainedModel) -> list[tuple[type[nn.Module], int]]:
    """Classes of routers and which output of each the logits are, as the decoder declares them."""
    declared: Any = (getattr(get_decoder(model), "_can_record_outputs", None) or {}).get("router_logits")
    recorders: list[Any] = declared if isinstance(declared, list) else [declared] if declared else []
    # A class that is declared alone stands for its second output.
    return [(getattr(each, "target_class", each), getattr(each, "index", 1)) for each in recorders]


def _declared(declarations: list[tuple[type[nn.Module], int]], layer: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    kinds = tuple(kind for kind, _ in declarations)
    for module in layer.modules():
        # Of JetMoe's, one class holds the other, which gives the same logits.
        if isinstance(module, kinds) and not any(isinstance(inner, kinds) for inner in list(module.modules())[1:]):
            yield module, next(index for kind, index in declarations if isinstance(module, kind))


def _named(model: PreTrainedModel, layer: nn.Module) -> Iterator[tuple[nn.Module, None]]:
    config = get_text_config(model)
    numbers = {getattr(config, name, None) for name in _NUM_EXPERTS}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if _NAMES.search(name) and isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) in numbers:
            yield module, None


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.float() if isinstance(bias, Tensor) else None
