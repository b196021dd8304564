"""Forward passes of a training batch in chunks: text vectors, response log-probabilities, masked-token losses.

Shapes: T texts, R responses (every candidate of every row), J layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.encoder import Encoder
from bellm.engine.embedding import Runner
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import (
    HiddenStateReadout,
    Readout,
    all_states_readout,
    make_readout,
    refuse_other_readouts,
)
from bellm.engine.tokenization import Tokens, fallback_token_id, tokenize
from bellm.prompts import SLOT
from bellm.train.embedded_batch import split_texts
from bellm.train.examples import Example
from bellm.train.gradients import Chunk
from bellm.train.token_prediction import (
    ResponseScorer,
    mask_tokens,
    masking_vocabulary,
    prediction_losses,
    tokenize_turns,
)


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


@dataclass(frozen=True)
class Chunker:
    """Splits forward passes of an encoder into chunks."""

    encoder: Encoder
    chunk_tokens: int
    """Most tokens of one chunk, padding included."""
    packs: bool = True
    """Whether texts may run packed, without padding."""

    def texts(self, examples: Sequence[Example], *, all_layers: bool = False) -> ChunkedForward:
        """Vectors of all anchors, then all positives, then all negatives, (T, D).

        Of all layers they are (T, J, D), and come from padded batches.
        """
        tokens, config = _tokenize_examples(self.encoder, examples), self.encoder.config
        num_layers = self.encoder.num_layers
        if all_layers:
            refuse_other_readouts(config, "This objective trains")
        readout = all_states_readout(config.pooling, num_layers) if all_layers else make_readout(config)
        runner = self._runner(tokens, readout, packs=self.packs and not all_layers)
        groups = runner.batches(range(len(tokens)), self.chunk_tokens)
        chunks: list[Chunk] = [partial(runner.vectors, group) for group in groups]
        return ChunkedForward(tokens, chunks, self._row_order(groups), isinstance(runner, PackedRunner))

    def responses(
        self, causal: PreTrainedModel, prompt: str, examples: Sequence[Example]
    ) -> tuple[ChunkedForward, Tensor]:
        """Log-probability of each candidate of each row as a response to its anchor, summed over its tokens, (R,).

        Gives the forward pass, and the values of the model without adapters.

        They are those of the encoder's model with all layers causal. The prompt has a slot for the anchor; rows have
        one positive and equally many negatives.
        """
        prompts = [prompt.replace(SLOT, example.anchor) for example in examples for _ in example.texts[1:]]
        answers = [text for example in examples for text in example.texts[1:]]
        tokens = tokenize_turns(self.encoder.tokenizer, prompts, answers, self.encoder.config.max_tokens)
        scorer = ResponseScorer(causal, tokens, packs=self.packs)
        groups = scorer.batches(self.chunk_tokens)
        chunks: list[Chunk] = [partial(scorer.log_probs, group) for group in groups]
        reference_R = scorer.reference(self.chunk_tokens)
        return ChunkedForward(tokens, chunks, self._row_order(groups), scorer.is_packed), reference_R

    def masked_tokens(
        self, parts: Sequence[Sequence[Example]], rank: int, mask_probability: float, seed: int
    ) -> ChunkedForward:
        """Losses of the masked tokens of all texts in one process's part of a batch, without a prompt, in any order.

        Args:
            parts: The batch, a part for each process.
            rank: Which part.
            mask_probability: Share of the tokens that are masked.
            seed: Of the choice of masked tokens.
        """
        tokenizer, max_tokens = self.encoder.tokenizer, self.encoder.config.max_tokens
        texts = ([text for example in part for text in example.texts] for part in parts)
        tokens = [tokenize(tokenizer, part, SLOT, max_tokens) for part in texts]
        own, start = tokens[rank], sum(map(len, tokens[:rank]))
        # The whole batch is masked, so that the draws do not depend on the number of processes.
        all_masked = mask_tokens(
            [row for part in tokens for row in part.ids],
            masking_vocabulary(tokenizer),
            mask_probability=mask_probability,
            generator=torch.Generator().manual_seed(seed),
        )
        masked = all_masked.some(range(start, start + len(own)))
        rows = Tokens(masked.ids, own.spans, own.num_truncated)
        runner = self._runner(rows, HiddenStateReadout("last", -1), packs=self.packs)
        groups = runner.batches(range(len(own)), self.chunk_tokens)
        chunks: list[Chunk] = [partial(prediction_losses, runner, masked, group) for group in groups]
        order = torch.arange(sum(map(len, masked.positions)))
        return ChunkedForward(own, chunks, order, isinstance(runner, PackedRunner))

    def _runner(self, tokens: Tokens, readout: Readout, *, packs: bool) -> Runner:
        packed = check_packing(self.encoder.model).packed_model if packs else None
        if packed:
            return PackedRunner(packed, tokens, readout, training=True)
        return PaddedRunner(self.encoder.model, tokens, readout, fallback_token_id(self.encoder.tokenizer))

    def _row_order(self, groups: Sequence[Sequence[int]]) -> Tensor:
        rows = list(chain.from_iterable(groups))
        return torch.tensor(rows, dtype=torch.long, device=self.encoder.device).argsort()


def _tokenize_examples(encoder: Encoder, examples: Sequence[Example]) -> Tokens:
    """Anchors as queries and the rest as documents, or all as plain texts where each may stand for the other."""
    exchangeable = all(example.score is not None or example.symmetric for example in examples)
    anchors, positives, negatives = split_texts(examples)
    queries = encoder.tokenize(anchors, "text" if exchangeable else "query")
    documents = encoder.tokenize([*positives, *negatives], "text" if exchangeable else "document")
    num_truncated = queries.num_truncated + documents.num_truncated
    return Tokens(queries.ids + documents.ids, queries.spans + documents.spans, num_truncated)
