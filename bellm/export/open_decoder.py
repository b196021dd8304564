"""A decoder some of whose attention layers look both ways: those that `config.json` lists as `open_attention`.

Weights and classes are those of transformers. Each open attention module has a hook that replaces the causal mask of a
call by a symmetric one: two tokens see each other wherever causal attention lets one see the other. Written by bellm.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig as BaseConfig
from transformers import LlamaModel as BaseModel


class OpenDecoderConfig(BaseConfig):  # type: ignore[misc]
    """The configuration of the base model, with the names of the open attention modules."""

    model_type = "bellm_llama"


class OpenDecoder(BaseModel):  # type: ignore[misc]
    """The base model with open attention layers."""

    config_class = OpenDecoderConfig

    def __init__(self, config: Any) -> None:
        """Open the attention modules that the configuration names."""
        super().__init__(config)
        for name in config.open_attention:
            _open(self.get_submodule(name), config.keep_window)


def _symmetric(mask: Tensor, keep_window: bool) -> Tensor:
    """Make a causal mask (..., query, key) symmetric, except for padding; booleans, or numbers that are added."""
    additive = mask.is_floating_point()
    allowed = mask > torch.finfo(mask.dtype).min / 2 if additive else mask.bool()
    seen = allowed.diagonal(dim1=-2, dim2=-1)[..., None, :].expand_as(allowed)  # Every real token sees itself.
    if keep_window:
        near = seen & (allowed | allowed.mT)
        seen = near | (seen & ~near.any(-1, keepdim=True))  # No row is empty, not that of padding either.
    if not additive:
        return seen.to(mask.dtype)
    bias = mask.diagonal(dim1=-2, dim2=-1)[..., None, :].expand_as(mask)  # What depends on the key alone, as ALiBi.
    return bias.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _open(module: nn.Module, keep_window: bool) -> None:
    parameters = dict(inspect.signature(module.forward).parameters)
    takes_is_causal = "is_causal" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    position = list(parameters).index("attention_mask")
    has_switch = "is_causal" in vars(module)
    if has_switch:
        vars(module)["is_causal"] = False

    def make_bidirectional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length(getattr(module, "layer_idx", 0)):
            raise ValueError("An open layer cannot read a growing KV cache: this model embeds, and cannot generate.")
        backend = str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
        if "flex" in backend or ("flash" in backend and not keep_window):
            raise ValueError(f"attn_implementation={backend!r} does not fit this model: take 'sdpa' or 'eager'.")
        mask = args[position] if len(args) > position else kwargs.get("attention_mask")
        if mask is None and not (takes_is_causal or has_switch):
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = hidden.new_zeros(1, 1, hidden.shape[1], hidden.shape[1])
        if mask is not None and mask.ndim == 4:
            mask = _symmetric(mask, keep_window)
        if len(args) > position:
            args = (*args[:position], mask, *args[position + 1 :])
        else:
            kwargs = {**kwargs, "attention_mask": mask}
        return args, {**kwargs, "is_causal": False} if takes_is_causal else kwargs

    module.register_forward_pre_hook(make_bidirectional, with_kwargs=True)
