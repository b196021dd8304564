"""Hooks that bellm registers on a model, and copies of the model that share its weights."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers, get_text_config
from bellm.errors import SourceError

Model = TypeVar("Model", bound=PreTrainedModel)

RECORDS = "_output_capturing_hooks_installed"
"""Attribute of modules on which transformers installed hooks that record hidden states."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call, which a forward pre-hook returns."""


class BellmHook:
    """Base of the forward hooks and pre-hooks that bellm registers; `causal_copy` removes them all."""

    def undo(self, module: nn.Module) -> None:
        """Put back what registering the hook changed on its module."""


Kind = type[BellmHook] | tuple[type[BellmHook], ...]


def shared_copy(model: Model) -> Model:
    """Copy a model with its hooks; both share every parameter and buffer.

    Hooks that transformers installs when it is first asked for hidden states stay behind: they cannot be pickled, and
    it installs them again where they are needed.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        vars(module).pop(RECORDS, None)
        for number, hook in list(module._forward_hooks.items()):
            if is_recorder(hook):
                del module._forward_hooks[number]
    return copied


def is_recorder(hook: object) -> bool:
    """Whether a hook is one by which transformers records hidden states."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def moved_copy(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """Copy a model with its hooks to a device and dtype, as if it had been loaded so.

    Buffers that no checkpoint holds, such as rotary frequencies, keep their precision.

    Raises:
        SourceError: The weights are quantized, or on several devices.
    """
    if getattr(model, "is_quantized", False) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise SourceError(
            "A model with quantized weights, or on several devices, cannot be moved. Load it with the device or dtype."
        )
    saved = set(map(id, model.state_dict(keep_vars=True).values()))
    moved: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        is_converted = tensor.is_floating_point() and id(tensor) in saved
        other = tensor.detach().to(device, dtype if is_converted else None)
        moved[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    return copy.deepcopy(model, moved)


def causal_copy(model: Model) -> Model:
    """Copy a model, causal: without bellm's hooks, and whatever its configuration says; both share every weight."""
    copied = shared_copy(model)
    remove_hooks(copied, BellmHook)
    if is_bidirectional_by_config(copied):
        config: Any = get_text_config(copied)
        config.is_causal = True
        if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
            config.use_bidirectional_attention = None
        for module in (module for layer in get_layers(copied) for module in layer.attention):
            if "is_causal" in vars(module):
                vars(module)["is_causal"] = True
    return copied


def is_bidirectional_by_config(model: PreTrainedModel) -> bool:
    """Whether transformers runs every layer both ways, as of `is_causal` or `use_bidirectional_attention` (Gemma)."""
    config: Any = get_text_config(model)
    return not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None) in (
        True,
        "all",
    )


def remove_hooks(model: nn.Module, kind: Kind) -> bool:
    """Remove bellm's hooks of a kind from all modules of a model, in place; returns whether there were any."""
    hooks = [(module, key, hook) for module in model.modules() for key, hook in hooks_of(module, kind).items()]
    for module, key, hook in hooks:
        for table in (
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
        ):
            table.pop(key, None)
        hook.undo(module)
    return bool(hooks)


def hooks_of(module: nn.Module, kind: Kind = BellmHook) -> dict[int, BellmHook]:
    """Bellm's hooks of a kind on one module, by torch's key of each."""
    hooks: dict[int, object] = {**module._forward_pre_hooks, **module._forward_hooks}
    return {key: hook for key, hook in hooks.items() if isinstance(hook, kind)}
