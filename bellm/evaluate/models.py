"""Open models by source string: encoders of bellm, sentence-transformers models, files of vectors."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bellm import saved_encoder
from bellm.backbone.source_names import SENTENCE_TRANSFORMERS, SETTINGS_FILE, VECTORS, VIEWS_FILE
from bellm.data.amr import read_graphs
from bellm.encoder import Encoder
from bellm.errors import BellmWarning, SourceError, errors_naming, warn
from bellm.evaluate.evaluated_model import EvaluatedModel, WrappedEncoder
from bellm.io.vectors import read_vectors
from bellm.multiview import check_sources, give_graphs, open_embedder
from bellm.types import Embedder, InputType, Vectors


def load_model(source: str, *, loaded: dict[str, Encoder] | None = None, **options: Any) -> Embedder:
    """Open a model.

    Args:
        source: A multi-view encoder, a graph of `bellm export --to onnx`, or what `Encoder.from_pretrained` takes, with
            settings of its own behind a question mark (`smollm2?bidirectional=last:8&pooling=mean`); `st:` and a
            sentence-transformers model; or `vectors:` and a .parquet or .jsonl file with the columns text and vector.
            A view of AMR graphs gets them with `with_graphs`.
        loaded: Encoders by their weights, which are shared and added to.
        options: Arguments of `Encoder.from_pretrained`, for bellm encoders.

    Raises:
        BellmError: It cannot be loaded.
    """
    if source.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformerEmbedder(source, options.get("device"))
    if source.startswith(VECTORS):
        return VectorFile(Path(source.removeprefix(VECTORS)))
    with errors_naming(source):
        return open_embedder(source, loaded=loaded, **options)


def load_models(
    sources: Sequence[str], cache: Path | None = None, *, graphs: str | None = None, **options: Any
) -> list[EvaluatedModel]:
    """Open several sources for evaluation, each once; encoders on the same weights share them.

    Sources name the models, vectors are kept in the folder `cache` if it is given, `graphs` is a file of AMR graphs for
    those that read them, and options are for bellm encoders.
    """
    loaded: dict[str, Encoder] = {}
    models: dict[str, Embedder] = {}
    # A mistake in the last source shows before the first model is loaded.
    check_sources(source for source in sources if not source.startswith((SENTENCE_TRANSFORMERS, VECTORS)))
    given = None if graphs is None else read_graphs(graphs)
    for source in sorted(sources, key=lambda source: not source.startswith(VECTORS)):  # Files are quick.
        if source not in models:
            with errors_naming(source):
                models[source] = load_model(source, loaded=loaded, **options)
    if given:
        models = dict(zip(models, give_graphs(list(models.values()), given), strict=True))
    evaluated = {}
    for source, embedder in models.items():
        with errors_naming(source):
            kept = None if isinstance(embedder, VectorFile) else cache
            evaluated[source] = EvaluatedModel.of(embedder, source, kept)
    return [evaluated[source] for source in dict.fromkeys(sources)]


class SentenceTransformerEmbedder(WrappedEncoder):
    """A sentence-transformers model as it embeds by itself, its prompts and chat template included."""

    def __init__(self, source: str, device: str | None = None) -> None:
        """Load `st:MODEL`.

        Warns:
            BellmWarning: Its chat template wraps the texts.
        """
        try:
            from sentence_transformers import SentenceTransformer

            name = source.removeprefix(SENTENCE_TRANSFORMERS)
            if any((Path(name) / file).is_file() for file in (SETTINGS_FILE, VIEWS_FILE)):
                raise SourceError(f"{source} was saved by bellm. Give it without {SENTENCE_TRANSFORMERS}")
            model: Any = SentenceTransformer(name, device=None if device == "auto" else device)
        except ImportError as error:
            raise SourceError(f"{source} needs sentence-transformers: pip install sentence-transformers.") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{source} cannot be loaded: {str(error).splitlines()[0]}") from error
        super().__init__(model)
        self.model, self.name = model, source
        text = saved_encoder.FINGERPRINT_TEXTS[0]
        num_tokens = int(np.asarray(model.preprocess([text])["attention_mask"]).sum())
        has_template = bool(getattr(model.tokenizer, "chat_template", None))
        self.has_chat_template = has_template and num_tokens > len(model.tokenizer(text).input_ids)
        if self.has_chat_template:
            message = f"{source} wraps every text in its chat template, as sentence-transformers does."
            warn(message, BellmWarning)

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return int(self.model.get_embedding_dimension())

    def describe(self) -> dict[str, Any]:
        """What decides its vectors."""
        return {
            "source": self.name,
            "prompts": self.model.prompts,
            "default_prompt": self.model.default_prompt_name,
            "chat_template": self.has_chat_template,
            "max_tokens": self.model.max_seq_length,
            "embedding_dim": self.embedding_dim,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
        }

    def num_truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that are longer than the model's limit."""
        limit = self.model.max_seq_length
        ids = self.model.tokenizer(list(texts), truncation=False, verbose=False).input_ids if limit else []
        return sum(len(row) > limit for row in ids)


class VectorFile:
    """The texts of a file and their vectors, which somebody else computed."""

    def __init__(self, path: Path) -> None:
        """Read a .parquet or .jsonl file with the columns text and vector, or word vectors as .txt or .vec."""
        self.name, self._path = f"{VECTORS}{path}", path
        texts, self._vectors = read_vectors(path)
        if self._vectors.ndim != 2 or not np.isfinite(self._vectors).all():
            raise SourceError(f"{path}: the vectors are not of one width, or hold numbers that are none.")
        self._index = {text: number for number, text in enumerate(texts)}

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.shape[1])

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
        """Look up texts, whatever they are to a search."""
        if missing := [text for text in texts if text not in self._index]:
            what = f"{len(missing)} of {len(texts)} texts, the first of them {missing[0][:60]!r}"
            raise SourceError(f"{self._path} has no vector for {what}.")
        return self._vectors[[self._index[text] for text in texts]]

    @property
    def texts(self) -> Collection[str]:
        """The texts that it has vectors of."""
        return self._index.keys()

    def fingerprint(self) -> Vectors:
        """All vectors."""
        return self._vectors

    def describe(self) -> dict[str, Any]:
        """The file, and how much it holds."""
        return {"source": self.name, "embedding_dim": self.embedding_dim, "texts": len(self._index)}
