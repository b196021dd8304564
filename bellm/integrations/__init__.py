"""Encoders as the classes that other libraries ask for; a library is imported when its class is first asked for."""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.integrations.chroma import ChromaEmbeddingFunction
    from bellm.integrations.haystack import HaystackDocumentEmbedder, HaystackTextEmbedder
    from bellm.integrations.lance import LanceEmbeddingFunction
    from bellm.integrations.langchain import LangChainEmbeddings
    from bellm.integrations.llama_index import LlamaIndexEmbedding
    from bellm.integrations.sentence_transformer import EncoderModule, as_sentence_transformer

_NEEDS = {
    "ChromaEmbeddingFunction": "chromadb",
    "EncoderModule": "sentence_transformers",
    "HaystackDocumentEmbedder": "haystack",
    "HaystackTextEmbedder": "haystack",
    "LanceEmbeddingFunction": "lancedb",
    "LangChainEmbeddings": "langchain_core",
    "LlamaIndexEmbedding": "llama_index.core",
    "as_sentence_transformer": "sentence_transformers",
}
"""The package of another library that each name needs."""

__all__ = ["ChromaEmbeddingFunction", "EncoderModule", "HaystackDocumentEmbedder", "HaystackTextEmbedder"]
__all__ += ["LanceEmbeddingFunction", "LangChainEmbeddings", "LlamaIndexEmbedding", "as_sentence_transformer"]

__getattr__, __dir__ = lazy_exports(__name__, needs=_NEEDS)
