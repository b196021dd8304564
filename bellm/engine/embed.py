"""Token ids to vectors: plan, pad, forward, pool.

Shapes: B batch, L tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bellm.backbone.states import device_of, token_states, width_of
from bellm.engine.plan import MAX_BATCH_TOKENS, batches
from bellm.engine.tokens import Tokens
from bellm.tensors.pooling import POOLERS
from bellm.types import PoolingName, Vectors


@dataclass(frozen=True)
class Encoded:
    """Vectors of texts, and what it took to make them."""

    vectors: Vectors
    """One row a text, in their order."""
    num_tokens: int
    """Tokens of all texts, prompts included."""
    num_truncated: int
    """How many texts were cut."""


def embed(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    pooling: PoolingName,
    layer: int,
    max_batch_tokens: int | None,
    pad_id: int,
    progress: bool,
) -> Vectors:
    """Embed every row of tokens, in order, as float32 of shape (rows, width)."""
    vectors = np.empty((len(tokens), width_of(model)), dtype=np.float32)
    bar = tqdm(total=len(tokens), unit="text", disable=not progress, leave=False)
    with torch.inference_mode(), bar:
        for rows in batches([len(ids) for ids in tokens.ids], max_batch_tokens or MAX_BATCH_TOKENS):
            ids_BL, mask_BL = pad([tokens.ids[row] for row in rows], pad_id, device_of(model))
            hidden_BLD = token_states(model, ids_BL, mask_BL, layer)
            if pooling == "mean-text":
                mask_BL = text_mask(mask_BL, [tokens.spans[row] for row in rows])
            vectors[rows] = POOLERS[pooling](hidden_BLD, mask_BL.bool()).cpu().numpy()
            bar.update(len(rows))
    return vectors


def pad(
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


def text_mask(mask_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Keep the tokens of the text and drop the prompt's; a row without text keeps its whole prompt."""
    kept_BL = mask_BL.clone()
    for number, (start, end) in enumerate(spans):
        if start < end:
            kept_BL[number, :start] = 0
            kept_BL[number, end:] = 0
    return kept_BL
