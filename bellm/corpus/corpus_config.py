"""Configuration of a corpus folder: what a later run and every query must have in common with the first run.

It lies in one file with the encoder's fingerprint, written before the first shard.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bellm.config import EncoderConfig, changed_settings
from bellm.corpus import manifest
from bellm.corpus.row_ranges import SHARD_FOLDER, Precision
from bellm.encoder import Encoder
from bellm.engine.graph_encoder import GraphEncoder, is_graph
from bellm.errors import BellmError, FingerprintError, SourceError
from bellm.io import atomic
from bellm.multiview import MultiViewEncoder, open_embedder
from bellm.saved_encoder import FINGERPRINT_FILE
from bellm.saving import weights_differ, weights_digest
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import Embedder, InputType, Vectors

_ELSEWHERE = ("name", "device", "source")  # Of a description, what may be another for the same vectors.


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Everything that a second run must have in common with the first."""

    encoder: dict[str, Any]
    """Settings and dtype of the encoder, from `Embedder.describe`."""
    input_type: InputType = "text"
    precision: Precision = "float32"
    keep_text: bool = False
    column: str = "text"
    id_column: str | None = None
    chunk: int | None = None
    """Most tokens of a chunk, where documents are split."""
    overlap: int = 0
    """Tokens that two chunks have in common, at most."""
    weights: str = ""
    """Digest of the encoder's weights, see `weights_digest`; empty for any other embedder."""

    @classmethod
    def of(cls, encoder: Embedder, **options: Any) -> "CorpusConfig":
        """Configuration of a corpus that this encoder embeds; `options` are the other fields."""
        settings = {name: value for name, value in encoder.describe().items() if name not in _ELSEWHERE}
        return cls(encoder=json.loads(json.dumps(settings)), weights=_weights_of(encoder), **options)

    def digest(self, fingerprint: Vectors) -> str:
        """Digest that shards carry to say which corpus they belong to."""
        return hashlib.sha256(self.to_json().encode() + fingerprint.tobytes()).hexdigest()

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(vars(self), sort_keys=True)

    def differences(self, other: "CorpusConfig") -> list[str]:
        """Fields and encoder settings in which another configuration differs, in words."""
        ours, theirs = ({**vars(config), **config.encoder, "encoder": None, "weights": ""} for config in (self, other))
        changed = changed_settings(ours, theirs).items()
        return [f"{name} is {there!r} there and {here!r} here" for name, (there, here) in changed]


@dataclass(frozen=True, kw_only=True)
class EncoderRef:
    """Reference to an encoder: enough to load it again, later or elsewhere, and to check that it is the same."""

    source: str
    """What `open_embedder` was given."""
    config: EncoderConfig | None
    """Its settings; None of a multi-view encoder, whose views have settings of their own."""
    dtype: str
    fingerprint: Vectors
    weights: str
    """Digest of its weights."""

    def load(self, **options: Any) -> Encoder | MultiViewEncoder | GraphEncoder:
        """Load the encoder; `options` are those of `Encoder.from_pretrained` that leave the vectors alone."""
        loading = {} if is_graph(self.source) else {"config": self.config, "dtype": self.dtype}
        encoder = open_embedder(self.source, **loading, **options)
        self.check(encoder, self.source)
        return encoder

    def check(self, encoder: Embedder, name: str) -> None:
        """Raise a FingerprintError unless an encoder, named so, gives the vectors that the corpus holds."""
        other_weights = weights_differ(self.weights, _weights_of(encoder))
        if problem := _problem(encoder, other_weights, self.fingerprint, self.dtype):
            raise FingerprintError(
                f"{name} does not give the vectors that it gave to the corpus (it has {problem}): give the model "
                "that embedded it."
            )


def check_corpus_config(out: Path, config: CorpusConfig, encoder: Embedder) -> str:
    """Check that a corpus folder has this configuration and encoder, or begin it; returns the configuration's digest.

    The fingerprint may differ by rounding from the one in the folder, whose digest counts: work may go on elsewhere.
    """
    path = out / FINGERPRINT_FILE
    if path.exists():
        known, known_fingerprint = read_corpus_config(out)
        if other := "; ".join(known.differences(config)):
            if known.encoder == config.encoder:
                raise SourceError(f"{out} was begun otherwise: {other}. Give the same options, or another folder.")
            raise SourceError(
                f"{out} holds vectors of an encoder with other settings: {other}. Give the same options of the model, "
                "or another folder."
            )
        dtype, name = config.encoder.get("dtype", "float32"), encoder.describe().get("name", "This one")
        if problem := _problem(encoder, weights_differ(known.weights, config.weights), known_fingerprint, dtype):
            raise SourceError(
                f"{out} holds the vectors of another model: {name} has {problem}. Give the same model, or another "
                "folder."
            )
        return known.digest(known_fingerprint)
    if any((out / SHARD_FOLDER).glob("*.parquet")):
        raise SourceError(f"{out} holds shards without their {FINGERPRINT_FILE}. Put it back, or give another folder.")
    fingerprint = encoder.fingerprint()
    if not np.isfinite(fingerprint).all():
        computed = f" in {config.encoder['dtype']}" if "dtype" in config.encoder else ""
        raise BellmError(f"The model gives vectors that are not finite{computed}. Load it with dtype float32.")
    atomic.write_bytes(path, save({"vectors": fingerprint}, {"corpus": config.to_json()}))
    return config.digest(fingerprint)


def read_corpus_config(out: Path) -> tuple[CorpusConfig, Vectors]:
    """Read the configuration of a corpus folder and the fingerprint of its encoder."""
    path = out / FINGERPRINT_FILE
    try:
        with safe_open(path, "numpy") as file:
            fingerprint: Vectors = file.get_tensor("vectors")
            values: dict[str, Any] = json.loads((file.metadata() or {})["corpus"])
        return CorpusConfig(**values), fingerprint
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Put it back, or give another folder.") from error


def read_encoder_ref(out: str | Path, source: str | None = None) -> EncoderRef:
    """Read the reference to a complete corpus's encoder; `source` is where it lies now, if not where it lay then."""
    known = manifest.read_manifest(Path(out)).encoder
    config, fingerprint = read_corpus_config(Path(out))
    return EncoderRef(
        source=source or known["source"],
        config=None if "views" in config.encoder else EncoderConfig.from_dict(config.encoder),
        dtype=config.encoder["dtype"],
        fingerprint=fingerprint,
        weights=config.weights,
    )


def _weights_of(encoder: Embedder) -> str:
    if isinstance(encoder, MultiViewEncoder):
        return encoder.weights_digest()
    return weights_digest(encoder.model) if isinstance(encoder, Encoder) else ""


def _problem(encoder: Embedder, other_weights: bool, fingerprint: Vectors, dtype: str) -> str:
    """Why an encoder is not the one with this fingerprint and dtype; empty where it is."""
    if other_weights:
        return "other weights"
    distance = relative_distance(encoder.fingerprint(), fingerprint)
    limit = tolerances(dtype, encoder.describe().get("dtype", dtype)).fingerprint
    return "" if distance <= limit else f"a fingerprint at relative distance {distance:.3g}, allowed {limit:g}"
