"""Packed batches: no padding, and tokens that texts share at their beginning are computed once.

Rows are sorted, so that those with a common prefix are neighbours. A row's path takes what it shares with the row
before it from there and adds tokens of its own. The prefix of all rows is computed once for all batches.

Shapes: B texts, L tokens of the longest, D width, M chosen positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bellm.backbone.packed_batch import LayerRange, PackedBatch, SharedPrefix
from bellm.backbone.packed_model import PackedModel
from bellm.backbone.rope import longrope_short_context, split_by_length
from bellm.backbone.states import input_device
from bellm.engine.activation_cache import ActivationCache
from bellm.engine.readout import Readout
from bellm.engine.tokenization import Tokens, common_prefix_length
from bellm.tensors.packing import Index, Packing, TokenPath

Row = Sequence[int]


class PackedRunner:
    """Runs packed batches of token ids and reads their vectors."""

    def __init__(
        self,
        model: PackedModel,
        tokens: Tokens,
        readout: Readout,
        *,
        share_prefix: bool = True,
        cache: ActivationCache | None = None,
    ) -> None:
        """Sort the rows and compute what all of them begin with.

        Args:
            model: A packed model.
            tokens: All rows that are to be embedded, without doubles.
            readout: What turns the states of one layer into vectors.
            share_prefix: Compute the prefix that all rows share once for all batches. Otherwise each batch computes it
                for itself, as a graph of its own to autograd.
            cache: Activations of encoders on the same weights that read the same batches before.
        """
        self._model = model
        self._tokens = tokens
        assert readout.layer is not None
        self._readout = readout
        self._stop = stop = readout.layer % (model.depth + 1)
        self._cache = cache
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
        self._prefix = self._prefill(start) if start else None

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
        last_only = self._readout.last_token_only and self._stop > 0
        batch, paths = self._batch([self._tokens.ids[number] for number in numbers], len(self._start), last_only)
        states = self._states(batch)
        if last_only:
            return states.float()
        if self._prefix and not self._opens:
            states = torch.cat([self._prefix.states_PD, states])
        hidden_BLD = pad_sequence([states[torch.from_numpy(path).to(states.device)] for path in paths], True)
        lengths_B = torch.tensor([len(path) for path in paths], device=states.device)
        mask_BL = torch.arange(hidden_BLD.shape[1], device=states.device) < lengths_B[:, None]
        return self._readout(hidden_BLD, mask_BL, [self._tokens.spans[row] for row in numbers])

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
        if self._cache is None:
            return self._model.states(batch, self._prefix, self._stop)[0]
        return self._cache.states(self._model, batch, self._prefix, self._stop)

    def _prefill(self, start: Row) -> SharedPrefix:
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
