"""A model under evaluation: an embedder, its name in tables, and a cache of its vectors."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bellm import saved_encoder, saving
from bellm.data.amr import warn_missing_graphs
from bellm.encoder import Encoder
from bellm.errors import BellmError, BellmWarning, errors_naming, warn
from bellm.evaluate.vector_cache import VectorCache
from bellm.metadata import encoder_identity
from bellm.multiview import MultiViewEncoder
from bellm.tensors.similarity import tolerances
from bellm.types import Embedder, InputType, Vectors


class TextEncoder(Protocol):
    """The least that can be evaluated; `encode_query` and `encode_document` are used where it has them."""

    def encode(self, texts: list[str], /) -> Vectors:
        """Embed texts in their order, float32 (texts, width)."""
        ...


class WrappedEncoder:
    """Makes an `Embedder` of anything that has `encode(texts)`."""

    def __init__(self, encoder: TextEncoder) -> None:
        """Wrap an encoder, whose settings nobody knows."""
        self.encoder = encoder

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return int(self.fingerprint().shape[1])

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
        """Embed texts by the method for their input type, or else by `encode`."""
        method = getattr(self.encoder, f"encode_{input_type}", self.encoder.encode)
        return np.asarray(method(list(texts)), dtype=np.float32)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts."""
        return self.encode(saved_encoder.FINGERPRINT_TEXTS)

    def describe(self) -> dict[str, Any]:
        """Nothing is known of it."""
        return {}


@dataclass(frozen=True)
class EvaluatedModel:
    """An embedder under evaluation."""

    name: str
    embedder: Embedder
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What is needed to do it again: its settings and a digest of its fingerprint."""
    cache: VectorCache | None = None

    @classmethod
    def of(
        cls,
        model: "EvaluatedModel | TextEncoder",
        name: str | None = None,
        cache: Path | None = None,
        weights: str = "",
    ) -> "EvaluatedModel":
        """Name an embedder, and keep its vectors if a folder is given.

        Vectors of what has `encode` alone are never kept: nothing says when they change.

        Args:
            model: An embedder, or anything with `encode(texts)`.
            name: Its name in tables; None for the one that it gives itself.
            cache: Folder that keeps vectors.
            weights: Digest of an encoder's weights, where it is known already.
        """
        if isinstance(model, EvaluatedModel):
            return model
        name, embedder = name or name_of(model), as_embedder(model)
        if embedder is not model:
            return cls(name, embedder)
        fingerprint = embedder.fingerprint()
        digest = hashlib.sha256(np.round(fingerprint, 2).tobytes()).hexdigest()[:16]
        metadata = {"source": name, **embedder.describe(), "fingerprint": digest}
        if isinstance(embedder, Encoder):
            metadata["batching_mode"] = embedder.batching_mode
        return cls(
            name, embedder, metadata, open_cache(embedder, cache, fingerprint, weights=weights) if cache else None
        )

    def vectors(
        self, texts: Sequence[str], input_type: InputType = "text", done: Callable[[int], None] = lambda _: None
    ) -> Vectors:
        """Embed texts in their order, (len(texts), embedding_dim): distinct ones once, and cached ones not at all.

        `done` is called with the number of further distinct texts whose vectors are there.
        """
        if self.cache:
            return self.cache.vectors(texts, input_type, lambda part: self.encode(part, input_type), done)
        index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        vectors = self.encode(list(index), input_type)
        done(len(index))
        return vectors[[index[text] for text in texts]]

    def num_truncated(self, texts: Sequence[str], input_type: InputType = "text") -> int:
        """Count the distinct texts that are truncated to the model's limit; 0 where the embedder cannot tell."""
        unique = list(dict.fromkeys(texts))
        if isinstance(self.embedder, Encoder):
            return self.embedder.tokenize(unique, input_type).num_truncated
        if isinstance(self.embedder, MultiViewEncoder):
            return self.embedder.count_tokens(unique, input_type)[1]
        count: Callable[[Sequence[str]], int] = getattr(self.embedder, "num_truncated", lambda _: 0)
        return count(unique)

    def encode(self, texts: Sequence[str], input_type: InputType) -> Vectors:
        """Embed texts in their order, none of them from the cache.

        Raises:
            BellmError: The embedder gives no vector for each text, or one that is not finite.
        """
        with errors_naming(self.name):
            if isinstance(self.embedder, Encoder | MultiViewEncoder):  # No warning and no progress bar of its own.
                vectors = self.embedder.encode_with_stats(texts, input_type=input_type).vectors
            else:
                vectors = self.embedder.encode(texts, input_type=input_type)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise BellmError(f"{self.name}: encode gave an array of shape {vectors.shape} for {len(texts)} texts.")
        if bad := np.count_nonzero(~np.isfinite(vectors).all(axis=1)):
            raise BellmError(
                f"{self.name}: {bad} of {len(texts)} vectors hold NaN or infinity. Its weights are broken, or numbers "
                "became too large for its dtype: try float32."
            )
        return vectors


def warn_without_graphs(models: Iterable[EvaluatedModel], texts: Collection[str]) -> None:
    """Count the distinct texts without an AMR graph, once for each file of graphs that models read."""
    read = [model.embedder.graphs for model in models if isinstance(model.embedder, MultiViewEncoder)]
    for graphs in {each.digest: each for each in read if each}.values():
        warn_missing_graphs(graphs.num_missing(texts), len(texts))


def warn_of_seen_texts(models: Iterable[EvaluatedModel], task: str, texts: Collection[str]) -> None:
    """Say where vectors are centered by texts of a task: its score is not that of unseen texts."""
    for model in models:
        views = model.embedder.encoders if isinstance(model.embedder, MultiViewEncoder) else (model.embedder,)
        known = [view.statistics for view in views if isinstance(view, Encoder) and view.config.centering != "none"]
        if seen := max((statistics.num_seen(texts) for statistics in known if statistics), default=0):
            message = f"{model.name} centers vectors by texts of which {seen:,} are among the {len(texts):,} of {task}"
            warn(f"{message}: its score there is not that of unseen texts.", BellmWarning)


def as_embedder(model: Any) -> Embedder:
    """The model itself if it is an `Embedder`, else wrapped into one."""
    if isinstance(model, str) or not hasattr(model, "encode"):
        raise BellmError(
            f"{model!r:.60} is no model: give an Encoder, what load_model(source) opens, or what has encode."
        )
    return model if hasattr(model, "describe") else WrappedEncoder(model)


def name_of(model: TextEncoder) -> str:
    """The name that a model gives itself, or else that of its class."""
    return str(getattr(model, "name", type(model).__name__))


def open_cache(
    embedder: Embedder, folder: Path, fingerprint: Vectors, what: str = "", *, weights: str = ""
) -> VectorCache:
    """Open the file of an embedder in a cache folder.

    Args:
        embedder: Whose vectors are kept, or what is made of them.
        folder: Of the cache.
        fingerprint: Vectors of a few fixed texts, made in the same way: cached ones are dropped if it has changed.
        what: What is kept instead of the embedder's own vectors.
        weights: Digest of an encoder's weights, where it is known already.
    """
    described = embedder.describe()
    if isinstance(embedder, Encoder):
        identity = encoder_identity(embedder, weights)
    elif isinstance(embedder, MultiViewEncoder):
        identity = f"{json.dumps(described)} {weights or embedder.weights_digest()}"
    else:
        model = getattr(embedder, "model", None)
        weights = saving.parameters_digest(model) if isinstance(model, torch.nn.Module) else ""
        identity = f"{json.dumps(described)} {weights}".rstrip()
    dtype = str(described.get("dtype"))
    return VectorCache(folder, f"{identity} {what}".rstrip(), fingerprint, tolerances(dtype, dtype).fingerprint)
