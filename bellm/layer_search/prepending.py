"""An encoder that reads with Token Prepending (Fu et al. 2025, arXiv 2412.11556).

It is no setting of `Encoder`: its rows have one token more, it cannot share states of common beginnings, and what it
does is no property of a layer that `bellm` could save, prove and train.

Shapes: N texts, D width.
"""

from collections.abc import Sequence
from functools import partial

from bellm import saving
from bellm.backbone.token_prepending import PLACEHOLDER, with_token_prepending
from bellm.encoder import Encoder, check_texts
from bellm.engine.embedding import EncodeResult, embed_chunks, embed_tokens
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, chunk_texts, fallback_token_id, tokenize, warn_truncated
from bellm.errors import LayerError
from bellm.layer_spec import format_layers
from bellm.types import InputType, Vectors


class TokenPrependingEncoder:
    """A causal encoder whose text is preceded by a placeholder, through which each token is told of all the others.

    It is an `Embedder`: `EvaluatedModel.of(TokenPrependingEncoder(encoder, 8))` is ready for evaluation. Batches are
    padded; prompt, pooling, layer and `max_tokens` are the encoder's. The mean over all tokens counts the
    placeholder as it counts the prompt's tokens; `mean-text` leaves both out.

    Where the paper and its code (github.com/fuyuchenIfyw/token_prepending) leave something to chance or choice:

    - Their placeholder is a token added to the vocabulary, with random numbers that only the first layer sees. Here it
      is the token that stands for an empty text (BOS, where there is one): nothing is added, and nothing is random.
    - It stands right before the text's first token; in their prompts before the quotation mark that opens the text. A
      prompt should stand before it: as the very first token of a row it takes the place that many models rest their
      attention on, and with `raw` and no BOS little is left of SmolLM2's vectors.
    - Their depths are 7 for Llama-2-7B, 6 for Qwen2-7B and Gemma-2-9B, 3 for Llama-3-8B.
    - They pool a lower state than the last, chosen for each model; the encoder's `layer` does so here.
    """

    def __init__(self, encoder: Encoder, depth: int) -> None:
        """Share the encoder's weights.

        Args:
            encoder: A causal one.
            depth: The last layer, counted from 1, before which the placeholder is given the last token's state.

        Raises:
            DirectionError: The encoder has open layers, or no such layer.
        """
        if encoder.config.bidirectional:
            raise LayerError(
                f"Token Prepending is for a causal model, and layers {format_layers(encoder.config.bidirectional)} "
                "are open. Take encoder.replace(bidirectional='none')."
            )
        self._encoder = encoder
        self._pad_id = fallback_token_id(encoder.tokenizer)
        self._model = with_token_prepending(encoder.model, depth, self._pad_id)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, in their order, float32 (N, D).

        A text without tokens of its own has nothing to precede and is embedded as by the encoder.

        Raises:
            BellmError: `texts` is not a list of strings, or the prompt leaves no room for text.

        Warns:
            TruncationWarning: Texts were cut; the placeholder takes one of `max_tokens`.
        """
        return self._encode(texts, "text")

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Embed queries, with the prompt's query template where it has one; see `encode`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        """Embed documents, with the prompt's document template where it has one; see `encode`."""
        return self._encode(texts, "document")

    def encode_with_stats(self, texts: Sequence[str], *, input_type: InputType = "text") -> EncodeResult:
        """Embed texts and count their tokens and those that were cut, without a warning; see `encode`."""
        check_texts(texts)
        config = self._encoder.config
        each = partial(
            embed_tokens,
            self._model,
            packed=None,
            readout=HiddenStateReadout(config.pooling, config.layer),
            max_batch_tokens=None,
            pad_id=self._pad_id,
            done=lambda _: None,
        )
        return embed_chunks(
            (self.tokenize(part, input_type) for part in chunk_texts(texts)), each, self._encoder.embedding_dim
        )

    def tokenize(self, texts: Sequence[str], input_type: InputType = "text") -> Tokens:
        """Token ids as the encoder has them, with `PLACEHOLDER` before the first that belongs to the text."""
        config = self._encoder.config
        template = config.prompt.template_for(input_type)
        tokens = tokenize(self._encoder.tokenizer, texts, template, config.max_tokens - 1)
        rows, spans = [], []
        for ids, (start, end) in zip(tokens.ids, tokens.spans, strict=True):
            has_text = start < end
            rows.append([*ids[:start], PLACEHOLDER, *ids[start:]] if has_text else ids)
            spans.append((start + has_text, end + has_text))
        return Tokens(rows, spans, tokens.num_truncated)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts: what tells this encoder from any other."""
        return self.encode_with_stats(saving.FINGERPRINT_TEXTS).vectors

    def _encode(self, texts: Sequence[str], input_type: InputType) -> Vectors:
        encoded = self.encode_with_stats(texts, input_type=input_type)
        warn_truncated(encoded.num_truncated, len(texts), self._encoder.config.max_tokens)
        return encoded.vectors
