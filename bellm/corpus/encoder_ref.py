"""The encoder of a corpus, loaded again: later, for a query, or on another machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellm import saving
from bellm.config import EncoderConfig
from bellm.corpus import corpus_config, manifest
from bellm.encoder import Encoder
from bellm.errors import FingerprintError
from bellm.types import Vectors


@dataclass(frozen=True, kw_only=True)
class EncoderRef:
    """What it takes to load an encoder again, and to prove that it is the same."""

    source: str
    """What `Encoder.from_pretrained` was given."""
    config: EncoderConfig
    dtype: str
    fingerprint: Vectors

    def load(self, **options: Any) -> Encoder:
        """Load the encoder; `options` are those of `Encoder.from_pretrained` that leave the vectors alone.

        Raises:
            FingerprintError: The source gives another encoder than it gave then.
            BellmError: It cannot be loaded.
        """
        encoder = Encoder.from_pretrained(self.source, config=self.config, dtype=self.dtype, **options)
        apart = saving.fingerprint_distance(self.fingerprint, encoder.fingerprint())
        limit = saving.fingerprint_tolerance(self.dtype, encoder.dtype_name)
        if not apart <= limit:
            raise FingerprintError(
                f"{self.source} does not give the vectors that it gave to the corpus (relative distance {apart:.3g}, "
                f"allowed {limit:g}): give the model that embedded it."
            )
        return encoder


def read_encoder_ref(out: str | Path, source: str | None = None) -> EncoderRef:
    """The origin of a complete corpus's encoder; `source` is where it lies now, if not where it lay then.

    Raises:
        SourceError: `out` is no complete corpus.
    """
    facts = manifest.read_manifest(Path(out)).encoder
    kept, fingerprint = corpus_config.read_corpus_config(Path(out))
    config = EncoderConfig.from_dict(facts)
    return EncoderRef(source=source or facts["source"], config=config, dtype=kept.dtype, fingerprint=fingerprint)
