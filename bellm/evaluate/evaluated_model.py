"""What is evaluated: anything that gives a vector for a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bellm.evaluate.vector_cache import VectorCache
from bellm.types import InputType, Vectors


class Embedder(Protocol):
    """Anything with this one method can be evaluated.

    `encode_query` and `encode_document`, where it has them, are used for searches.
    """

    def encode(self, texts: list[str], /) -> Vectors:
        """Float32 vectors of texts, (texts, width)."""
        ...


@dataclass(frozen=True)
class TextView:
    """How a subject embeds texts in one role."""

    name: str
    """Roles with the same name have the same vectors."""
    embed: Callable[[Sequence[str]], Vectors]
    num_truncated: Callable[[Sequence[str]], int] = lambda _: 0


@dataclass(frozen=True)
class EvaluatedModel:
    """An encoder under evaluation."""

    name: str
    views: Mapping[InputType, TextView]
    facts: Mapping[str, Any] = field(default_factory=dict)
    cache: VectorCache | None = None

    @classmethod
    def of(cls, embeds: "Embedder | EvaluatedModel", name: str | None = None) -> "EvaluatedModel":
        """Anything that embeds; nothing says when its vectors are others, so they are not kept."""
        if isinstance(embeds, EvaluatedModel):
            return embeds
        own: dict[InputType, Callable[..., Vectors]] = {"text": embeds.encode}
        for input_type in ("query", "document"):
            own[input_type] = getattr(embeds, f"encode_{input_type}", embeds.encode)
        views = {
            input_type: TextView("text" if method == embeds.encode else input_type, _of_lists(method))
            for input_type, method in own.items()
        }
        return cls(name or type(embeds).__name__, views)

    def vectors(
        self, texts: Sequence[str], input_type: InputType = "text", done: Callable[[int], None] | None = None
    ) -> Vectors:
        """Vectors of texts in their order; equal texts are embedded once, and known ones not at all."""
        view, done = self.views[input_type], done or (lambda _: None)
        if self.cache:
            return self.cache.vectors(texts, view.name, view.embed, done)
        unique = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(unique)}
        found = view.embed(unique)
        done(len(unique))
        return found[[place[text] for text in texts]]

    def num_truncated(self, texts: Sequence[str], input_type: InputType = "text") -> int:
        """How many different texts are cut to the encoder's limit."""
        return self.views[input_type].num_truncated(list(dict.fromkeys(texts)))


def _of_lists(method: Callable[[list[str]], Vectors]) -> Callable[[Sequence[str]], Vectors]:
    return lambda texts: method(list(texts))
