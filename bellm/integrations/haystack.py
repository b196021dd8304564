"""An encoder as Haystack's components for the texts of queries and for documents."""

from dataclasses import replace
from typing import Any, TypeVar

from haystack import Document, component, default_from_dict, default_to_dict

from bellm.encoder import Encoder
from bellm.integrations.encoder_reference import encoder_from_json, encoder_to_json

Component = TypeVar("Component", bound="_Embedder")


class _Embedder:
    """A component that a pipeline keeps with the reference to its encoder."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        self.encoder = encoder

    def to_dict(self) -> dict[str, Any]:
        """What a saved pipeline keeps: the encoder's source and settings."""
        values: dict[str, Any] = default_to_dict(self, encoder=encoder_to_json(self.encoder))
        return values

    @classmethod
    def from_dict(cls: type[Component], data: dict[str, Any]) -> Component:
        """The component of a saved pipeline, its encoder loaded and checked."""
        encoder = encoder_from_json(data["init_parameters"]["encoder"])
        made: Component = default_from_dict(cls, {**data, "init_parameters": {"encoder": encoder}})
        return made


@component
class HaystackTextEmbedder(_Embedder):
    """Embed the text of a query with the prompt's query template."""

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, list[float]]:
        """Vector of a query, as `embedding`."""
        return {"embedding": self.encoder.encode_query(text).tolist()}


@component
class HaystackDocumentEmbedder(_Embedder):
    """Embed the contents of documents with the prompt's document template."""

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Copies of the documents with their vectors, as `documents`."""
        vectors = self.encoder.encode_document([document.content for document in documents])
        pairs = zip(documents, vectors.tolist(), strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}
