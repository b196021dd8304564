"""An encoder as LanceDB's embedding function, which a table keeps."""

from typing import Any

from lancedb.embeddings import TextEmbeddingFunction, register
from lancedb.embeddings.utils import TEXT
from pydantic import PrivateAttr

from bellm.encoder import Encoder
from bellm.integrations.encoder_reference import encoder_from_json, encoder_to_json
from bellm.types import Vectors


@register("bellm")
class LanceEmbeddingFunction(TextEmbeddingFunction):  # type: ignore[misc] # this part of lancedb is not seen by mypy
    """Embed rows and queries with the templates of an encoder's prompt.

    Make one with `LanceEmbeddingFunction.create(encoder=encoder)`. A table that is opened later loads the encoder
    again, once this class was imported, and checks its vectors.
    """

    encoder: dict[str, Any]
    """What a table keeps: the encoder's source and settings."""
    _loaded: Encoder | None = PrivateAttr(None)

    @classmethod
    def create(cls, **fields: Any) -> "LanceEmbeddingFunction":
        """Make a function of `encoder`, an Encoder or what a table kept of one."""
        if isinstance(encoder := fields.get("encoder"), Encoder):
            fields["encoder"] = encoder_to_json(encoder)
        function: LanceEmbeddingFunction = super().create(**fields)
        return function

    def ndims(self) -> int:
        """Width of the vectors."""
        return self._encoder().embedding_dim

    def compute_query_embeddings(self, query: TEXT, *_: Any, **__: Any) -> list[Vectors]:
        """Vectors of queries."""
        return list(self._encoder().encode_query(self.sanitize_input(query)))

    def generate_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Vectors]:
        """Vectors of rows."""
        return list(self._encoder().encode_document(texts))

    # What an encoder refuses once it refuses always, and lancedb would wrap the error.
    compute_source_embeddings_with_retry = TextEmbeddingFunction.compute_source_embeddings
    compute_query_embeddings_with_retry = compute_query_embeddings

    def _encoder(self) -> Encoder:
        self._loaded = self._loaded or encoder_from_json(self.encoder)
        return self._loaded
