"""Packed attention by FlexAttention, for what the kernel of `bellm.tensors.varlen` refuses.

Shapes: N queries, M keys, K keys of all paths, H heads, G key heads, E width of a head.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from bellm.tensors.packing import MaskSpec, Packing, Sequences
from bellm.tensors.placement import to_device

_BLOCK = 128


def flex_attention(
    packing: Packing,
    spec: MaskSpec,
    query_NHE: Tensor,
    key_MGE: Tensor,
    value_MGE: Tensor,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """As `Packing.attend`; scores are capped at `softcap` where it is given (Gemma 2)."""
    sequences = packing.sequences
    key, value = sequences.keys_in_order(key_MGE), sequences.keys_in_order(value_MGE)
    attend: Any = _compiled() if query_NHE.is_cuda else flex.flex_attention
    output: Tensor = attend(
        *(table.transpose(0, 1)[None] for table in (query_NHE, key, value)),
        block_mask=packing.once(spec, lambda: _block_mask(sequences, spec, query_NHE.device)),
        scale=scaling,
        enable_gqa=query_NHE.shape[1] != key.shape[1],
        score_mod=_cap(softcap) if softcap else None,
    )
    return output[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    """Uncompiled, it computes scores of all pairs of rows."""
    return torch.compile(flex.flex_attention, dynamic=True)


def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _block_mask(sequences: Sequences, spec: MaskSpec, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries meets, from the lengths of the paths, and which keys within."""
    num_queries, num_keys = np.array(sequences.num_queries), np.array(sequences.num_keys)
    paths = np.arange(len(num_queries))
    query_path_N, key_path_K = np.repeat(paths, num_queries), np.repeat(paths, num_keys)
    # Positions count from the beginning of a path, of which its queries are the end.
    query_N = np.arange(len(query_path_N)) + (np.cumsum(num_keys) - np.cumsum(num_queries))[query_path_N]
    first_key = np.cumsum(num_keys) - num_keys
    tables = (query_path_N, query_N, key_path_K)
    query_path, query_row, key_path = (to_device(table, device) for table in tables)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # `query_row` is where the key of the query itself stands among all keys.
        distance = key - query_row[query]
        seen = query_path[query] == key_path[key]
        if spec.causal:
            seen = seen & (distance <= 0)
        if spec.window is not None:
            seen = seen & (distance.abs() < spec.window)
        return seen

    starts = np.arange(0, len(query_path_N), _BLOCK)
    ends = np.minimum(starts + _BLOCK, len(query_path_N)) - 1
    last_key = first_key + num_keys - 1
    first = first_key[query_path_N[starts]] // _BLOCK
    count = last_key[query_path_N[ends]] // _BLOCK - first + 1
    num_blocks = -(-len(key_path_K) // _BLOCK)
    indices = (first[:, None] + np.arange(num_blocks)) % num_blocks  # Those after `count` are not read.
    counts_11Q, indices_11QK = (to_device(table.astype(np.int32)[None, None], device) for table in (count, indices))
    return BlockMask.from_kv_blocks(
        counts_11Q,
        indices_11QK,
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(len(query_path_N), len(key_path_K)),
    )
