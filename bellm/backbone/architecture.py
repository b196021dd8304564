"""Find a model's decoder, its layers, the attention modules of each layer, and its rotary frequencies."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bellm.errors import LayerError
from bellm.layer_spec import format_layers

# Softmax attention by the names in use; "lightning" and "delta" attention are linear recurrences.
_ATTENTION = re.compile(r"(?<!Lightning)(?<!Delta)(Attention\d*|MLA)$")
_MIXER = re.compile(r"(Mixer|Conv|DeltaNet|MambaLayer|RecurrentBlock|Attention)$")

MERGED = "bellm_merged_adapters"
"""Attribute of a model whose adapters were merged as it was loaded: what bits that gives depends on the device."""


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer."""

    index: int
    module: nn.Module
    attention: tuple[nn.Module, ...]
    """Its softmax-attention modules; empty for a recurrent, convolution or feed-forward layer."""
    kind: str
    """What the layer mixes tokens with: `full`, `sliding:W`, `chunked:W`, or the mixer's class name."""

    @property
    def can_open(self) -> bool:
        """Whether the layer has attention to open."""
        return bool(self.attention)


def get_text_config(model: PreTrainedModel) -> object:
    """Configuration of the text decoder, also inside a multimodal model."""
    return model.config.get_text_config(decoder=True)


def get_decoder(model: nn.Module) -> nn.Module:
    """The module that embeds ids and runs the decoder layers, without a language-model head."""
    return _find(model)[0]


def get_layers(model: PreTrainedModel) -> tuple[DecoderLayer, ...]:
    """All decoder layers, first to last; a LayerError where the model has no list of them."""
    config = get_text_config(model)
    stack = [(module, _attention_in(module)) for module in _find(model)[1]]
    return tuple(
        DecoderLayer(index, module, found, _attention_kind(index, found[0], config) if found else _mixer(module))
        for index, (module, found) in enumerate(stack)
    )


def layer_kinds(model: PreTrainedModel) -> dict[str, str]:
    """Layers of each kind, written as in `{"full": "0-29"}`."""
    layers = get_layers(model)
    kinds = dict.fromkeys(layer.kind for layer in layers)
    return {kind: format_layers([layer.index for layer in layers if layer.kind == kind]) for kind in kinds}


def count_layers(model: nn.Module) -> int:
    """Number of decoder layers."""
    return len(_find(model)[1])


def forward_parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of a module's forward, by name, without `self`.

    One of `*args` and `**kwargs` alone passes on what it gets: the parameters are those of the forward behind it.
    """
    classes = (vars(kind)["forward"] for kind in type(module).__mro__ if "forward" in vars(kind))
    for forward in (module.forward, *classes):
        parameters = dict(inspect.signature(forward).parameters)
        parameters.pop("self", None)
        if any(each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters.values()):
            break
    return parameters


def has_dynamic_frequencies(model: PreTrainedModel) -> bool:
    """Whether a forward pass of the model changes its rotary frequencies, so that two cannot run at once."""
    return any(kind in ("dynamic", "longrope") for kind, _ in _rope(model))


def longrope_short_context(model: PreTrainedModel) -> int | None:
    """Most tokens for which longrope (arXiv 2402.13753) takes its short factors; None where there is no longrope.

    transformers chooses by the longest text of a batch, and gives a short text next to a long one the long factors.
    """
    contexts = (config["original_max_position_embeddings"] for kind, config in _rope(model) if kind == "longrope")
    return min(contexts, default=None)


def _rope(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Kind and parameters of each rotary embedding."""
    for module in model.modules():
        kind: str | dict[str, str] | None = vars(module).get("rope_type")
        if kind is not None:
            parameters: Any = getattr(module.config, "rope_parameters", None) or {}
            if isinstance(kind, dict):  # By type of layer.
                yield from ((each, parameters.get(layer_type, {})) for layer_type, each in kind.items())
            else:
                yield kind, parameters


def _find(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The outermost module that takes token ids and holds a list of layers with attention."""
    for owner in model.modules():
        for stack in owner.children():
            if isinstance(stack, nn.ModuleList) and any(map(_attention_in, stack)):
                if "input_ids" in forward_parameters(owner):
                    return owner, stack
                break
    raise LayerError(
        f"{type(model).__name__} has no single list of decoder layers with attention: bellm opens attention layers, "
        "and purely recurrent or nested models have none."
    )


def _attention_in(layer: nn.Module) -> tuple[nn.Module, ...]:
    outermost: dict[str, nn.Module] = {}
    for name, module in layer.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in outermost)
        if name and not inner and _ATTENTION.search(type(module).__name__) and _takes_mask(module):
            outermost[name] = module
    return tuple(outermost.values())


def _takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in forward_parameters(module)


def _attention_kind(index: int, attention: nn.Module, config: object) -> str:
    kinds = getattr(config, "layer_types", None) or ()
    kind = str(kinds[index]) if index < len(kinds) else ""
    if "chunked" in kind:
        return f"chunked:{getattr(config, 'attention_chunk_size', '?')}"
    if kind and "sliding" not in kind:
        return "full" if kind in ("full_attention", "attention", "hybrid") else kind
    window = getattr(attention, "sliding_window", None) or getattr(config, "sliding_window", None)
    return f"sliding:{window}" if window else "full"


def _mixer(layer: nn.Module) -> str:
    """Class name of what mixes tokens in a layer without attention."""
    for module in layer.children():
        if _takes_mask(module) or _MIXER.search(type(module).__name__):
            return type(module).__name__
    return type(layer).__name__
