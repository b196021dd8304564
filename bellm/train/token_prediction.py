"""Losses of predicted tokens: masked next-token prediction (MNTP), and log-probabilities of responses.

MNTP adapts a model to bidirectional attention. LLM2Vec (arXiv 2404.05961) does so before any contrastive step: tokens
are masked, and each is predicted from the state one before it, as the model learned to do when it was causal.
Log-probabilities under the causal model are what SFT, DPO, KTO and GRL (arXiv 2408.03402) compare.

Shapes: B rows of a batch, R responses, L tokens, M predicted tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone.adapters import disable_adapters
from bellm.backbone.states import check_lm_head, input_device
from bellm.engine.embedding import Runner
from bellm.engine.log_likelihood import answer_log_likelihoods
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, fallback_token_id
from bellm.errors import BellmError

_BLANK = "_"
_PAD = 0  # Any id does: padding follows the tokens and is masked.


@dataclass(frozen=True)
class MaskingVocabulary:
    """The tokens that masking draws from."""

    mask_id: int
    words_V: Tensor
    """Sorted ids of all tokens but special ones: they may be masked, and may replace a masked one."""


@dataclass(frozen=True)
class PredictedRows:
    """Rows of token ids, and which of their tokens are to be predicted, each from the state one before it."""

    ids: list[list[int]]
    positions: list[list[int]]
    """Positions of these tokens, per row, ascending."""
    targets: list[list[int]]
    """What stands, or stood, there."""

    @property
    def predicting(self) -> list[list[int]]:
        """Positions of the states that predict."""
        return [[position - 1 for position in positions] for positions in self.positions]

    def some(self, indices: Sequence[int]) -> "PredictedRows":
        """Some of the rows."""
        columns = self.ids, self.positions, self.targets
        return PredictedRows(*([column[index] for index in indices] for column in columns))


def masking_vocabulary(tokenizer: PreTrainedTokenizerBase) -> MaskingVocabulary:
    """Take the tokenizer's mask token, or its token `_` where it has none, as LLM2Vec does for Llama and Mistral."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    mask_id = tokenizer.get_vocab().get(_BLANK) if tokenizer.mask_token_id is None else tokenizer.mask_token_id
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
) -> PredictedRows:
    """Mask a share of each row's tokens, at least one, drawn without replacement.

    Of the masked tokens 80 % become the mask token, 10 % another word and 10 % stay, as in BERT (arXiv 1810.04805).
    That and a share of 20 % are LLM2Vec's settings for its Llama models; for Mistral it masks 80 % of the tokens and
    makes all of them mask tokens. It draws for each token independently, which leaves one sentence of ten tokens in
    nine without any. The first token is never masked, because no state predicts it, and special tokens neither.

    >>> vocabulary = MaskingVocabulary(mask_id=9, words_V=torch.arange(3, 9))
    >>> masked = mask_tokens([[1, 5, 6, 7, 8]], vocabulary, generator=torch.Generator().manual_seed(0))
    >>> masked.ids, masked.positions, masked.targets
    ([[1, 9, 6, 7, 8]], [[1]], [[5]])

    Args:
        rows: Token ids.
        vocabulary: Of their tokenizer.
        mask_probability: Share of the tokens that may be masked, above 0 and at most 1.
        generator: Of torch, on the CPU; the same state masks the same tokens.
    """
    if not 0 < mask_probability <= 1:
        raise BellmError(
            f"mask_probability={mask_probability} is out of range. Give more than 0 and at most 1; 0.2 is usual."
        )
    masked = PredictedRows([], [], [])
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


def prediction_losses(runner: Runner, rows: PredictedRows, indices: Sequence[int]) -> Tensor:
    """Cross-entropy of each token that is to be predicted, from the state one before it, in nats, float32 (M,).

    Of masked tokens their mean is the objective of LLM2Vec. The runner has the same rows, and its model has its layers
    open as they are to be trained; `indices` are those of one batch.
    """
    batch = rows.some(indices)
    logits_MV = runner.logits(indices, batch.predicting)
    targets_M = torch.tensor(list(chain.from_iterable(batch.targets)), dtype=torch.long, device=logits_MV.device)
    return cross_entropy(logits_MV.float(), targets_M, reduction="none")


def gradual_layers(step: int, total: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers that are open at a step while a set of layers opens evenly, from the last one down, in `total` steps.

    >>> [gradual_layers(step, 4, (2, 5, 6, 7)) for step in range(5)]
    [(7,), (6, 7), (5, 6, 7), (2, 5, 6, 7), (2, 5, 6, 7)]
    """
    count = len(layers) if step + 1 >= total else -(-len(layers) * (step + 1) // total)  # Rounded up.
    return tuple(sorted(layers)[-count:])


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], max_tokens: int
) -> Tokens:
    """Tokenize prompts concatenated with their responses into rows whose span is the response.

    A token across the boundary belongs to the response. The end-of-text token, where the tokenizer has one, is the
    response's last. A row without a prompt begins with the tokenizer's BOS, EOS or PAD token: its first token needs
    one to be predicted from. Rows of more than `max_tokens` lose the start of the prompt, but not its BOS, and the
    end of the response; each is kept whole while it takes no more than half of the row.

    Args:
        tokenizer: A fast tokenizer. Its chat template is not applied.
        prompts: One for each response; a query with several candidates comes several times.
        responses: The texts to be predicted, which have tokens.
        max_tokens: Longest row, 2 or more.
    """
    if max_tokens < 2:
        raise BellmError(f"max_tokens={max_tokens} has no room for a prompt and a response. Give 2 or more.")
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    num_truncated = 0
    for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        head, tail = _split(ids, offsets, len(prompts[row]), tokenizer)
        if not tail:
            raise BellmError(f"Response {row} is {responses[row]!r}: it has no tokens. Leave it out.")
        kept_head, kept_tail = _fit(head, tail, max_tokens, tokenizer.bos_token_id)
        rows.append(kept_head + kept_tail)
        spans.append((len(kept_head), len(rows[-1])))
        num_truncated += len(rows[-1]) < len(head) + len(tail)
    return Tokens(rows, spans, num_truncated)


class ResponseScorer:
    """Log-probabilities of responses under a causal model: packed, so that responses to one prompt compute it once.

    The model has all layers closed, as `with encoder.causal() as model` gives it: that copy shares the weights of
    adapters too, so that gradients reach them. Only states that predict a token of a response go through the head: it
    takes the vocabulary's width in float32, 0.2 MB of 49 152 words, until the gradient is computed.
    """

    def __init__(self, model: PreTrainedModel, turns: Tokens, *, packs: bool = True) -> None:
        """Take the causal model, all rows, and whether they may run packed, without padding."""
        check_lm_head(model)
        self._model, self._turns = model, turns
        positions = [list(range(*span)) for span in turns.spans]
        targets = [ids[start:end] for ids, (start, end) in zip(turns.ids, turns.spans, strict=True)]
        self._responses = PredictedRows(turns.ids, positions, targets)
        self._packed = check_packing(model).packed_model if packs else None
        readout = HiddenStateReadout("last", -1)
        self._runner: Runner = PaddedRunner(model, turns, readout, _PAD)
        if self._packed:
            self._runner = PackedRunner(self._packed, turns, readout, training=True)

    @property
    def is_packed(self) -> bool:
        """Whether rows run packed."""
        return self._packed is not None

    def batches(self, max_batch_tokens: int) -> list[list[int]]:
        """All rows in batches of at most so many tokens, padding included."""
        return self._runner.batches(range(len(self._turns)), max_batch_tokens)

    def log_probs(self, rows: Sequence[int]) -> Tensor:
        """Log-probability of the response of each row of a batch, in nats, summed over its tokens, float32 (R,)."""
        losses_M = prediction_losses(self._runner, self._responses, rows)
        parts = torch.split(losses_M, [len(self._responses.targets[row]) for row in rows])
        return -torch.stack([losses.sum() for losses in parts])

    def reference(self, max_batch_tokens: int) -> Tensor:
        """Log-probabilities of all rows without adapters or a gradient: the reference of DPO and KTO, (R,)."""
        models = [self._model, *([self._packed.model] if self._packed else [])]
        with torch.no_grad(), ExitStack() as without:
            for model in models:
                without.enter_context(disable_adapters(model))
            found_R = answer_log_likelihoods(
                self._model, self._turns, packed=self._packed, max_batch_tokens=max_batch_tokens, pad_id=_PAD
            )
        return torch.tensor(found_R, dtype=torch.float32, device=input_device(self._model))


def _split(
    ids: list[int], offsets: Sequence[tuple[int, int]], prompt_end: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, at least one, and of the response with its end."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    last = len(ids) - (len(ids) > 0 and ids[-1:] == end)  # Some tokenizers append it themselves.
    seam = next((index for index in range(last) if offsets[index][1] > prompt_end), last)
    return ids[:seam] or [fallback_token_id(tokenizer)], ids[seam:last] + end


def _fit(head: list[int], tail: list[int], max_tokens: int, bos_id: int | None) -> tuple[list[int], list[int]]:
    """Prompt and response, truncated where both do not fit."""
    tail = tail[: max(max_tokens // 2, max_tokens - len(head))]
    surplus = max(0, len(head) + len(tail) - max_tokens)
    first = 1 if head[0] == bos_id else 0
    return head[:first] + head[first + surplus :], tail


def _replacements(tokens: Tensor, vocabulary: MaskingVocabulary, generator: torch.Generator) -> Tensor:
    """BERT's 80/10/10: the mask token, another word, or the token itself."""
    draw = torch.rand(len(tokens), generator=generator)
    others = vocabulary.words_V[torch.randint(len(vocabulary.words_V), (len(tokens),), generator=generator)]
    return torch.where(draw < 0.8, vocabulary.mask_id, torch.where(draw < 0.9, others, tokens))
