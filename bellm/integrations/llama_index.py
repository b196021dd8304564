"""An encoder as LlamaIndex's `BaseEmbedding`."""

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from bellm.types import Embedder


class LlamaIndexEmbedding(BaseEmbedding):  # type: ignore[misc] # llama-index-core is not seen by mypy
    """Embed nodes and queries with the templates of an encoder's prompt."""

    _encoder: Embedder = PrivateAttr()

    def __init__(self, encoder: Embedder, **options: Any) -> None:
        """Wrap an encoder, or anything else that embeds; options are LlamaIndex's, such as `embeddings_cache`."""
        super().__init__(**{"model_name": str(encoder.describe().get("name")), "embed_batch_size": 2048, **options})
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Name in LlamaIndex's events."""
        return "LlamaIndexEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._encoder.encode([query], input_type="query")[0].tolist()
        return vector

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._encoder.encode(texts, input_type="document").tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
