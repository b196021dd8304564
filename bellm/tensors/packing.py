"""Texts laid end to end without padding, and attention among them.

Every token has one row, whichever texts it belongs to. A text is a path: the rows of its tokens, first to last. Texts
that begin alike share the rows of their beginning, and one of them asks the questions for it.

Shapes: N tokens that ask (queries), M tokens that are seen (keys), B texts, Q queries and K keys of the longest of
them, H heads, G key heads, E width of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]

_BLOCK = 64
"""Queries of one product: their scores stay in a core's cache, and keys behind the last of them are left out."""

_EVEN = 16
"""Keys come in multiples of this: a processor's vector units do what is left over one by one."""


@dataclass(frozen=True)
class MaskSpec:
    """What the queries of a layer may see of their path."""

    causal: bool
    """Nothing behind them."""
    window: int | None = None
    """Only what is less than so many tokens away."""


@dataclass(frozen=True)
class TokenPath:
    """One text: where its tokens are, and which of them it asks for."""

    keys: Index
    """Row of each of its tokens, by position."""
    queries: Index
    """Row of each token that asks here: those at the path's end, others ask elsewhere."""


@dataclass(frozen=True)
class QueryBlock:
    """Some queries of a group, and what they may see."""

    queries: slice
    num_keys: int
    """Keys that any of them may see."""
    first_masked: int
    """Keys before this one may be seen by all of them."""
    mask_B1QK: Tensor | None
    """Additive mask of the keys from `first_masked` on; None where all may be seen."""


@dataclass(frozen=True)
class PathGroup:
    """Texts of similar length, padded to one shape for attention alone."""

    queries_BQ: Tensor
    keys_BK: Tensor
    positions_BQ: Tensor
    lengths_B: Tensor

    def allowed(self, reach: MaskSpec) -> Tensor:
        """Which keys each query may see, (B, Q, K)."""
        key_K = torch.arange(self.keys_BK.shape[1], device=self.keys_BK.device)
        allowed_BQK = (key_K < self.lengths_B[:, None])[:, None]
        ahead_BQK = key_K - self.positions_BQ[..., None]
        if reach.causal:
            allowed_BQK = allowed_BQK & (ahead_BQK <= 0)
        if reach.window is not None:
            allowed_BQK = allowed_BQK & (ahead_BQK.abs() < reach.window)
        allowed_BQK = allowed_BQK.expand_as(ahead_BQK)
        # A query that pads the group sees the first key, so that no softmax is empty.
        return allowed_BQK | (~allowed_BQK.any(-1, keepdim=True) & (key_K == 0))


@dataclass(frozen=True)
class Packing:
    """Paths in groups, and the way back from the groups' slots to rows."""

    groups: tuple[PathGroup, ...]
    slots_N: Tensor
    """Where each query's answer lies among the slots of all groups."""
    _blocks: dict[tuple[MaskSpec, torch.dtype], list[list[QueryBlock]]] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[TokenPath], device: torch.device) -> "Packing":
        """Group paths of similar length; together their queries are the rows 0 to N-1, each once."""
        groups: list[PathGroup] = []
        slots = np.empty(sum(len(path.queries) for path in paths), dtype=np.int64)
        done = 0
        for members in _similar(paths):
            width, depth = max(len(path.queries) for path in members), _even(len(members[0].keys))
            queries, keys = (np.zeros((len(members), size), dtype=np.int64) for size in (width, depth))
            for number, path in enumerate(members):
                queries[number, : len(path.queries)] = path.queries
                keys[number, : len(path.keys)] = path.keys
                slots[path.queries] = done + number * width + np.arange(len(path.queries))
            lengths = np.array([len(path.keys) for path in members])
            firsts = np.array([len(path.keys) - len(path.queries) for path in members])
            positions = np.minimum(firsts[:, None] + np.arange(width), lengths[:, None] - 1)
            groups.append(
                PathGroup(*(torch.from_numpy(table).to(device) for table in (queries, keys, positions, lengths)))
            )
            done += queries.size
        return cls(tuple(groups), torch.from_numpy(slots).to(device))

    def blocks(self, reach: MaskSpec, dtype: torch.dtype) -> list[list[QueryBlock]]:
        """Blocks of every group, with their masks, made once for all layers of a kind."""
        if (reach, dtype) not in self._blocks:
            self._blocks[reach, dtype] = [_blocks(group, reach, dtype) for group in self.groups]
        return self._blocks[reach, dtype]

    def attend(self, reach: MaskSpec, query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor, scaling: float) -> Tensor:
        """Softmax attention of every query along its path, (N, H, E of the values).

        The heads that share a key head are folded into one product, so that no key is copied for them.
        """
        answers: list[Tensor] = []
        blocks_of = self.blocks(reach, query_NHE.dtype)
        query_NHE = query_NHE * scaling
        for group, blocks in zip(self.groups, blocks_of, strict=True):
            answers.append(_attend(group, blocks, query_NHE, key_MGE, value_MGE))
        return torch.cat(answers).index_select(0, self.slots_N)

    def attend_with(
        self,
        padded: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        reach: MaskSpec,
        query_NHE: Tensor,
        key_MGE: Tensor,
        value_MGE: Tensor,
    ) -> Tensor:
        """Attention of every query along its path by a function for padded texts, (N, H, E of the values).

        Args:
            padded: Takes queries (B, H, Q, E), keys and values (B, G, K, E) and a mask (B, 1, Q, K), True where a
                query may see; gives (B, Q, H, E).
            reach: What the queries may see.
            query_NHE: Queries.
            key_MGE: Keys.
            value_MGE: Values.
        """
        answers: list[Tensor] = []
        for group in self.groups:
            mask_B1QK = group.allowed(reach)[:, None]
            query = query_NHE[group.queries_BQ].transpose(1, 2)
            key, value = (table[group.keys_BK].transpose(1, 2) for table in (key_MGE, value_MGE))
            answers.append(padded(query, key, value, mask_B1QK).flatten(0, 1))
        return torch.cat(answers).index_select(0, self.slots_N)


def _even(num_keys: int) -> int:
    return -(-num_keys // _EVEN) * _EVEN


def _similar(paths: Sequence[TokenPath]) -> list[list[TokenPath]]:
    """Longest first; a group ends where its paths would be less than two thirds of the longest."""
    groups: list[list[TokenPath]] = []
    for path in sorted(paths, key=lambda path: (-len(path.keys), -len(path.queries))):
        if not groups or 3 * len(path.keys) < 2 * len(groups[-1][0].keys):
            groups.append([])
        groups[-1].append(path)
    return groups


def _blocks(group: PathGroup, reach: MaskSpec, dtype: torch.dtype) -> list[QueryBlock]:
    allowed_BQK = group.allowed(reach)
    all_K = allowed_BQK.all(0)
    any_K = allowed_BQK.any(0)
    width = allowed_BQK.shape[1]
    blocks = []
    for start in range(0, width, _BLOCK):
        queries = slice(start, min(start + _BLOCK, width))
        seen = torch.nonzero(any_K[queries].any(0))
        num_keys = _even(int(seen[-1]) + 1)
        barred = torch.nonzero(~all_K[queries, :num_keys].all(0))
        first_masked = int(barred[0]) if len(barred) else num_keys
        part_BQK = allowed_BQK[:, queries, first_masked:num_keys]
        mask = part_BQK.new_zeros(part_BQK.shape, dtype=dtype).masked_fill(~part_BQK, -torch.inf)
        blocks.append(QueryBlock(queries, num_keys, first_masked, mask[:, None] if len(barred) else None))
    return blocks


def _attend(
    group: PathGroup, blocks: Sequence[QueryBlock], query_NHE: Tensor, key_MGE: Tensor, value_MGE: Tensor
) -> Tensor:
    """Answers of a group's slots, (B*Q, H, E)."""
    texts, width = group.queries_BQ.shape
    depth = group.keys_BK.shape[1]
    heads, key_heads = query_NHE.shape[1], key_MGE.shape[1]
    folds = heads // key_heads
    query = query_NHE.index_select(0, group.queries_BQ.flatten())
    query = query.view(texts, width, key_heads, folds, -1).permute(0, 2, 3, 1, 4)
    key, value = (
        table.index_select(0, group.keys_BK.flatten()).view(texts, depth, key_heads, -1).transpose(1, 2)
        for table in (key_MGE, value_MGE)
    )
    key, value = key.flatten(0, 1).mT, value.flatten(0, 1)
    answer = query.new_empty(texts, width, key_heads, folds, value.shape[-1])
    for block in blocks:
        asked = query[:, :, :, block.queries].flatten(2, 3).flatten(0, 1)
        scores = torch.bmm(asked, key[..., : block.num_keys])
        if block.mask_B1QK is not None:
            tail = scores.view(texts, key_heads * folds, -1, block.num_keys)[..., block.first_masked :]
            tail += block.mask_B1QK
        found = torch.bmm(scores.softmax(-1), value[:, : block.num_keys])
        found = found.view(texts, key_heads, folds, -1, value.shape[-1])
        answer[:, block.queries] = found.permute(0, 3, 1, 2, 4)
    return answer.view(texts * width, heads, -1)
