"""Packed (padding-free) attention over texts laid end to end.

Every token has one row, whichever texts it belongs to. A text is a path: the rows of its tokens, first to last. Texts
with a common prefix share the rows of that prefix, and only one of them computes its queries.

Shapes: N queries, M keys, B texts of a group, Q queries and K keys of the longest of them, H heads, G key heads,
E width of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bellm.tensors.placement import to_device

Indices = NDArray[np.int64]
Built = TypeVar("Built")

_BLOCK = 64
"""Queries of one product: their scores stay in a core's cache, and keys after the last visible one are left out."""

_KEY_MULTIPLE = 16
"""Numbers of keys are rounded up to multiples of this: vector units handle a remainder one by one."""


class KernelRefusal(Exception):  # noqa: N818 - another kernel computes it, nothing is wrong
    """A kernel cannot compute this attention; the message says why."""


@dataclass(frozen=True)
class MaskSpec:
    """Which keys of its path a query may see."""

    causal: bool  # None after it.
    window: int | None = None  # Only those less than so many tokens away.


@dataclass(frozen=True)
class TokenPath:
    """The tokens of one text, and those whose attention is computed for it."""

    keys: Indices  # Row of each of its tokens, by position.
    queries: Indices  # Rows of its queries: the end of the path; another path computes those of a shared prefix.


@dataclass(frozen=True)
class Sequences:
    """Paths end to end, for kernels that take texts of any length.

    `starts` tables are int32 and have one entry more than there are paths.
    """

    keys_K: Tensor | None  # Row of each key, path after path; None where rows are in this order already.
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int  # Of a path.
    most_keys: int
    num_queries: list[int]  # Of each path, on the host.
    num_keys: list[int]

    @classmethod
    def of(cls, paths: Sequence[TokenPath], device: torch.device) -> "Sequences":
        """The tables of paths whose queries are in the order of the rows."""
        num_queries, num_keys = [len(path.queries) for path in paths], [len(path.keys) for path in paths]
        queries, keys = np.concatenate([path.queries for path in paths]), np.concatenate([path.keys for path in paths])
        assert np.array_equal(queries, np.arange(len(queries)))
        query_starts, key_starts = (np.cumsum([0, *counts], dtype=np.int32) for counts in (num_queries, num_keys))
        return cls(
            keys_K=None if np.array_equal(keys, queries) else to_device(keys, device),
            query_starts=to_device(query_starts, device),
            key_starts=to_device(key_starts, device),
            most_queries=max(num_queries),
            most_keys=max(num_keys),
            num_queries=num_queries,
            num_keys=num_keys,
        )

    def keys_in_order(self, table_MGE: Tensor) -> Tensor:
        """Keys or values, path after path, (K, G, E)."""
        return table_MGE if self.keys_K is None else table_MGE.index_select(0, self.keys_K)


@dataclass(frozen=True)
class QueryBlock:
    """Some queries of a group, and which keys they may see."""

    queries: slice
    num_keys: int  # Keys that any of the queries may see.
    first_masked: int  # Keys before this one are visible to all of the queries.
    mask_B1QK: Tensor | None  # Additive mask of the keys from `first_masked` on; None where all are visible.


@dataclass(frozen=True)
class PathGroup:
    """Paths of similar length, padded to one shape for attention alone."""

    queries_BQ: Tensor  # Rows of the queries; row 0 where padded, as in `keys_BK`.
    keys_BK: Tensor
    positions_BQ: Tensor  # Position of each query in its path.
    lengths_B: Tensor  # Number of keys of each path.

    def allowed(self, spec: MaskSpec) -> Tensor:
        """Which keys each query may see, (B, Q, K)."""
        key_K = torch.arange(self.keys_BK.shape[1], device=self.keys_BK.device)
        allowed_BQK = (key_K < self.lengths_B[:, None])[:, None]
        offset_BQK = key_K - self.positions_BQ[..., None]
        if spec.causal:
            allowed_BQK = allowed_BQK & (offset_BQK <= 0)
        if spec.window is not None:
            allowed_BQK = allowed_BQK & (offset_BQK.abs() < spec.window)
        allowed_BQK = allowed_BQK.expand_as(offset_BQK)
        # A query that pads the group sees the first key, so that no softmax is empty.
        return allowed_BQK | (~allowed_BQK.any(-1, keepdim=True) & (key_K == 0))


class Packing:
    """Paths whose queries together are the rows 0 to N-1, each once; the tables of each way to attend are made once.

    All layers with one layer range share them. Tables go to an accelerator without the host waiting for it.
    """

    def __init__(self, paths: Sequence[TokenPath], device: torch.device, *, one_kernel: bool = True) -> None:
        """Take paths, in the order of their queries.

        Args:
            paths: One or more; each has a query.
            device: Where attention is computed.
            one_kernel: Whether a text alone may go through a kernel whose sums depend on the number of threads.
        """
        self.paths, self._device, self._one_kernel = paths, device, one_kernel
        self._made: dict[object, Any] = {}

    @cached_property
    def sequences(self) -> Sequences:
        """The paths end to end, for kernels that take texts of any length."""
        return Sequences.of(self.paths, self._device)

    @cached_property
    def _padded(self) -> tuple[list[PathGroup], Tensor]:
        """Paths of similar length in groups, and the index of each query among the slots (B * Q) of all groups."""
        groups: list[PathGroup] = []
        slots = np.empty(sum(len(path.queries) for path in self.paths), dtype=np.int64)
        num_slots = 0
        for members in _group_by_length(self.paths):
            width, depth = max(len(path.queries) for path in members), _round_up(len(members[0].keys))
            queries, keys = (np.zeros((len(members), size), dtype=np.int64) for size in (width, depth))
            for member, path in enumerate(members):
                queries[member, : len(path.queries)] = path.queries
                keys[member, : len(path.keys)] = path.keys
                slots[path.queries] = num_slots + member * width + np.arange(len(path.queries))
            lengths = np.array([len(path.keys) for path in members])
            firsts = lengths - [len(path.queries) for path in members]  # Queries are the end of their path.
            positions = np.minimum(firsts[:, None] + np.arange(width), lengths[:, None] - 1)
            groups.append(PathGroup(*(to_device(table, self._device) for table in (queries, keys, positions, lengths))))
            num_slots += queries.size
        return groups, to_device(slots, self._device)

    @property
    def groups(self) -> list[PathGroup]:
        """Paths of similar length, padded to one shape."""
        return self._padded[0]

    @cached_property
    def is_one_text(self) -> bool:
        """Whether all keys are those of one text, in its order, and may go through one kernel."""
        path = self.paths[0]
        return (
            self._one_kernel
            and len(self.paths) == 1
            and all(np.array_equal(rows, np.arange(len(rows))) for rows in (path.keys, path.queries))
        )

    def once(self, key: object, make: Callable[[], Built]) -> Built:
        """What `make` gives, made for the first of all layers that ask for the same key."""
        if key not in self._made:
            self._made[key] = make()
        made: Built = self._made[key]
        return made

    def blocks(self, spec: MaskSpec, dtype: torch.dtype) -> list[list[QueryBlock]]:
        """Blocks of every group with their masks."""
        return self.once((spec, dtype), lambda: [_blocks(group, spec, dtype) for group in self.groups])

    def attend(self, spec: MaskSpec, query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor, scaling: float) -> Tensor:
        """Softmax attention of every query along its path on a CPU, (N, H, E of the values).

        Args:
            spec: Which keys a query may see.
            query_NHE: Queries.
            key_MGE: Keys; H / G query heads share each key head.
            value_MGE: Values.
            scaling: Factor of the scores, before the softmax.
        """
        if self.is_one_text:
            return _attend_alone(self.groups[0], spec, query_NHE, key_MGE, value_MGE, scaling)
        query_NHE = query_NHE * scaling
        outputs = [
            _attend(group, blocks, query_NHE, key_MGE, value_MGE)
            for group, blocks in zip(self.groups, self.blocks(spec, query_NHE.dtype), strict=True)
        ]
        return torch.cat(outputs).index_select(0, self._padded[1])

    def attend_with(
        self,
        padded: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        spec: MaskSpec,
        query_NHE: Tensor,
        key_MGE: Tensor,
        value_MGE: Tensor,
    ) -> Tensor:
        """As `attend`, by an attention function for padded texts.

        Args:
            padded: Takes queries (B, H, Q, E), keys and values (B, G, K, E) and a mask (B, 1, Q, K), True where a
                query may see; returns (B, Q, H, E).
            spec: Which keys a query may see.
            query_NHE: Queries.
            key_MGE: Keys.
            value_MGE: Values.
        """
        outputs: list[Tensor] = []
        for group in self.groups:
            query = query_NHE[group.queries_BQ].transpose(1, 2)
            key, value = (table[group.keys_BK].transpose(1, 2) for table in (key_MGE, value_MGE))
            outputs.append(padded(query, key, value, group.allowed(spec)[:, None]).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self._padded[1])


def _attend_alone(
    group: PathGroup, spec: MaskSpec, query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor, scaling: float
) -> Tensor:
    """Attention of one text in the order of its rows, (N, H, E): one kernel is less work than products and copies."""
    width, length = len(query_NHE), len(key_MGE)
    sees_all = spec.window is None or spec.window >= length
    causal = sees_all and spec.causal and width == length
    mask_1QK = None if sees_all and (causal or not spec.causal or width == 1) else group.allowed(spec)[..., :length]
    query, key, value = (table.transpose(0, 1)[None] for table in (query_NHE, key_MGE, value_MGE))
    gqa = query.shape[1] != key.shape[1]
    output = functional.scaled_dot_product_attention(
        query, key, value, mask_1QK, is_causal=causal, scale=scaling, enable_gqa=gqa
    )
    return output[0].transpose(0, 1)


def _round_up(num_keys: int) -> int:
    return -(-num_keys // _KEY_MULTIPLE) * _KEY_MULTIPLE


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two rows."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def split_by_length(rows: Sequence[int], lengths: Sequence[int], context: int | None) -> list[list[int]]:
    """Rows longer than a context, and the others; without empty parts, and all together without a context."""
    longer = [row for row in rows if context is not None and lengths[row] > context]
    within = [row for row in rows if context is None or lengths[row] <= context]
    return [part for part in (longer, within) if part]


def _group_by_length(paths: Sequence[TokenPath]) -> list[list[TokenPath]]:
    """Longest first; no path is shorter than two thirds of the longest of its group."""
    groups: list[list[TokenPath]] = []
    for path in sorted(paths, key=lambda path: (-len(path.keys), -len(path.queries))):
        if not groups or 3 * len(path.keys) < 2 * len(groups[-1][0].keys):
            groups.append([])
        groups[-1].append(path)
    return groups


def _blocks(group: PathGroup, spec: MaskSpec, dtype: torch.dtype) -> list[QueryBlock]:
    allowed_BQK = group.allowed(spec)
    all_QK, any_QK = allowed_BQK.all(0), allowed_BQK.any(0)
    width = allowed_BQK.shape[1]
    blocks = []
    for start in range(0, width, _BLOCK):
        queries = slice(start, min(start + _BLOCK, width))
        num_keys = _round_up(int(torch.nonzero(any_QK[queries].any(0))[-1]) + 1)
        masked = torch.nonzero(~all_QK[queries, :num_keys].all(0))
        first_masked = int(masked[0]) if len(masked) else num_keys
        part_BQK = allowed_BQK[:, queries, first_masked:num_keys]
        mask = part_BQK.new_zeros(part_BQK.shape, dtype=dtype).masked_fill(~part_BQK, -torch.inf)
        blocks.append(QueryBlock(queries, num_keys, first_masked, mask[:, None] if len(masked) else None))
    return blocks


def _attend(
    group: PathGroup, blocks: Sequence[QueryBlock], query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor
) -> Tensor:
    """Attention of a group's slots, (B*Q, H, E)."""
    texts, width = group.queries_BQ.shape
    depth = group.keys_BK.shape[1]
    heads, key_heads = query_NHE.shape[1], key_MGE.shape[1]
    folds = heads // key_heads
    # The heads that share a key head become rows of one product, so that no key is copied for them.
    query = query_NHE.index_select(0, group.queries_BQ.flatten())
    query = query.view(texts, width, key_heads, folds, -1).permute(0, 2, 3, 1, 4)
    key, value = (
        table.index_select(0, group.keys_BK.flatten()).view(texts, depth, key_heads, -1).transpose(1, 2)
        for table in (key_MGE, value_MGE)
    )
    key, value = key.flatten(0, 1).mT, value.flatten(0, 1)
    output = query.new_empty(texts, width, key_heads, folds, value.shape[-1])
    for block in blocks:
        scores = torch.bmm(query[:, :, :, block.queries].flatten(2, 3).flatten(0, 1), key[..., : block.num_keys])
        if block.mask_B1QK is not None:
            # In place, and only from the first key that some query may not see.
            tail = scores.view(texts, key_heads * folds, -1, block.num_keys)[..., block.first_masked :]
            tail += block.mask_B1QK
        part = torch.bmm(scores.softmax(-1), value[:, : block.num_keys])
        part = part.view(texts, key_heads, folds, -1, value.shape[-1])
        output[:, block.queries] = part.permute(0, 3, 1, 2, 4)
    return output.view(texts * width, heads, -1)
