"""Vectors of every layer of an encoder, kept on disk.

Shapes: N texts, K layers, D width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bellm import saved_encoder
from bellm.encoder import Encoder
from bellm.engine.embedding import embed_layers
from bellm.engine.tokenization import fallback_token_id
from bellm.errors import BellmError
from bellm.evaluate import EvaluatedModel, open_cache
from bellm.types import Vectors

_PART = 128  # Texts between two steps of progress.


def every_layer(
    model: EvaluatedModel, texts: Sequence[str], cache: Path | None, done: Callable[[int], None] = lambda _: None
) -> Vectors:
    """Pooled states of an encoder's layers, (N, K + 1, D): first the token embeddings, last the normed states.

    As the encoder reads them, with its open layers, prompt and pooling, but neither scaled to length 1 nor truncated.
    With a folder `cache` they are kept. `done` is called with the number of further texts whose vectors are there.

    Raises:
        BellmError: The model is no encoder of bellm, so that nobody knows its layers.
    """
    encoder = model.embedder
    if not isinstance(encoder, Encoder):
        raise BellmError(f"{model.name} has no layers that bellm can read: leave out --layers (layers), or the model.")

    def embed(texts: Sequence[str], done: Callable[[int], None] = lambda _: None) -> Vectors:
        parts = []
        for start in range(0, len(texts), _PART):
            tokens = encoder.tokenize(texts[start : start + _PART])
            pad_id = fallback_token_id(encoder.tokenizer)
            vectors_NKD = embed_layers(encoder.model, tokens, encoder.config.pooling, pad_id)
            parts.append(vectors_NKD.reshape(len(tokens), -1))
            done(len(tokens))
        return np.concatenate(parts)

    if cache:
        fingerprint = embed(saved_encoder.FINGERPRINT_TEXTS)
        kept = open_cache(encoder, cache, fingerprint, "states after each layer")
        flat = kept.vectors(texts, "text", embed, done)
    else:
        flat = embed(texts, done)
    return flat.reshape(len(texts), encoder.num_layers + 1, -1)
