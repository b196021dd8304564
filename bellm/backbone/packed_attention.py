"""Attention along the paths of a packing, as an attention function that transformers calls in place of its own.

Shapes: N queries, M keys, H heads, G key heads, E width of a head.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bellm.backbone.packed_batch import ForwardPass, NotPackableError, StopForward, current_pass
from bellm.tensors.packing import MaskSpec


def _attention(base: Callable[..., Any] | None) -> Callable[..., tuple[Tensor, None]]:
    """An attention function of transformers for packed rows; `base` (None: the model's eager one) does padded ones."""

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
        key_MGE, value_MGE = _seen(run, key[0].transpose(0, 1), value[0].transpose(0, 1))
        query_NHE = query[0].transpose(0, 1)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        window = run.windows[run.layer]
        if sliding_window not in (None, window):
            raise NotPackableError(f"layer {run.layer} has windows of {window} and of {sliding_window}")
        reach = MaskSpec(bool(causal), window)
        packing = run.stage.packing
        if base is not None and query.device.type == "cpu" and kwargs.get("position_bias") is None:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return packing.attend(reach, query_NHE, key_MGE, value_MGE, scaling)[None], None
        function = base or sys.modules[type(module).__module__].eager_attention_forward

        def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            if base is None:
                mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
            answer: Tensor = function(
                module,
                query,
                key,
                value,
                mask,
                scaling=scaling,
                is_causal=False,
                sliding_window=sliding_window,
                **kwargs,
            )[0]
            return answer

        return packing.attend_with(padded, reach, query_NHE, key_MGE, value_MGE)[None], None

    return attention


def _seen(run: ForwardPass, key_NGE: Tensor, value_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a layer's queries may see, the beginning's among them."""
    if run.answers_for:
        return run.answers_for
    run.kept.append((key_NGE, value_NGE))
    if run.beginning and run.stage is run.batch.shared:
        key_NGE = torch.cat([run.beginning.keys[run.layer], key_NGE])
        value_NGE = torch.cat([run.beginning.values[run.layer], value_NGE])
    if run.stops_at_keys:
        raise StopForward(key_NGE, value_NGE)
    return key_NGE, value_NGE


ATTENTION_FUNCTIONS = {"sdpa": _attention(sdpa_attention_forward), "eager": _attention(None)}
"""By the attention implementation that the model had."""
