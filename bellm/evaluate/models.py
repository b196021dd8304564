"""Sources under evaluation: bellm encoders, sentence-transformers models, files of vectors."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from bellm import saving
from bellm.config import parse_setting, refuse_unknown, setting_names
from bellm.encoder import Encoder
from bellm.errors import BellmError, BellmWarning, SourceError
from bellm.evaluate.evaluated_model import EvaluatedModel, TextView
from bellm.evaluate.vector_cache import VectorCache
from bellm.io.vectors import read_vectors
from bellm.metadata import encoder_identity, encoder_metadata
from bellm.types import InputType, Vectors

ROLES: tuple[InputType, ...] = ("text", "query", "document")

SENTENCE_TRANSFORMERS, VECTORS = "st:", "vectors:"
"""How sources that are no bellm encoders begin."""


def load_models(sources: Sequence[str], cache: Path | None = None, **options: Any) -> list[EvaluatedModel]:
    """Open sources for evaluation; encoders on the same weights share them.

    Args:
        sources: Each is anything that `Encoder.from_pretrained` takes, with settings of its own behind a question mark
            (`smollm2?bidirectional=last:8&pooling=mean`); `st:` and a sentence-transformers model; or `vectors:` and a
            .parquet or .jsonl file with the columns text and vector.
        cache: Folder that keeps vectors; without one nothing is kept.
        options: Arguments of `Encoder.from_pretrained` for every bellm encoder.

    Raises:
        BellmError: A source cannot be loaded.
    """
    encoders: dict[str, Encoder] = {}
    models = []
    for source in dict.fromkeys(sources):
        if source.startswith(SENTENCE_TRANSFORMERS):
            models.append(_load_sentence_transformer(source, options.get("device"), cache))
        elif source.startswith(VECTORS):
            models.append(_of_file(source))
        else:
            models.append(from_encoder(_load_encoder(source, options, encoders), source, cache))
    return models


def load_model(source: str, cache: Path | None = None, **options: Any) -> EvaluatedModel:
    """Open one source for evaluation, see `load_models`."""
    [model] = load_models([source], cache, **options)
    return model


def _load_encoder(source: str, options: Mapping[str, Any], encoders: dict[str, Encoder]) -> Encoder:
    path, _, query = source.partition("?")
    settings = {**options, **_settings(source, query)}
    fixed = {name: settings.pop(name) for name in _LOADING if name in settings}
    key = f"{path} {json.dumps(fixed, sort_keys=True)}"
    if key not in encoders:
        encoders[key] = Encoder.from_pretrained(path, **fixed)
    return encoders[key].replace(**settings)


def _load_sentence_transformer(source: str, device: str | None, cache: Path | None) -> EvaluatedModel:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SourceError(f"{source} needs sentence-transformers: pip install sentence-transformers.") from error
    try:
        model = SentenceTransformer(
            source.removeprefix(SENTENCE_TRANSFORMERS), device=None if device in (None, "auto") else device
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{source} cannot be loaded: {str(error).splitlines()[0]}") from error
    return from_sentence_transformer(model, source, cache)


_LOADING = ("dtype", "device", "attention", "trust_remote_code")
"""What cannot be changed once the weights are there."""


def _settings(source: str, query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        try:
            refuse_unknown([name], (*setting_names(), "dtype", "attention"))
            found[name] = parse_setting(name, value) if name in setting_names() else value
        except BellmError as error:
            raise SourceError(f"{source}: {error}") from error
    return found


def from_encoder(encoder: Encoder, source: str, cache: Path | None = None) -> EvaluatedModel:
    """A bellm encoder, with a cache if a folder is given."""
    fingerprint = encoder.fingerprint()
    known = {
        **encoder_metadata(source, encoder),
        "fingerprint": _digest(fingerprint),
        "batching_mode": encoder.batching_mode,
    }
    views = {input_type: _view(encoder, input_type) for input_type in ROLES}
    return EvaluatedModel(source, views, known, cache_for(encoder, cache, fingerprint) if cache else None)


def cache_for(encoder: Encoder, cache: Path, fingerprint: Vectors, what: str = "") -> VectorCache:
    """What a folder keeps of an encoder.

    Args:
        encoder: Whose vectors they are, or what is made of them.
        cache: The folder.
        fingerprint: Vectors of a few fixed texts, made in the same way: kept ones are given up where it is another.
        what: What is kept instead of the encoder's own vectors.
    """
    name = f"{encoder_identity(encoder)} {what}".rstrip()
    return VectorCache(cache, name, fingerprint, saving.fingerprint_tolerance(encoder.dtype_name, encoder.dtype_name))


def _view(encoder: Encoder, input_type: InputType) -> TextView:
    def embed(texts: Sequence[str]) -> Vectors:
        return encoder.encode_with_stats(texts, input_type=input_type).vectors

    def num_truncated(texts: Sequence[str]) -> int:
        return encoder.tokenize(texts, input_type=input_type).num_truncated

    return TextView(encoder.config.prompt.template_for(input_type), embed, num_truncated)


def from_sentence_transformer(model: Any, source: str, cache: Path | None = None) -> EvaluatedModel:
    """A model of sentence-transformers as it embeds by itself, its prompts and chat template included.

    Warns:
        BellmWarning: Its chat template wraps the texts.
    """
    if wrapped := _wraps(model):
        message = f"{source} wraps every text in its chat template, as sentence-transformers does."
        warnings.warn(message, BellmWarning, stacklevel=2)
    known = {
        "source": source,
        "prompts": model.prompts,
        "default_prompt": model.default_prompt_name,
        "chat_template": wrapped,
        "max_tokens": model.max_seq_length,
        "embedding_dim": model.get_embedding_dimension(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    methods = {"text": model.encode, "query": model.encode_query, "document": model.encode_document}
    views = {input_type: _foreign_view(model, input_type, methods[input_type]) for input_type in ROLES}
    fingerprint = views["text"].embed(saving.FINGERPRINT_TEXTS)
    known["fingerprint"] = _digest(fingerprint)
    kept = VectorCache(cache, json.dumps(known), fingerprint, 0.05) if cache else None
    return EvaluatedModel(source, views, known, kept)


def _foreign_view(model: Any, input_type: InputType, method: Callable[..., Any]) -> TextView:
    def embed(texts: Sequence[str]) -> Vectors:
        return np.asarray(method(list(texts), show_progress_bar=False), dtype=np.float32)

    def num_truncated(texts: Sequence[str]) -> int:
        limit = model.max_seq_length
        ids = model.tokenizer(list(texts), truncation=False, verbose=False).input_ids if limit else []
        return sum(len(row) > limit for row in ids)

    return TextView(input_type, embed, num_truncated)


def _wraps(model: Any) -> bool:
    text = saving.FINGERPRINT_TEXTS[0]
    read = int(np.asarray(model.preprocess([text])["attention_mask"]).sum())
    return bool(getattr(model.tokenizer, "chat_template", None)) and read > len(model.tokenizer(text).input_ids)


def _of_file(source: str) -> EvaluatedModel:
    file = Path(source.removeprefix(VECTORS))
    texts, vectors = read_vectors(file)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise SourceError(f"{file}: the vectors are not of one width, or hold numbers that are none.")
    place = {text: number for number, text in enumerate(texts)}

    def embed(wanted: Sequence[str]) -> Vectors:
        if missing := [text for text in wanted if text not in place]:
            what = f"{len(missing)} of {len(wanted)} texts, the first of them {missing[0][:60]!r}"
            raise SourceError(f"{file} has no vector for {what}.")
        return vectors[[place[text] for text in wanted]]

    known = {"source": source, "embedding_dim": vectors.shape[1], "fingerprint": _digest(vectors), "texts": len(place)}
    view = TextView("text", embed)
    return EvaluatedModel(source, dict.fromkeys(ROLES, view), known)


def _digest(vectors: Vectors) -> str:
    """A short name for a fingerprint; the same on the same machine, and elsewhere but for rounding."""
    return hashlib.sha256(np.round(vectors, 2).tobytes()).hexdigest()[:16]
