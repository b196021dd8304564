"""What decides the vectors of a corpus, next to its texts: one folder has one recipe.

It is kept with the encoder's fingerprint in one file, as a saved encoder keeps it, and written before the first shard.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bellm import saving
from bellm.corpus.shards import SHARD_FOLDER, Precision
from bellm.encoder import Encoder
from bellm.errors import SourceError
from bellm.io import atomic
from bellm.saving import FINGERPRINT_FILE
from bellm.types import InputType, Vectors


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Everything that a second run must have in common with the first."""

    config: str
    """Digest of the encoder's settings."""
    dtype: str
    """Dtype of the encoder's weights."""
    input_type: InputType = "text"
    vectors: Precision = "float32"
    keep_text: bool = False
    column: str = "text"
    id_column: str | None = None

    def digest(self, fingerprint: Vectors) -> str:
        """What shards carry to say whose they are."""
        return hashlib.sha256(self._json().encode() + fingerprint.tobytes()).hexdigest()

    def _json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def check_corpus_config(out: Path, recipe: CorpusConfig, encoder: Encoder) -> str:
    """Prove that a corpus folder is of this recipe and this encoder, or begin it; returns the recipe's digest.

    The fingerprint may differ by rounding from the one in the folder, whose digest counts: work may go on elsewhere.

    Raises:
        SourceError: The folder is of another recipe or encoder, cannot tell, or cannot be written.
    """
    found = encoder.fingerprint()
    path = out / FINGERPRINT_FILE
    if path.exists():
        kept, fingerprint = read_corpus_config(out)
        _refuse_other(out, recipe, kept)
        if not saving.fingerprint_distance(fingerprint, found) <= saving.fingerprint_tolerance(
            recipe.dtype, recipe.dtype
        ):
            raise SourceError(
                f"{out} holds the vectors of another model: its fingerprint is not that of {encoder.name}. Give the "
                "same model, or another folder."
            )
        return recipe.digest(fingerprint)
    if any((out / SHARD_FOLDER).glob("*.parquet")):
        raise SourceError(f"{out} holds shards without their {FINGERPRINT_FILE}. Put it back, or give another folder.")
    atomic.write_bytes(path, save({"vectors": found}, {"config": recipe.config, "recipe": recipe._json()}))
    return recipe.digest(found)


def read_corpus_config(out: Path) -> tuple[CorpusConfig, Vectors]:
    """Read the recipe of a corpus folder and the fingerprint of its encoder.

    Raises:
        SourceError: They are not there, or damaged.
    """
    path = out / FINGERPRINT_FILE
    try:
        with safe_open(path, "numpy") as file:
            fingerprint: Vectors = file.get_tensor("vectors")
            facts: dict[str, Any] = json.loads((file.metadata() or {})["recipe"])
        return CorpusConfig(**facts), fingerprint
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Put it back, or give another folder.") from error


def _refuse_other(out: Path, recipe: CorpusConfig, kept: CorpusConfig) -> None:
    asked, had = dataclasses.asdict(recipe), dataclasses.asdict(kept)
    if asked["config"] != had["config"]:
        raise SourceError(
            f"{out} holds vectors of an encoder with other settings. Give the same options of the model, or another "
            "folder."
        )
    other = [f"{name} is {had[name]!r} there and {asked[name]!r} here" for name in asked if asked[name] != had[name]]
    if other:
        raise SourceError(f"{out} was begun otherwise: {'; '.join(other)}. Give the same options, or another folder.")
