"""The numbers that a loss is made of, computed in chunks: vectors of texts, and log-probabilities of answers.

Shapes: T texts, R answers (every candidate of every row), J layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.encoder import Encoder
from bellm.engine.embedding import BatchRunner, make_runner
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, fallback_token_id, tokenize
from bellm.errors import BellmError
from bellm.prompts import SLOT
from bellm.train.embedded_batch import split_texts
from bellm.train.examples import Example
from bellm.train.gradients import Chunk
from bellm.train.mntp import mask_tokens, masking_vocabulary, mntp_losses
from bellm.train.response_log_probs import reference_log_probs, response_token_log_probs, tokenize_turns
from bellm.types import InputType


@dataclass(frozen=True)
class ChunkedForward:
    """Chunks of a computation, and how their answers go together."""

    tokens: Tokens
    chunks: list[Chunk]
    order: Tensor
    """Where each row's answer is among those of all chunks, one after the other."""
    concurrent: bool = False
    """Whether several chunks may be computed at once: no model has to remember which of them it is at."""

    def all_gather(self, answers: Sequence[Tensor]) -> Tensor:
        """Answers of all chunks, in the order of the rows."""
        return torch.cat(list(answers))[self.order]

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
        packs: Whether texts may be laid end to end.
        all_layers: Whether the states of every layer are wanted; they come from padded batches.
    """
    tokens = _tokens(encoder, examples)
    model, pooling, pad_id = encoder.model, encoder.config.pooling, fallback_token_id(encoder.tokenizer)
    runner: BatchRunner = PaddedRunner(model, tokens, HiddenStateReadout(pooling, None), pad_id)
    if not all_layers:
        twin, layer = check_packing(model).twin if packs else None, encoder.config.layer
        runner = make_runner(
            model, tokens, packed=twin, readout=HiddenStateReadout(pooling, layer), pad_id=pad_id, share_prefix=False
        )
    groups = runner.batches(range(len(tokens)), chunk_tokens)
    chunks: list[Chunk] = [partial(runner.vectors, group) for group in groups]
    return ChunkedForward(tokens, chunks, _places(groups, encoder.device), isinstance(runner, PackedRunner))


def check_response_rows(examples: Sequence[Example]) -> None:
    """Make sure that what answers an anchor can be compared.

    Raises:
        BellmError: A row has no negative, more than one positive, or not as many negatives as the others.
    """
    if {(len(one.positives), len(one.negatives)) for one in examples} != {(1, len(examples[0].negatives) or -1)}:
        raise BellmError(
            "This objective compares what answers an anchor: each row needs one positive and as many "
            "negatives as the others, at least one."
        )


def forward_responses(
    encoder: Encoder, causal: PreTrainedModel, prompt: str, examples: Sequence[Example], chunk_tokens: int
) -> ChunkedForward:
    """Log-probability of each candidate of each row after its anchor, (R,), by the causal model."""
    turns = [(prompt.replace(SLOT, one.anchor), answer) for one in examples for answer in one.texts[1:]]
    prompts, answers = (list(column) for column in zip(*turns, strict=True))
    tokens = tokenize_turns(encoder.tokenizer, prompts, answers, encoder.config.max_tokens)
    groups = PaddedRunner(causal, tokens, HiddenStateReadout("last", -1), 0).batches(range(len(tokens)), chunk_tokens)

    def log_probs(group: Sequence[int]) -> Tensor:
        return response_token_log_probs(causal, _some(tokens, group), max_batch_tokens=chunk_tokens).sum_R

    return ChunkedForward(tokens, [partial(log_probs, group) for group in groups], _places(groups, encoder.device))


def forward_masked_tokens(
    encoder: Encoder,
    parts: Sequence[Sequence[Example]],
    number: int,
    mask_probability: float,
    seed: int,
    chunk_tokens: int,
    *,
    packs: bool = True,
) -> ChunkedForward:
    """Losses of masked tokens of all texts in one part of a batch, without a prompt, in any order.

    Args:
        encoder: Whose model predicts them.
        parts: All parts of the batch: what is masked depends on it and not on how it is parted.
        number: Which part.
        mask_probability: Of the tokens that are masked.
        seed: Of what is masked.
        chunk_tokens: Most tokens of one forward pass.
        packs: Whether texts may be laid end to end.
    """
    texts = ([text for one in part for text in one.texts] for part in parts)
    tokens = [tokenize(encoder.tokenizer, each, SLOT, encoder.config.max_tokens) for each in texts]
    own, start = tokens[number], sum(map(len, tokens[:number]))
    ids, generator = [row for each in tokens for row in each.ids], torch.Generator().manual_seed(seed)
    every = mask_tokens(
        ids, masking_vocabulary(encoder.tokenizer), mask_probability=mask_probability, generator=generator
    )
    masked = every.some(range(start, start + len(own)))
    model = encoder.model
    twin = check_packing(model).twin if packs else None
    hidden = Tokens(masked.ids, own.spans, own.num_truncated)
    runner = make_runner(
        model, hidden, packed=twin, readout=HiddenStateReadout("last", -1), pad_id=0, share_prefix=False
    )
    groups = runner.batches(range(len(own)), chunk_tokens)
    through = runner if isinstance(runner, PackedRunner) else model
    chunks: list[Chunk] = [partial(mntp_losses, through, masked, group) for group in groups]
    return ChunkedForward(own, chunks, torch.arange(sum(map(len, masked.positions))), isinstance(runner, PackedRunner))


def reference_responses(causal: PreTrainedModel, answers: ChunkedForward, chunk_tokens: int) -> Tensor:
    """The same log-probabilities without adapters and without a gradient, (R,)."""
    return reference_log_probs(causal, answers.tokens, max_batch_tokens=chunk_tokens).sum_R


def _tokens(encoder: Encoder, examples: Sequence[Example]) -> Tokens:
    """Anchors are put as queries and the rest as documents, unless they may change places."""
    turn, found = _roles(examples)
    anchors, positives, negatives = split_texts(examples)
    asking = encoder.tokenize(anchors, turn)
    asked = encoder.tokenize([*positives, *negatives], found)
    return Tokens(asking.ids + asked.ids, asking.spans + asked.spans, asking.num_truncated + asked.num_truncated)


def _roles(examples: Sequence[Example]) -> tuple[InputType, InputType]:
    if all(one.score is not None or one.symmetric for one in examples):
        return "text", "text"
    return "query", "document"


def _some(tokens: Tokens, numbers: Sequence[int]) -> Tokens:
    return Tokens([tokens.ids[number] for number in numbers], [tokens.spans[number] for number in numbers], 0)


def _places(groups: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([number for group in groups for number in group], dtype=torch.long, device=device).argsort()
