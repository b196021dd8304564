"""The padded way: rows of similar length filled up to one, as transformers has it. It suits every model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.rope import longrope_short_context
from bellm.backbone.states import all_layer_states, input_device, token_states
from bellm.engine.plan import split_by_length
from bellm.engine.tokenization import Tokens, text_mask
from bellm.tensors.pooling import POOLERS
from bellm.types import PoolingName


class PaddedRunner:
    """Embeds rows of token ids in padded batches."""

    def __init__(
        self, model: PreTrainedModel, tokens: Tokens, pooling: PoolingName, layer: int | None, pad_id: int
    ) -> None:
        """Keep what is needed, see `embed_tokens`; with layer None, vectors are those of all states."""
        self._model = model
        self._tokens = tokens
        self._pooling = pooling
        self._layer = layer
        self._pad_id = pad_id
        self._context = longrope_short_context(model)

    def batches(self, numbers: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Group rows of similar length, longest first, so that a batch has at most `max_tokens` with its padding."""
        lengths = [len(ids) for ids in self._tokens.ids]
        groups: list[list[int]] = []
        for part in split_by_length(numbers, lengths, self._context):
            begun = len(groups)
            for number in sorted(part, key=lambda number: -lengths[number]):
                if len(groups) == begun or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > max_tokens:
                    groups.append([])
                groups[-1].append(number)
        return groups

    def vectors(self, numbers: Sequence[int]) -> Tensor:
        """Pooled states of some rows, float32 (B, D), or (B, layers + 1, D)."""
        ids_BL, mask_BL = pad_rows(
            [self._tokens.ids[number] for number in numbers], self._pad_id, input_device(self._model)
        )
        pooled_BL = mask_BL
        if self._pooling == "mean-text":
            pooled_BL = text_mask(mask_BL, [self._tokens.spans[number] for number in numbers])
        pooler = POOLERS[self._pooling]
        if self._layer is None:
            states = all_layer_states(self._model, ids_BL, mask_BL)
            return torch.stack([pooler(hidden_BLD, pooled_BL.bool()) for hidden_BLD in states], 1)
        return pooler(token_states(self._model, ids_BL, mask_BL, self._layer), pooled_BL.bool())


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to one length, on the right unless asked; returns ids and mask, both (B, L)."""
    length = max(map(len, rows))
    ids_BL = torch.full((len(rows), length), pad_id)
    mask_BL = torch.zeros_like(ids_BL)
    for number, row in enumerate(rows):
        span = slice(length - len(row), length) if left else slice(len(row))
        ids_BL[number, span] = torch.tensor(row)
        mask_BL[number, span] = 1
    return ids_BL.to(device), mask_BL.to(device)
