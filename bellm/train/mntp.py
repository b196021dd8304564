"""Masked next-token prediction (MNTP), which adapts a model to bidirectional attention, and gradual opening of layers.

LLM2Vec (arXiv 2404.05961) does so before any contrastive step: tokens are masked, and each is predicted from the state
one before it, as the model learned to do when it was causal.

Shapes: B rows, L tokens, M masked tokens of a batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone.states import input_device, logits_at
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import pad_rows
from bellm.errors import BellmError

_BLANK = "_"


@dataclass(frozen=True)
class MaskingVocabulary:
    """The tokens that masking draws from."""

    mask_id: int
    """Token that replaces a masked one."""
    words_V: Tensor
    """Sorted ids of all tokens but special ones: they may be masked, and may replace a masked one."""


@dataclass(frozen=True)
class MaskedRows:
    """Rows of token ids with some tokens masked."""

    ids: list[list[int]]
    positions: list[list[int]]
    """Positions of masked tokens, per row, ascending."""
    targets: list[list[int]]
    """The original tokens at these positions."""

    @property
    def predicting(self) -> list[list[int]]:
        """Position that predicts each masked token: the one before it."""
        return [[position - 1 for position in positions] for positions in self.positions]

    def some(self, indices: Sequence[int]) -> "MaskedRows":
        """Some of the rows."""
        columns = self.ids, self.positions, self.targets
        return MaskedRows(*([column[index] for index in indices] for column in columns))


def masking_vocabulary(tokenizer: PreTrainedTokenizerBase) -> MaskingVocabulary:
    """Take the tokenizer's mask token, or its token `_` where it has none, as LLM2Vec does for Llama and Mistral.

    Raises:
        BellmError: It has neither.
    """
    special = {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    mask_id = tokenizer.mask_token_id
    if mask_id is None:
        mask_id = tokenizer.get_vocab().get(_BLANK)
    if mask_id is None:
        raise BellmError(
            f"The tokenizer has no mask token and no token {_BLANK!r}. Set tokenizer.mask_token to a token."
        )
    return MaskingVocabulary(mask_id, torch.tensor(sorted(set(tokenizer.get_vocab().values()) - special)))


def mask_tokens(
    rows: Sequence[Sequence[int]],
    vocabulary: MaskingVocabulary,
    *,
    mask_probability: float = 0.2,
    generator: torch.Generator,
) -> MaskedRows:
    """Mask a share of each row's tokens, at least one, drawn without replacement.

    Of the masked tokens 80 % become the mask token, 10 % another word and 10 % stay, as in BERT (arXiv 1810.04805).
    That and a share of 20 % are LLM2Vec's settings for its Llama models; for Mistral it masks 80 % of the tokens and
    makes all of them mask tokens (train_configs/mntp of its repository). It draws for each token independently, which
    leaves one sentence of ten tokens in nine without any masked token.

    The first token is never masked, because no state predicts it, and special tokens neither; a row without any
    other token stays as it is.

    >>> vocabulary = MaskingVocabulary(mask_id=9, words_V=torch.arange(3, 9))
    >>> masked = mask_tokens([[1, 5, 6, 7, 8]], vocabulary, generator=torch.Generator().manual_seed(0))
    >>> masked.ids, masked.positions, masked.targets
    ([[1, 9, 6, 7, 8]], [[1]], [[5]])

    Args:
        rows: Token ids.
        vocabulary: Of the tokenizer that made them.
        mask_probability: Share of the tokens that may be masked, above 0 and at most 1.
        generator: Of torch, on the CPU; the same state masks the same tokens.

    Raises:
        BellmError: The share is not in its range.
    """
    if not 0 < mask_probability <= 1:
        raise BellmError(
            f"mask_probability={mask_probability} is out of range. Give more than 0 and at most 1; 0.2 is usual."
        )
    masked = MaskedRows([], [], [])
    flat = torch.tensor(list(chain.from_iterable(rows)))
    is_word = torch.isin(flat, vocabulary.words_V)
    lengths = [len(row) for row in rows]
    for ids_L, is_word_L in zip(torch.split(flat, lengths), torch.split(is_word, lengths), strict=True):
        candidates = is_word_L[1:].nonzero()[:, 0] + 1
        count = max(1, round(mask_probability * len(candidates)))
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values
        masked.positions.append(chosen.tolist())
        masked.targets.append(ids_L[chosen].tolist())
        masked.ids.append(ids_L.index_copy(0, chosen, _replacements(ids_L[chosen], vocabulary, generator)).tolist())
    return masked


def mntp_losses(model: PreTrainedModel | PackedRunner, masked: MaskedRows, indices: Sequence[int]) -> Tensor:
    """Cross-entropy of each masked token, predicted from the state one before it, in nats, float32 (M,).

    Their mean is the objective of LLM2Vec; sums over several batches can be divided at the end. The order is that of
    rows and positions. The head runs only where it predicts.

    Args:
        model: A language model with its layers open as they are to be trained; or a packed runner of the masked rows.
        masked: Rows of `mask_tokens`.
        indices: Those of one batch.

    Raises:
        BellmError: The model has no language-model head.
    """
    batch = masked.some(indices)
    if isinstance(model, PackedRunner):
        logits_MV = model.logits(indices, batch.predicting)
    else:
        ids_BL, mask_BL = pad_rows(batch.ids, 0, input_device(model))
        predicts_BL = torch.zeros_like(mask_BL, dtype=torch.bool)
        for row, positions in enumerate(batch.predicting):
            predicts_BL[row, positions] = True
        logits_MV = logits_at(model, ids_BL, mask_BL, predicts_BL)
    targets_M = torch.tensor(list(chain.from_iterable(batch.targets)), dtype=torch.long, device=logits_MV.device)
    return cross_entropy(logits_MV.float(), targets_M, reduction="none")


def gradual_layers(step: int, total: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers that are open at a step while a set of layers opens evenly from the last one down.

    >>> [gradual_layers(step, 4, (2, 5, 6, 7)) for step in range(5)]
    [(7,), (6, 7), (5, 6, 7), (2, 5, 6, 7), (2, 5, 6, 7)]

    Args:
        step: Counted from 0.
        total: Steps until all are open: they are from step `total - 1` on.
        layers: Those that are open at the end.
    """
    count = len(layers) if step + 1 >= total else -(-len(layers) * (step + 1) // total)  # Rounded up.
    return tuple(sorted(layers)[-count:])


def _replacements(tokens: Tensor, vocabulary: MaskingVocabulary, generator: torch.Generator) -> Tensor:
    """BERT's 80/10/10: the mask token, another word, or the token itself."""
    draw = torch.rand(len(tokens), generator=generator)
    others = vocabulary.words_V[torch.randint(len(vocabulary.words_V), (len(tokens),), generator=generator)]
    return torch.where(draw < 0.8, vocabulary.mask_id, torch.where(draw < 0.9, others, tokens))
