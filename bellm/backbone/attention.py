"""Make attention layers of any decoder bidirectional, and causal again.

An open layer is an ordinary layer whose attention modules carry one forward pre-hook, which rewrites the causal mask of
the call into a bidirectional one (see `bellm.tensors.masks`). It keeps no state from call to call, so that threads,
gradient checkpointing, deepcopy, PEFT, torch.compile and torch.export work as without it.

The parallel variant runs two branches as two halves of one batch: rows 0..B-1 of the doubled batch are the causal
branch and skip open layers, rows B..2B-1 are the bidirectional branch and skip closed layers. The last layer adds the
halves, so that the final norm, the head and the caller get a batch of B.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel

from bellm.backbone.architecture import forward_parameters, get_decoder, get_layers
from bellm.backbone.hooks import Arguments, BellmHook, Model, causal_copy, hooks_of, remove_hooks
from bellm.errors import LayerError
from bellm.layer_spec import format_layers
from bellm.tensors.masks import bidirectional_mask
from bellm.types import Variant, Window

_READ_SQUARE_MASKS = ("sdpa", "flex_attention")


@dataclass
class BidirectionalMaskHook(BellmHook):
    """Forward pre-hook of an attention module that makes the causal mask of a call bidirectional."""

    keep_window: bool
    mask_position: int  # Index of `attention_mask` among the positional arguments.
    takes_is_causal: bool  # Whether the module passes `is_causal` on to its kernel.
    was_causal: bool | None = None  # The module's own `is_causal` while it was closed; None where it has none.

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the call's arguments with a bidirectional mask."""
        _refuse_cache(module, kwargs)
        positional = len(args) > self.mask_position
        mask = args[self.mask_position] if positional else kwargs.get("attention_mask")
        if mask is None and not self.takes_is_causal and self.was_causal is None:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = hidden.new_zeros(1, 1, hidden.shape[1], hidden.shape[1])
        mask = _bidirectional(mask, self.keep_window)
        if positional:
            args = (*args[: self.mask_position], mask, *args[self.mask_position + 1 :])
        else:
            kwargs = {**kwargs, "attention_mask": mask}
        return args, {**kwargs, "is_causal": False} if self.takes_is_causal else kwargs

    def undo(self, module: nn.Module) -> None:
        """Make the module causal again."""
        if self.was_causal is not None:
            vars(module)["is_causal"] = self.was_causal


@dataclass
class _BranchHook(BellmHook):
    """Forward hook of a decoder layer that applies it to its own branch's half of the batch alone."""

    is_open: bool
    is_last: bool  # The last layer adds the two branches.

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output if isinstance(output, Tensor) else output[0]
        half = len(before) // 2
        causal, bidirectional = (before[:half], after[half:]) if self.is_open else (after[:half], before[half:])
        hidden = causal + bidirectional if self.is_last else torch.cat([causal, bidirectional])
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


class _DoubleBatchHook(BellmHook):
    """Forward pre-hook of the decoder that repeats the batch."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        ids = args[0] if args else kwargs.get("input_ids")
        rows = len(kwargs["inputs_embeds"] if ids is None else ids)

        def twice(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
            return torch.cat([value, value]) if is_batch else value

        return tuple(map(twice, args)), {name: twice(value) for name, value in kwargs.items()}


def open_layers(
    model: Model, indices: Sequence[int], *, variant: Variant = "sequential", window: Window = "keep"
) -> Model:
    """Copy a model and make some layers bidirectional; both share every weight.

    The model itself stays as it is. Layers without attention stay causal; see `DecoderLayer.can_open`.

    Args:
        model: Any decoder-only model of transformers.
        indices: Layers to open; none gives a causal copy.
        variant: `sequential` opens layers in the stack. `parallel` runs the open layers as a branch of their own on
            the input embeddings and adds it to the branch of the other layers, the paper's literal equation
            (arXiv 2311.05296); a branch without layers adds nothing. It runs every layer on both branches' rows.
        window: Whether sliding windows and chunks stay.
    """
    copied = causal_copy(model)
    if not indices:
        return copied
    layers = get_layers(copied)
    if max(indices) >= len(layers):
        raise LayerError(f"Layer {max(indices)} does not exist: the model has {len(layers)} layers.")
    chosen = [layers[index] for index in indices if layers[index].can_open]
    if not chosen:
        raise LayerError(
            f"None of the layers {format_layers(indices)} has attention to open: "
            f"{', '.join(sorted({layers[index].kind for index in indices}))}. "
            f"Layers with attention: {format_layers([layer.index for layer in layers if layer.can_open])}."
        )
    for layer in chosen:
        for module in layer.attention:
            _open(module, keep_window=window == "keep")
    if variant == "parallel" and len(chosen) < len(layers):
        get_decoder(copied).register_forward_pre_hook(_DoubleBatchHook(), with_kwargs=True)
        for layer in layers:
            branch = _BranchHook(layer in chosen, layer is layers[-1])
            # Before transformers' own hook records the output.
            layer.module.register_forward_hook(branch, with_kwargs=True, prepend=True)
    return copied


def remove_branches(model: PreTrainedModel) -> bool:
    """Turn the parallel variant into the sequential one, in place; returns whether the model was parallel."""
    return remove_hooks(model, (_BranchHook, _DoubleBatchHook))


def get_open_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """Indices of the open layers."""
    return tuple(
        layer.index
        for layer in get_layers(model)
        if any(hooks_of(module, BidirectionalMaskHook) for module in layer.attention)
    )


def get_branch(layer: nn.Module) -> bool | None:
    """Whether a decoder layer is in the open branch of the parallel variant, or the causal one; None for no branch."""
    return next((hook.is_open for hook in hooks_of(layer).values() if isinstance(hook, _BranchHook)), None)


def _open(module: nn.Module, *, keep_window: bool) -> None:
    parameters = forward_parameters(module)
    takes_is_causal = "is_causal" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    mask_position = list(parameters).index("attention_mask")
    hook = BidirectionalMaskHook(keep_window, mask_position, takes_is_causal, vars(module).get("is_causal"))
    if hook.was_causal is not None:
        # Says no more than a mask does; modules choose their position encoding by other attributes.
        vars(module)["is_causal"] = False
    module.register_forward_pre_hook(hook, with_kwargs=True)
    if not keep_window:
        _let_kernels_ignore_windows()


def has_open_window(module: nn.Module) -> bool:
    """Whether an attention module was opened together with its window."""
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(hook, BidirectionalMaskHook) and not hook.keep_window for hook in hooks)


@dataclass(frozen=True)
class _WindowKernel:
    """An attention function that takes no window from a module whose window is open."""

    function: Callable[..., Any]

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if "sliding_window" in kwargs and has_open_window(module):
            kwargs["sliding_window"] = None
        return self.function(module, *args, **kwargs)


def _let_kernels_ignore_windows() -> None:
    """Wrap the kernels that read no square mask, such as flash attention, and are told the window by the module."""
    for name, function in list(AttentionInterface._global_mapping.items()):
        reads_window = name not in _READ_SQUARE_MASKS and not name.startswith("bellm")
        if reads_window and not isinstance(function, _WindowKernel):
            AttentionInterface.register(name, _WindowKernel(function))


def _bidirectional(mask: Any, keep_window: bool) -> Any:
    if isinstance(mask, dict):
        return {name: _bidirectional(part, keep_window) for name, part in mask.items()}
    if isinstance(mask, BlockMask):
        return _bidirectional_block_mask(mask, keep_window)
    if mask is None or mask.ndim < 4:
        return mask  # Flash attention: the mask is the padding alone, and `is_causal` decides.
    return bidirectional_mask(mask, keep_window=keep_window)


def _bidirectional_block_mask(block: BlockMask, keep_window: bool) -> BlockMask:
    causal = block.mask_mod

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        real_key = causal(batch, head, key, key)
        if not keep_window:
            return real_key
        padding_query = ~causal(batch, head, query, query)
        return real_key & (causal(batch, head, query, key) | causal(batch, head, key, query) | padding_query)

    batch, _, length, _ = block.shape
    return create_block_mask(mask_mod, batch, None, length, length, device=block.kv_indices.device)


def _refuse_cache(module: nn.Module, kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if cache is None or torch.compiler.is_compiling():
        return
    if cache.get_seq_length(getattr(module, "layer_idx", 0)):
        raise LayerError(
            "An open layer cannot read a growing KV cache: the tokens already cached would have to see the new ones. "
            "Generate with the causal model: `with encoder.causal() as model: model.generate(...)`."
        )
