"""Packed attention as an attention function of transformers' attention interface.

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
        window = run.windows[run.layer]
        if sliding_window not in (None, window):
            raise NotPackableError(f"layer {run.layer} has windows of {window} and of {sliding_window}")
        spec, packing = MaskSpec(bool(causal), window), run.current.packing
        if base is not None and query.device.type == "cpu" and kwargs.get("position_bias") is None:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return packing.attend(spec, query_NHE, key_MGE, value_MGE, scaling)[None], None
        function = base or sys.modules[type(module).__module__].eager_attention_forward
        options = {"scaling": scaling, "is_causal": False, "sliding_window": sliding_window, **kwargs}

        def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            if base is None:  # Eager functions add their mask to the scores.
                mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
            output: Tensor = function(module, query, key, value, mask, **options)[0]
            return output

        return packing.attend_with(padded, spec, query_NHE, key_MGE, value_MGE)[None], None

    return attention


def _all_keys_values(run: ForwardPass, key_NGE: Tensor, value_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a layer's queries may see, the shared prefix's among them."""
    if run.all_key_values:
        return run.all_key_values
    run.key_values.append((key_NGE, value_NGE))
    if run.prefix and run.current is run.batch.shared:
        key_NGE = torch.cat([run.prefix.keys[run.layer], key_NGE])
        value_NGE = torch.cat([run.prefix.values[run.layer], value_NGE])
    if run.stop_at_keys:
        raise StopForward(key_NGE, value_NGE)
    return key_NGE, value_NGE


ATTENTION_FUNCTIONS = {"sdpa": _attention(sdpa_attention_forward), "eager": _attention(None)}
"""By the attention implementation that the model had."""
