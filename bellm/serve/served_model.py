"""An embedder as a server needs it: texts to rows with their tokens, and rows to vectors."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bellm.encoder import Encoder
from bellm.engine.graph_encoder import GraphEncoder
from bellm.engine.memory_budget import default_batch_tokens
from bellm.engine.tokenization import Tokens
from bellm.errors import BellmError, NonFiniteError
from bellm.multiview import MultiViewEncoder
from bellm.tensors.similarity import normalize_rows
from bellm.types import Embedder, InputType, Vectors

_PASSES = 4  # Batches of the engine in one go of the worker: it runs two at once, and groups them better together.
_OTHER_TOKENS, _BYTES_PER_TOKEN = 4096, 4  # Of embedders that do not tell.


class TokenRow(NamedTuple):
    """A text, ready to be embedded."""

    key: tuple[Any, ...]
    """What decides its vector, token ids or a text; rows with equal keys are embedded once."""
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Memory of the key, roughly: token ids, or a text, of which the tokens may be a part."""
        first = self.key[0]
        return sys.getsizeof(first) if isinstance(first, str) else 40 * self.num_tokens


@dataclass(frozen=True)
class ServedModel:
    """An embedder under the name that requests give."""

    name: str
    embedder: Embedder

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders of bellm that it consists of."""
        if isinstance(self.embedder, Encoder):
            return (self.embedder,)
        return self.embedder.encoders if isinstance(self.embedder, MultiViewEncoder) else ()

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens, its prompt included; None where nobody knows."""
        return self.embedder.describe().get("max_tokens") or None

    @property
    def normalizes(self) -> bool:
        """Whether vectors have length 1 unless a request asks for others."""
        return bool(self.embedder.describe().get("normalize"))

    @property
    def batch_tokens(self) -> int:
        """Tokens that are embedded in one go unless the settings say otherwise."""
        return min((_PASSES * default_batch_tokens(each.model) for each in self.encoders), default=_OTHER_TOKENS)

    def rows(self, texts: Sequence[str], input_type: InputType) -> tuple[list[TokenRow], int]:
        """Rows of texts, and how many texts were cut."""
        if isinstance(self.embedder, Encoder | GraphEncoder):
            tokens = self.embedder.tokenize(texts, input_type)
            pairs = zip(tokens.ids, tokens.spans, strict=True)
            return [TokenRow((tuple(ids), span), len(ids)) for ids, span in pairs], tokens.num_truncated
        num_truncated = 0
        counts = [1 + len(text.encode()) // _BYTES_PER_TOKEN for text in texts]
        if isinstance(self.embedder, MultiViewEncoder):
            known, num_truncated = self.embedder.count_tokens(texts, input_type)
            counts = known if all(known) else counts
        rows = [TokenRow((text, input_type), count) for text, count in zip(texts, counts, strict=True)]
        return rows, num_truncated

    def embed(self, rows: Sequence[TokenRow]) -> Vectors:
        """Vectors of rows of `rows`, float32 (rows, embedding_dim).

        Raises:
            BellmError: One is NaN or infinite, or a row does not fit in memory.
        """
        keys: list[Any] = [row.key for row in rows]
        if isinstance(self.embedder, Encoder | GraphEncoder):
            return self.embedder.encode_tokens(Tokens([list(ids) for ids, _ in keys], [span for _, span in keys], 0))
        vectors = np.empty((len(rows), self.embedder.embedding_dim), dtype=np.float32)
        for input_type in dict.fromkeys(kind for _, kind in keys):
            which = [index for index, (_, kind) in enumerate(keys) if kind == input_type]
            texts = [keys[index][0] for index in which]
            if isinstance(self.embedder, MultiViewEncoder):
                vectors[which] = self.embedder.encode_with_stats(texts, input_type=input_type).vectors
            else:
                vectors[which] = self.embedder.encode(texts, input_type=input_type)
        if not np.isfinite(vectors).all():
            raise NonFiniteError(f"{self.name} gives vectors that are not finite. Load it with dtype float32.")
        return vectors

    def shape(self, vectors_ND: Vectors, dimensions: int | None, normalize: bool | None) -> Vectors:
        """The first `dimensions` numbers of vectors, of length 1 where the request or the encoder asks for that."""
        vectors_ND = vectors_ND[:, :dimensions]
        if normalize or (normalize is None and dimensions and self.normalizes):
            return normalize_rows(vectors_ND)
        return vectors_ND

    def decode(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids of the model's own tokenizer.

        Raises:
            BellmError: It has no such id, or there is no tokenizer.
        """
        if not self.encoders:
            raise BellmError(f"{self.name} has no tokenizer that is known: send texts.")
        tokenizer = self.encoders[0].tokenizer
        for ids in token_ids:
            if wrong := [one for one in ids if not 0 <= one < len(tokenizer)]:
                raise BellmError(f"{wrong[0]} is no token id of {self.name}, which has {len(tokenizer)} tokens.")
        return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in token_ids]

    def causal(self) -> "ServedModel | None":
        """The same encoder with all layers causal, as NAME:causal; None where it has no open ones."""
        if not isinstance(self.embedder, Encoder) or not self.embedder.config.bidirectional:
            return None
        try:
            plain = self.embedder.replace(bidirectional="none", centering="none", verify=False)
        except BellmError:  # Its other settings make no sense without open layers, such as pooling the first token.
            return None
        return ServedModel(f"{self.name}:causal", plain)


def with_causal(models: Mapping[str, ServedModel]) -> dict[str, ServedModel]:
    """Models and, under NAME:causal, those with open layers as causal ones."""
    plain = {each.name: each for each in map(ServedModel.causal, models.values()) if each}
    if twice := plain.keys() & models.keys():
        raise BellmError(f"{min(twice)} is the name of the causal model beside another: give that one another name.")
    return {**models, **plain}


def as_models(models: Embedder | Mapping[str, Embedder]) -> dict[str, ServedModel]:
    """Embedders by their names; one alone has the name that it gives itself."""
    if not isinstance(models, Mapping):
        known = models.describe() if isinstance(models, Embedder) else {}
        models = {str(known.get("name") or known.get("source") or "model"): models}
    if not models:
        raise BellmError("models is empty: give at least one embedder.")
    for name, embedder in models.items():
        if not name or not name.isprintable():
            raise BellmError(f"{name!r:.60} is no name of a model: give it printable characters.")
        if not isinstance(embedder, Embedder):
            raise BellmError(f"{name}: {embedder!r:.60} is no encoder. Open one with Encoder.from_pretrained.")
        if isinstance(embedder, MultiViewEncoder):
            embedder.check_graphs()
    return {name: ServedModel(name, embedder) for name, embedder in models.items()}
