"""Padded batches of rows of similar length, which every model of transformers runs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bellm.backbone.architecture import longrope_short_context
from bellm.backbone.routing import RoutingRecorder
from bellm.backbone.states import input_device, logits_at, states_after
from bellm.engine.readout import Readout
from bellm.engine.tokenization import Tokens
from bellm.tensors.packing import split_by_length


class PaddedRunner:
    """Runs padded batches of token ids and applies the readout."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, readout: Readout, pad_id: int) -> None:
        """Take all rows to embed; `pad_id` fills padding."""
        self._model, self._tokens, self._readout, self._pad_id = model, tokens, readout, pad_id
        self._recorder = RoutingRecorder(model) if "routing" in readout.taps else None
        self._context = longrope_short_context(model)

    def batches(self, rows: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Group rows of similar length, longest first, so that a batch has at most `max_tokens` with its padding."""
        lengths = [len(ids) for ids in self._tokens.ids]
        groups: list[list[int]] = []
        for part in split_by_length(rows, lengths, self._context):
            first = len(groups)
            for row in sorted(part, key=lambda row: -lengths[row]):
                if len(groups) == first or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > max_tokens:
                    groups.append([])
                groups[-1].append(row)
        return groups

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """Vectors of some rows, float32 (B, W), as the readout gives them."""
        device = input_device(self._model)
        ids_BL, mask_BL = pad_rows([self._tokens.ids[row] for row in rows], self._pad_id, device)
        tapped = self._tapped(ids_BL, mask_BL)
        return self._readout(tapped, mask_BL.bool(), [self._tokens.spans[row] for row in rows])

    def logits(self, rows: Sequence[int], positions: Sequence[Sequence[int]]) -> Tensor:
        """Logits (C, V) at some positions of each row, ascending, row after row."""
        ids_BL, mask_BL = pad_rows([self._tokens.ids[row] for row in rows], self._pad_id, input_device(self._model))
        chosen_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
        for index, chosen in enumerate(positions):
            chosen_BL[index, list(chosen)] = True
        return logits_at(self._model, ids_BL, mask_BL, chosen_BL)

    def _tapped(self, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
        layers = [tap for tap in self._readout.taps if tap != "routing"]
        if self._recorder is None:
            return states_after(self._model, ids_BL, mask_BL, layers)
        with self._recorder.recording(ids_BL) as weights:
            states = iter(states_after(self._recorder.model, ids_BL, mask_BL, layers or [-1]))
        routing_BLF = torch.cat(weights, -1)
        return [routing_BLF if tap == "routing" else next(states) for tap in self._readout.taps]


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids on the right, or left, to one length: ids and mask (1 for tokens), both (B, L).

    Args:
        rows: Token ids of each row.
        pad_id: Token that fills the padding.
        device: Of the result.
        left: Pad on the left instead.
    """
    side = "left" if left else "right"
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids_BL = pad_sequence(ids, True, pad_id, side)
    mask_BL = pad_sequence([torch.ones_like(row) for row in ids], True, 0, side)
    return ids_BL.to(device), mask_BL.to(device)
