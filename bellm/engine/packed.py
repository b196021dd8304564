"""The packed way: no padding, and no token computed twice where texts begin alike.

Rows are sorted, so that those which begin alike stand together. A row's path takes what it shares with the row before
it from there, and adds tokens of its own. What all rows begin with is computed once for all batches.

Shapes: B texts, L tokens of the longest, D width, M chosen positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bellm.backbone.packed_model import LayerRange, PackedBatch, PackedModel, SharedPrefix
from bellm.backbone.rope import longrope_short_context
from bellm.backbone.states import input_device
from bellm.engine.activation_cache import ActivationCache
from bellm.engine.plan import split_by_length
from bellm.engine.tokenization import Tokens, text_mask
from bellm.tensors.packing import Index, Packing, TokenPath
from bellm.tensors.pooling import POOLERS
from bellm.types import PoolingName

Row = Sequence[int]


class PackedRunner:
    """Embeds rows of token ids with a packed model."""

    def __init__(
        self,
        model: PackedModel,
        tokens: Tokens,
        pooling: PoolingName,
        stop: int,
        *,
        share_prefix: bool = True,
        cache: ActivationCache | None = None,
    ) -> None:
        """Sort the rows and compute what all of them begin with.

        Args:
            model: A packed model.
            tokens: All rows that are to be embedded, without doubles.
            pooling: How states become one vector.
            stop: Layer whose input states are pooled; the depth for the final, normed ones.
            share_prefix: Compute the prefix that all rows share once for all batches. Otherwise each batch computes it
                for itself, as a graph of its own to autograd.
            cache: Activations of encoders on the same weights that read the same batches before.
        """
        self._model = model
        self._tokens = tokens
        self._pooling = pooling
        self._stop = stop
        self._trunk = cache
        self._shares = min(model.num_shared, stop) > 0
        self._opens = 0 < model.num_shared < stop
        self._lengths = [len(ids) for ids in tokens.ids]
        self._context = longrope_short_context(model.model)
        self._order = sorted(range(len(tokens)), key=tokens.ids.__getitem__)
        rows = [tokens.ids[number] for number in self._order]
        self._known = [0, *map(common_prefix_length, rows, rows[1:])] if self._shares else [0] * len(rows)
        start: Row = []
        one_context = self._context is None or max(self._lengths) <= self._context
        if share_prefix and self._shares and one_context:
            start = rows[0][: min(common_prefix_length(rows[0], rows[-1]), *(len(row) - 1 for row in rows))]
        self._start = start
        self._beginning = self._begin(start) if start else None

    def batches(self, numbers: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Group rows, neighbours together, so that no layer works on more than `max_tokens`; longest rows first."""
        parts = split_by_length(numbers, self._lengths, self._context)
        return [group for part in parts for group in self._batches(part, max_tokens)]

    def _batches(self, numbers: Sequence[int], max_tokens: int) -> list[list[int]]:
        wanted = set(numbers)
        groups: list[list[int]] = []
        sizes: list[int] = []
        for number, known in zip(self._order, self._known, strict=True):
            if number not in wanted:
                continue
            length = self._lengths[number]
            size = length if self._opens else length - known
            if not groups or sizes[-1] + size > max_tokens:
                groups.append([])
                sizes.append(0 if self._opens else known - len(self._start))
            groups[-1].append(number)
            sizes[-1] += size
        return [groups[index] for index in sorted(range(len(groups)), key=lambda index: -sizes[index])]

    def vectors(self, numbers: Sequence[int]) -> Tensor:
        """Pooled states of some rows, in the order of `batches`, float32 (B, D)."""
        last_only = self._pooling == "last" and self._stop > 0
        batch, paths = self._batch([self._tokens.ids[number] for number in numbers], len(self._start), last_only)
        states = self._states(batch)
        if last_only:
            return states.float()
        if self._beginning and not self._opens:
            states = torch.cat([self._beginning.states_PD, states])
        hidden_BLD = pad_sequence([states[torch.from_numpy(path).to(states.device)] for path in paths], True)
        lengths_B = torch.tensor([len(path) for path in paths], device=states.device)
        mask_BL = torch.arange(hidden_BLD.shape[1], device=states.device) < lengths_B[:, None]
        if self._pooling == "mean-text":
            mask_BL = text_mask(mask_BL, [self._tokens.spans[number] for number in numbers])
        return POOLERS[self._pooling](hidden_BLD, mask_BL)

    def logits(self, numbers: Sequence[int], positions: Sequence[Sequence[int]]) -> Tensor:
        """Logits (M, V) at some positions of some rows, row after row; the model's own end, nothing begun before.

        Args:
            numbers: Rows, in the order of `batches`.
            positions: Where, for each of them.

        Raises:
            BellmError: The model has no language-model head.
        """
        assert not self._start
        assert self._stop == self._model.depth
        batch, paths = self._batch([self._tokens.ids[number] for number in numbers], 0, last_only=False)
        chosen = [path[at] for path, where in zip(paths, positions, strict=True) for at in where]
        return self._model.logits(batch, torch.tensor(chosen, dtype=torch.long, device=batch.ids_M.device))

    def _states(self, batch: PackedBatch) -> Tensor:
        if self._trunk is None:
            return self._model.states(batch, self._beginning, self._stop)[0]
        return self._trunk.states(self._model, batch, self._beginning, self._stop)

    def _begin(self, start: Row) -> SharedPrefix:
        batch, _ = self._batch([start], 0, last_only=False)
        return self._model.prefill(batch, self._stop)

    def _batch(self, rows: Sequence[Row], begun: int, last_only: bool) -> tuple[PackedBatch, list[Index]]:
        """Lay rows end to end; also where each row's tokens are among the states that come out.

        Args:
            rows: Sorted, if they share beginnings.
            begun: How many tokens of the rows have been computed before.
            last_only: Whether only each row's last state is wanted.
        """
        device = input_device(self._model.model)
        ids, positions = list(rows[0][:begun]), list(range(begun))
        path, before = np.arange(begun), rows[0][:begun]
        paths: list[Index] = []
        asked: list[TokenPath] = []
        for row in rows:
            known = common_prefix_length(before, row) if self._shares else 0
            path = np.concatenate([path[:known], np.arange(len(ids), len(ids) + len(row) - known)])
            ids += row[known:]
            positions += range(known, len(row))
            paths.append(path)
            asked.append(TokenPath(path, path[known:] - begun))
            before = row
        rows_N = torch.arange(begun, len(ids), device=device) if begun else None
        shared, whole = LayerRange(rows_N, Packing.of(asked, device)), None
        if self._opens:
            rows_T = torch.from_numpy(np.concatenate(paths)).to(device)
            ends = np.cumsum([len(row) for row in rows])
            paths = [np.arange(end - len(row), end) for end, row in zip(ends, rows, strict=True)]
            whole, begun = LayerRange(rows_T, Packing.of([TokenPath(path, path) for path in paths], device)), 0
        pooled = None
        if last_only:
            ends_B = torch.tensor([int(path[-1]) - begun for path in paths], device=device)
            pooled = LayerRange(
                ends_B, Packing.of([TokenPath(path, np.array([n])) for n, path in enumerate(paths)], device)
            )
        ids_M, positions_M = (torch.tensor(table, device=device) for table in (ids, positions))
        return PackedBatch(ids_M, positions_M, shared, whole, pooled), paths


def common_prefix_length(a: Row, b: Row) -> int:
    """How many tokens two rows have in common at their beginning."""
    for number, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return number
    return min(len(a), len(b))
