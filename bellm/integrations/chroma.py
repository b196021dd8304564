"""An encoder as Chroma's embedding function, which a collection keeps."""

from typing import Any

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.utils.embedding_functions import register_embedding_function

from bellm.encoder import Encoder
from bellm.integrations.encoder_reference import encoder_from_json, encoder_to_json


@register_embedding_function
class ChromaEmbeddingFunction(EmbeddingFunction[Documents]):  # type: ignore[misc] # chromadb is not seen by mypy
    """Embed documents and queries with the templates of an encoder's prompt.

    A collection that is opened later loads the encoder again, once this class was imported, and checks its vectors.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        self.encoder = encoder

    def __call__(self, input: Documents) -> Embeddings:
        """Vectors of documents."""
        return list(self.encoder.encode_document(input))

    def embed_query(self, input: Documents) -> Embeddings:
        """Vectors of queries."""
        return list(self.encoder.encode_query(input))

    @staticmethod
    def name() -> str:
        """Name under which collections keep it."""
        return "bellm"

    def default_space(self) -> str:
        """Cosine, which `Encoder.similarity` is too."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """What a collection keeps: the encoder's source and settings."""
        return encoder_to_json(self.encoder)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "ChromaEmbeddingFunction":
        """The function of a collection, its encoder loaded and checked."""
        return ChromaEmbeddingFunction(encoder_from_json(config))
