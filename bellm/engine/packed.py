"""Packed batches: no padding, and common prefixes of texts are computed once.

Rows are sorted, so that those with a common prefix are neighbors. A row's path takes what it shares with the row before
it from that row's path and adds tokens of its own.

Shapes: B texts, L tokens of the longest, D width, P tokens of the shared prefix, C positions that take logits,
V vocabulary.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bellm.backbone.packed_model import PackedModel
from bellm.backbone.packed_pass import LayerRange, PackedBatch, SharedPrefix, TapKey
from bellm.backbone.states import input_device
from bellm.engine.activation_cache import ActivationCache
from bellm.engine.readout import Readout, Tap
from bellm.engine.tokenization import Tokens
from bellm.tensors.packing import Indices, Packing, TokenPath, common_prefix_length, split_by_length
from bellm.tensors.placement import to_device


class PackedRunner:
    """Runs packed batches of token ids and applies the readout."""

    def __init__(
        self,
        model: PackedModel,
        tokens: Tokens,
        readout: Readout,
        *,
        training: bool = False,
        cache: ActivationCache | None = None,
    ) -> None:
        """Sort the rows.

        Args:
            model: A packed model.
            tokens: All rows to embed, without duplicates.
            readout: What turns the states of one layer into vectors.
            training: Let each batch compute the prefix that all rows share, as a graph of its own to autograd, rather
                than once for all batches, and let no result depend on the number of threads.
            cache: Activations of encoders on the same weights that ran the same batches before.
        """
        self._model, self._tokens, self._readout = model, tokens, readout
        self._keys = [_tap_keys(tap, model) for tap in readout.taps]
        self._stop = stop = max(number if kind == "state" else model.depth for kind, number in chain(*self._keys))
        # Cached activations are those of one layer, and lack what was tapped below.
        self._cache = cache if self._keys == [[("state", stop)]] else None
        self._shares_prefixes = min(model.num_shared, stop) > 0
        # From the first open layer on, if there are layers below it, every text has all of its rows.
        self._expands = 0 < model.num_shared < stop
        self._lengths = [len(ids) for ids in tokens.ids]
        self._context = model.short_context
        self._order = sorted(range(len(tokens)), key=tokens.ids.__getitem__)
        rows = [tokens.ids[row] for row in self._order]
        self._num_common = [0] * len(rows)  # Tokens that each row, in order, shares with the one before it.
        self._prefix_ids: list[int] = []
        self._prefix: SharedPrefix | None = None
        if self._shares_prefixes:
            self._num_common = [0, *map(common_prefix_length, rows, rows[1:])]
        one_context = self._context is None or max(self._lengths) <= self._context
        self._training = training
        self._prefills = not training and self._shares_prefixes and one_context

    def batches(self, rows: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Group neighboring rows, so that no layer runs on more than `max_tokens`; largest groups first.

        Where there are several groups, the prefix of all rows is computed first.
        """
        groups = self._group(rows, max_tokens)
        if len(groups) < 2 or not self._prefills:
            return groups
        self._prefills = False
        # Sorted, the first and the last row differ the most. Every row keeps a token of its own.
        first, last = (self._tokens.ids[self._order[index]] for index in (0, -1))
        if not (length := min(common_prefix_length(first, last), min(self._lengths) - 1)):
            return groups
        batch, _ = self._batch([first[:length]], last_only=False)
        self._prefix = self._model.prefill(batch, self._stop, [*chain(*self._keys)])
        self._prefix_ids = first[:length]
        return self._group(rows, max_tokens)

    def _group(self, rows: Sequence[int], max_tokens: int) -> list[list[int]]:
        groups: list[list[int]] = []
        for part in split_by_length(rows, self._lengths, self._context):
            chosen, sizes = set(part), list[int]()
            first = len(groups)
            for row, num_common in zip(self._order, self._num_common, strict=True):
                if row not in chosen:
                    continue
                size = self._lengths[row] if self._expands else self._lengths[row] - num_common
                if not sizes or sizes[-1] + size > max_tokens:
                    groups.append([])
                    sizes.append(0 if self._expands else num_common - len(self._prefix_ids))
                groups[-1].append(row)
                sizes[-1] += size
            by_size = sorted(range(len(sizes)), key=lambda index: -sizes[index])
            groups[first:] = [groups[first + index] for index in by_size]
        return groups

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """Vectors of some rows, in the order of `batches`, float32 (B, W)."""
        last_only = self._readout.last_token_only and self._stop > 0
        batch, paths = self._batch([self._tokens.ids[row] for row in rows], last_only)
        tapped = self._tapped(batch, last_only)
        if last_only:  # One token of each text.
            mask_BL = torch.ones(len(rows), 1, dtype=torch.bool, device=tapped[0].device)
            return self._readout([values_BD[:, None] for values_BD in tapped], mask_BL, [(0, 1)] * len(rows))
        lengths = np.array([len(path) for path in paths])
        mask = np.arange(lengths.max()) < lengths[:, None]
        indices = np.zeros(mask.shape, dtype=np.int64)  # What pads is any token's: the mask leaves it out.
        indices[mask] = np.concatenate(paths)
        indices_BL, mask_BL = (to_device(table, tapped[0].device) for table in (indices, mask))
        padded = [values_ND[indices_BL] for values_ND in tapped]
        return self._readout(padded, mask_BL, [self._tokens.spans[row] for row in rows])

    def _tapped(self, batch: PackedBatch, last_only: bool) -> list[Tensor]:
        """What the readout taps, a row for each token that `_batch` numbers, or for each text's last token."""
        if self._cache:
            found = {self._keys[0][0]: self._cache.states(self._model, batch, self._prefix, self._stop)}
        else:
            found = self._model.tapped(batch, self._prefix, self._stop, [*chain(*self._keys)])
        if self._prefix and not (self._expands or last_only):
            prefix = self._prefix.tapped
            found = {key: torch.cat([prefix[key], values_ND]) for key, values_ND in found.items()}
        return [torch.cat([found[key] for key in keys], -1) for keys in self._keys]

    def logits(self, rows: Sequence[int], positions: Sequence[Sequence[int]]) -> Tensor:
        """Logits (C, V) at some positions of each row, row after row; needs the last layer."""
        assert self._stop == self._model.depth
        assert not (self._prefix and self._expands)
        batch, paths = self._batch([self._tokens.ids[row] for row in rows], last_only=False)
        chosen = [path[index] for path, indices in zip(paths, positions, strict=True) for index in indices]
        return self._model.logits(batch, self._prefix, to_device(np.array(chosen, dtype=np.int64), batch.ids_M.device))

    def _batch(self, rows: Sequence[Sequence[int]], last_only: bool) -> tuple[PackedBatch, list[Indices]]:
        """Lay rows, sorted, end to end; returns also, for each row, the indices of its tokens among the states."""
        device = input_device(self._model.model)
        start = len(self._prefix_ids)  # Tokens computed before: the first of the decoder's input, of no layer's.
        ids, positions = list(self._prefix_ids), list(range(start))
        path, previous = np.arange(start), self._prefix_ids
        paths: list[Indices] = []
        shared_paths: list[TokenPath] = []
        for row in rows:
            num_common = common_prefix_length(previous, row) if self._shares_prefixes else 0
            path = np.concatenate([path[:num_common], np.arange(len(ids), len(ids) + len(row) - num_common)])
            ids += row[num_common:]
            positions += range(num_common, len(row))
            paths.append(path)
            shared_paths.append(TokenPath(path, path[num_common:] - start))
            previous = list(row)
        rows_N = torch.arange(start, len(ids), device=device) if start else None  # Made on the device.
        shared, whole, pooled = LayerRange(rows_N, self._packing(shared_paths)), None, None
        if self._expands:
            rows_T = to_device(np.concatenate(paths), device)
            ends = np.cumsum([len(row) for row in rows])
            paths = [np.arange(end - len(row), end) for end, row in zip(ends, rows, strict=True)]
            whole, start = LayerRange(rows_T, self._packing([TokenPath(path, path) for path in paths])), 0
        if last_only:
            ends_B = to_device(np.array([path[-1] - start for path in paths]), device)
            last_paths = [TokenPath(path, np.array([index])) for index, path in enumerate(paths)]
            pooled = LayerRange(ends_B, self._packing(last_paths))
        ids_M, positions_M = (to_device(np.array(table, dtype=np.int64), device) for table in (ids, positions))
        return PackedBatch(ids_M, positions_M, shared, whole, pooled), paths

    def _packing(self, paths: Sequence[TokenPath]) -> Packing:
        return Packing(paths, input_device(self._model.model), one_kernel=not self._training)


def _tap_keys(tap: Tap, model: PackedModel) -> list[TapKey]:
    if tap == "routing":
        return [("router", number) for number in range(model.num_routers)]
    return [("state", tap % (model.depth + 1))]
