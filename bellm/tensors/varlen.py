"""Packed attention by PyTorch's kernel for texts of any length, `torch.nn.attention.varlen` (torch 2.10 and later).

Shapes: N queries, M keys, K keys of all paths, H heads, G key heads, E width of a head.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from torch import Tensor

from bellm.tensors.packing import KernelRefusal, MaskSpec, Packing

varlen_attn: Callable[..., Any] | None = None
with suppress(ImportError):  # Of torch before 2.10.
    from torch.nn.attention.varlen import varlen_attn


def varlen_attention(
    packing: Packing, spec: MaskSpec, query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor, scaling: float
) -> Tensor:
    """As `Packing.attend`, by one kernel over all paths; paths that share rows get copies of their keys.

    Queries are the end of their path, as the kernel has it where a path has more keys than queries.

    Raises:
        KernelRefusal: This torch has no such kernel, or its kernel has no windows.
    """
    if varlen_attn is None:
        raise KernelRefusal("torch before 2.10 has no kernel for texts of any length")
    if value_MGE.shape[-1] != query_NHE.shape[-1]:
        raise KernelRefusal("keys and values differ in width")
    sequences, parameters = packing.sequences, _parameters(varlen_attn)
    key, value = sequences.keys_in_order(key_MGE), sequences.keys_in_order(value_MGE)
    options: dict[str, Any] = {}
    if "scale" in parameters:
        options["scale"] = scaling
    else:
        query_NHE = query_NHE * (scaling * query_NHE.shape[-1] ** 0.5)
    if "enable_gqa" in parameters:
        options["enable_gqa"] = query_NHE.shape[1] != key.shape[1]
    else:
        folds = query_NHE.shape[1] // key.shape[1]
        key, value = (table.repeat_interleave(folds, 1) for table in (key, value))
    if "window_size" in parameters:
        reach = -1 if spec.window is None else spec.window - 1
        options["window_size"] = (reach, 0 if spec.causal else reach)
    elif spec.window is None:
        options["is_causal"] = spec.causal
    else:
        raise KernelRefusal("the kernel of this torch has no windows, that of 2.12 has")
    output: Tensor = varlen_attn(
        query_NHE,
        key,
        value,
        sequences.query_starts,
        sequences.key_starts,
        sequences.most_queries,
        sequences.most_keys,
        **options,
    )
    return output


@cache
def _parameters(kernel: Callable[..., Tensor]) -> Mapping[str, inspect.Parameter]:
    """Parameters of the kernel, which versions of torch have more and more of."""
    return inspect.signature(kernel).parameters
