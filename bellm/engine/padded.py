"""Padded batches of rows of similar length, which every model of transformers runs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.rope import longrope_short_context, split_by_length
from bellm.backbone.states import all_layer_states, input_device, token_states
from bellm.engine.readout import Readout
from bellm.engine.tokenization import Tokens


class PaddedRunner:
    """Runs padded batches of token ids and applies the readout."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, readout: Readout, pad_id: int) -> None:
        """Arguments as in `bellm.engine.embedding.embed_tokens`."""
        self._model = model
        self._tokens = tokens
        self._readout = readout
        self._pad_id = pad_id
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
        """Vectors of some rows, float32 (B, D), or (B, layers + 1, D) where the readout takes every layer."""
        device = input_device(self._model)
        ids_BL, mask_BL = pad_rows([self._tokens.ids[row] for row in rows], self._pad_id, device)
        spans, layer = [self._tokens.spans[row] for row in rows], self._readout.layer
        if layer is None:
            states = all_layer_states(self._model, ids_BL, mask_BL)
            return torch.stack([self._readout(hidden_BLD, mask_BL.bool(), spans) for hidden_BLD in states], 1)
        return self._readout(token_states(self._model, ids_BL, mask_BL, layer), mask_BL.bool(), spans)


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to one length.

    Args:
        rows: Token ids of each row.
        pad_id: Token that fills the padding.
        device: Of the result.
        left: Pad on the left instead of the right.

    Returns:
        Ids and mask (1 for tokens), both (B, L).
    """
    length = max(map(len, rows))
    ids_BL = torch.full((len(rows), length), pad_id)
    mask_BL = torch.zeros_like(ids_BL)
    for index, ids in enumerate(rows):
        span = slice(length - len(ids), length) if left else slice(len(ids))
        ids_BL[index, span] = torch.tensor(ids)
        mask_BL[index, span] = 1
    return ids_BL.to(device), mask_BL.to(device)
