"""Inputs and state of a packed forward pass, and its attention function for transformers' attention interface.

Shapes: M tokens of the decoder's input, N tokens of a layer's input, H heads, G key heads, E width of a head, D width,
P tokens of the shared prefix, C rows that take logits.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bellm.backbone.attention import has_open_window
from bellm.errors import LayerError
from bellm.tensors.flex import flex_attention
from bellm.tensors.packing import KernelRefusal, MaskSpec, Packing
from bellm.tensors.varlen import varlen_attention


class NotPackableError(LayerError):
    """A model whose texts cannot be laid end to end; the message says why."""


AttentionKernel = Literal["blocks", "varlen", "flex", "padded"]
"""What computes attention along the paths of a batch."""


def attention_kernels(attention: str, device: torch.device) -> tuple[AttentionKernel, ...]:
    """Kernels for a model's attention implementation on a device, the fastest first.

    `blocks` is bellm's own, whose scores stay in a CPU's caches; `varlen` and `flex` are PyTorch's; `padded` pads paths
    of similar length and calls the function that the model had. Whether a kernel can, it says when it runs.
    """
    if device.type == "cpu":
        return ("blocks",) if attention == "sdpa" else ("padded",)
    if device.type != "cuda":
        return ("padded",)
    return ("varlen", "flex", "padded") if attention == "sdpa" else ("flex", "padded")


@dataclass(frozen=True)
class LayerRange:
    """Input of a range of consecutive layers."""

    rows_N: Tensor | None  # Their tokens among the decoder's (for `pooled`, among the previous range's); None for all.
    packing: Packing  # Each text as a path through the shared prefix, if there is one, and these rows.


@dataclass(frozen=True)
class PackedBatch:
    """Texts of one forward pass, laid end to end."""

    ids_M: Tensor  # Tokens of the shared prefix, then those of the batch.
    positions_M: Tensor
    shared: LayerRange  # Below the first open layer: common prefixes once.
    whole: LayerRange | None  # From the first open layer on: every text in full. None if no layer or layer 0 is open.
    pooled: LayerRange | None  # Queries of the last layer; None where all states are read.


TapKey = tuple[Literal["state", "router"], int]
"""Number of a state, or of a router among all routers."""

Tapped = dict[TapKey, Tensor]
"""What is read of a pass besides its last states, a row for each token of the current layer range."""


@dataclass(frozen=True)
class SharedPrefix:
    """Prefix of all texts, computed once: in causal layers nothing after it changes it."""

    keys: tuple[Tensor, ...]  # Keys of each layer below the first open one, (P, G, E).
    values: tuple[Tensor, ...]
    states_PD: Tensor  # Input of the first open layer; the last states where no layer is open.
    other_branch_PD: Tensor | None  # The same of the other branch; None without branches or open layers.
    tapped: "Tapped"  # What was tapped of its tokens, each (P, width).


@dataclass(frozen=True)
class LayerState:
    """Input of a layer for a batch: the same for every model of the same weights that is causal below it."""

    layer: int
    states_ND: Tensor  # Common prefixes once, without the prefix of all texts.


@dataclass
class ForwardPass:
    """State of one forward pass."""

    batch: PackedBatch
    prefix: SharedPrefix | None
    stop: int  # Stop before this layer; the depth for the model's own end.
    kernel: AttentionKernel
    current: LayerRange
    layer: int = 0
    window: int | None = None  # Of the current layer.
    key_values: list[tuple[Tensor, Tensor]] | None = None  # Of the layers so far; None where nobody asks for them.
    all_key_values: tuple[Tensor, Tensor] | None = None  # Of all rows, while only pooled rows have queries.
    stop_at_keys: bool = False
    taps: frozenset[TapKey] = frozenset()
    tapped: Tapped = field(default_factory=dict)
    checkpoints: bool = False  # Keep only the states between layers for autograd, and compute the rest again.
    logit_rows_C: Tensor | None = None  # Last states that the language-model head gets; None without a head.
    start: int = 0  # First layer to run.
    start_states_ND: Tensor | None = None  # Its input; None for the token embeddings.
    first_open_input_ND: Tensor | None = None  # Input of the first open layer, common prefixes once.
    # States of the branch that the current layer is not in; None without branches, or once they are added.
    other_branch_ND: Tensor | None = None
    other_branch_is_open: bool = True

    def add_branches(self, states_ND: Tensor) -> Tensor:
        """Sum of both branches' states."""
        return states_ND if self.other_branch_ND is None else states_ND + self.other_branch_ND

    def tap(self, key: TapKey, values_ND: Tensor) -> None:
        """Keep values of the current layer range if they are asked for."""
        if key in self.taps:
            self.tapped[key] = values_ND


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass early, with the tensors that were wanted."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


current_pass: ContextVar[ForwardPass] = ContextVar("current_pass")


def _attention(base: Callable[..., Any] | None) -> Callable[..., tuple[Tensor, None]]:
    """Packed version of an attention function; `base` (None: the model's own eager one) computes padded groups."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None or len(query) != 1:
            raise NotPackableError("its attention wants a mask of its own")
        run = current_pass.get()
        # (1, heads, rows, E) as transformers has them to (rows, heads, E).
        query_NHE = query[0].transpose(0, 1)
        key_MGE, value_MGE = _all_keys_values(run, key[0].transpose(0, 1), value[0].transpose(0, 1))
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if sliding_window not in (None, run.window) and not has_open_window(module):
            raise NotPackableError(f"layer {run.layer} has windows of {run.window} and of {sliding_window}")
        spec, packing = MaskSpec(bool(causal), run.window), run.current.packing
        if run.kernel != "padded" and kwargs.get("position_bias") is None:
            tables = query_NHE, key_MGE, value_MGE, query.shape[-1] ** -0.5 if scaling is None else scaling
            output_NHE = _attend(run.kernel, packing, spec, *tables, kwargs.get("softcap"), kwargs.get("s_aux"))
            return output_NHE[None].contiguous(), None  # As from transformers' functions: some models view it.
        function = base or sys.modules[type(module).__module__].eager_attention_forward
        options = {"scaling": scaling, "is_causal": False, "sliding_window": run.window, **kwargs}

        def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            if base is None:  # Eager functions add their mask to the scores.
                mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
            output: Tensor = function(module, query, key, value, mask, **options)[0]
            return output

        return packing.attend_with(padded, spec, query_NHE, key_MGE, value_MGE)[None], None

    return attention


def _attend(
    kernel: AttentionKernel,
    packing: Packing,
    spec: MaskSpec,
    query_NHE: Tensor,
    key_MGE: Tensor,
    value_MGE: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention along paths, (N, H, E); a KernelRefusal where the kernel cannot compute it."""
    tables = packing, spec, query_NHE, key_MGE, value_MGE, scaling
    if sinks is not None:
        raise KernelRefusal("this model's attention has sinks")
    if kernel == "flex":
        return flex_attention(*tables, softcap)
    if softcap is not None:
        raise KernelRefusal("this model's attention caps its scores")
    return varlen_attention(*tables) if kernel == "varlen" else packing.attend(*tables[1:])


def _all_keys_values(run: ForwardPass, key_NGE: Tensor, value_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a layer's queries may see, the shared prefix's among them."""
    if run.all_key_values:
        return run.all_key_values
    if run.key_values is not None:
        run.key_values.append((key_NGE, value_NGE))
    if run.prefix and run.current is run.batch.shared:
        key_NGE = torch.cat([run.prefix.keys[run.layer], key_NGE])
        value_NGE = torch.cat([run.prefix.values[run.layer], value_NGE])
    if run.stop_at_keys:
        raise StopForward(key_NGE, value_NGE)
    return key_NGE, value_NGE


ATTENTION_FUNCTIONS = {"sdpa": _attention(sdpa_attention_forward), "eager": _attention(None)}
"""By the attention implementation that the model had."""
