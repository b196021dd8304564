"""Forward passes of a training batch in chunks: text vectors, response log-probabilities, masked-token losses.

Shapes: T texts, R responses (every candidate of every row), J layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.encoder import Encoder
from bellm.engine.embedding import Runner
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, fallback_token_id, tokenize
from bellm.prompts import SLOT
from bellm.train.embedded_batch import split_texts
from bellm.train.examples import Example
from bellm.train.gradients import Chunk
from bellm.train.mntp import mask_tokens, masking_vocabulary, mntp_losses
from bellm.train.response_log_probs import response_log_probs, tokenize_turns


@dataclass(frozen=True)
class ChunkedForward:
    """A forward pass of some rows as chunks to be computed one by one, and the order of their outputs."""

    tokens: Tokens
    chunks: list[Chunk]
    order: Tensor
    """Position of each row's output in the concatenated outputs of all chunks."""
    concurrent: bool = False
    """Whether chunks may run at once: no module of the model keeps state from one to the next."""

    def in_row_order(self, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs of all chunks, concatenated in the order of the rows."""
        return torch.cat(list(outputs))[self.order]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.tokens.ids))


def forward_texts(
    encoder: Encoder,
    examples: Sequence[Example],
    chunk_tokens: int,
    *,
    packs: bool = True,
    all_layers: bool = False,
) -> ChunkedForward:
    """Vectors of all anchors, then all positives, then all negatives, (T, D), or (T, J, D) of all layers.

    Args:
        encoder: What embeds.
        examples: Whose texts.
        chunk_tokens: Most tokens of one forward pass.
        packs: Whether texts may run packed, without padding.
        all_layers: Whether the states of every layer are wanted; they come from padded batches.
    """
    tokens = _tokenize_examples(encoder, examples)
    readout = HiddenStateReadout(encoder.config.pooling, None if all_layers else encoder.config.layer)
    runner = _runner(encoder, tokens, readout, packs=packs and not all_layers)
    groups = runner.batches(range(len(tokens)), chunk_tokens)
    chunks: list[Chunk] = [partial(runner.vectors, group) for group in groups]
    return ChunkedForward(tokens, chunks, _row_order(groups, encoder.device), isinstance(runner, PackedRunner))


def forward_responses(
    encoder: Encoder, causal: PreTrainedModel, prompt: str, examples: Sequence[Example], chunk_tokens: int
) -> ChunkedForward:
    """Log-probability of each candidate of each row as a response to its anchor, summed over its tokens, (R,).

    Args:
        encoder: Whose tokenizer and `max_tokens` count.
        causal: Its model with all layers causal.
        prompt: Template of the prompt, with a slot for the anchor.
        examples: Rows of one positive and equally many negatives.
        chunk_tokens: Most tokens of one forward pass, padding included.
    """
    turns = [(prompt.replace(SLOT, example.anchor), text) for example in examples for text in example.texts[1:]]
    prompts, responses = (list(column) for column in zip(*turns, strict=True))
    tokens = tokenize_turns(encoder.tokenizer, prompts, responses, encoder.config.max_tokens)
    groups = PaddedRunner(causal, tokens, HiddenStateReadout("last", -1), 0).batches(range(len(tokens)), chunk_tokens)

    def log_probs(group: Sequence[int]) -> Tensor:
        return response_log_probs(causal, tokens.select(group), max_batch_tokens=chunk_tokens)

    return ChunkedForward(tokens, [partial(log_probs, group) for group in groups], _row_order(groups, encoder.device))


def forward_masked_tokens(
    encoder: Encoder,
    parts: Sequence[Sequence[Example]],
    rank: int,
    mask_probability: float,
    seed: int,
    chunk_tokens: int,
    *,
    packs: bool = True,
) -> ChunkedForward:
    """Losses of the masked tokens of all texts in one process's part of a batch, without a prompt, in any order.

    Args:
        encoder: Whose model predicts them.
        parts: The batch, a part for each process.
        rank: Which part.
        mask_probability: Share of the tokens that are masked.
        seed: Of the choice of masked tokens.
        chunk_tokens: Most tokens of one forward pass.
        packs: Whether texts may run packed, without padding.
    """
    texts = ([text for example in part for text in example.texts] for part in parts)
    tokens = [tokenize(encoder.tokenizer, part, SLOT, encoder.config.max_tokens) for part in texts]
    own, start = tokens[rank], sum(map(len, tokens[:rank]))
    ids, generator = [row for part in tokens for row in part.ids], torch.Generator().manual_seed(seed)
    vocabulary = masking_vocabulary(encoder.tokenizer)
    # The whole batch is masked, so that the draws do not depend on the number of processes.
    all_masked = mask_tokens(ids, vocabulary, mask_probability=mask_probability, generator=generator)
    masked = all_masked.some(range(start, start + len(own)))
    rows = Tokens(masked.ids, own.spans, own.num_truncated)
    runner = _runner(encoder, rows, HiddenStateReadout("last", -1), packs=packs)
    groups = runner.batches(range(len(own)), chunk_tokens)
    through = runner if isinstance(runner, PackedRunner) else encoder.model
    chunks: list[Chunk] = [partial(mntp_losses, through, masked, group) for group in groups]
    return ChunkedForward(own, chunks, torch.arange(sum(map(len, masked.positions))), isinstance(runner, PackedRunner))


def _tokenize_examples(encoder: Encoder, examples: Sequence[Example]) -> Tokens:
    """Anchors as queries and the rest as documents, or all as plain texts where each may stand for the other."""
    exchangeable = all(example.score is not None or example.symmetric for example in examples)
    anchors, positives, negatives = split_texts(examples)
    queries = encoder.tokenize(anchors, "text" if exchangeable else "query")
    documents = encoder.tokenize([*positives, *negatives], "text" if exchangeable else "document")
    return Tokens(
        queries.ids + documents.ids, queries.spans + documents.spans, queries.num_truncated + documents.num_truncated
    )


def _runner(encoder: Encoder, tokens: Tokens, readout: HiddenStateReadout, *, packs: bool) -> Runner:
    packed = check_packing(encoder.model).packed_model if packs else None
    if packed:
        return PackedRunner(packed, tokens, readout, share_prefix=False)
    return PaddedRunner(encoder.model, tokens, readout, fallback_token_id(encoder.tokenizer))


def _row_order(groups: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([row for group in groups for row in group], dtype=torch.long, device=device).argsort()
