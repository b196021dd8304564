"""An encoder as LangChain's `Embeddings`."""

from langchain_core.embeddings import Embeddings

from bellm.types import Embedder


class LangChainEmbeddings(Embeddings):  # type: ignore[misc] # langchain-core is not seen by mypy
    """Embed documents and queries with the templates of an encoder's prompt."""

    def __init__(self, encoder: Embedder) -> None:
        """Wrap an encoder, or anything else that embeds."""
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents."""
        vectors: list[list[float]] = self.encoder.encode(texts, input_type="document").tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Vector of a query."""
        vector: list[float] = self.encoder.encode([text], input_type="query")[0].tolist()
        return vector
