"""The encoder of a corpus, loaded again: later, for a query, or on another machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bellm import folder
from bellm.config import Settings
from bellm.corpus import manifest, recipe
from bellm.encoder import Encoder
from bellm.errors import FingerprintError
from bellm.prompts import Prompt
from bellm.types import Vectors


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What it takes to load an encoder again, and to prove that it is the same."""

    source: str
    """What `Encoder.load` was given."""
    settings: Settings
    dtype: str
    fingerprint: Vectors

    def load(self, **options: Any) -> Encoder:
        """Load the encoder; `options` are those of `Encoder.load` that leave the vectors alone.

        Raises:
            FingerprintError: The source gives another encoder than it gave then.
            BellmError: It cannot be loaded.
        """
        settings = self.settings
        encoder = Encoder.load(
            self.source,
            bidirectional=settings.bidirectional,
            reading=settings.reading,
            window=settings.window,
            prompt=settings.prompt,
            pooling=settings.pooling,
            layer=settings.layer,
            max_tokens=settings.max_tokens,
            dtype=self.dtype,
            **options,
        )
        apart = folder.distance(self.fingerprint, encoder.fingerprint())
        limit = folder.tolerance(self.dtype, encoder.dtype_name)
        if not apart <= limit:
            raise FingerprintError(
                f"{self.source} does not give the vectors that it gave to the corpus (relative distance {apart:.3g}, "
                f"allowed {limit:g}): give the model that embedded it."
            )
        return encoder


def of_corpus(out: str | Path, source: str | None = None) -> Origin:
    """The origin of a complete corpus's encoder; `source` is where it lies now, if not where it lay then.

    Raises:
        SourceError: `out` is no complete corpus.
    """
    facts = manifest.read(Path(out)).encoder
    kept, fingerprint = recipe.read(Path(out))
    prompt = Prompt(facts["prompt"], facts["template"], facts["query_template"], facts["document_template"])
    settings = Settings.from_dict({**facts, "bidirectional": facts["open_layers"], "prompt": vars(prompt)})
    return Origin(source=source or facts["source"], settings=settings, dtype=kept.dtype, fingerprint=fingerprint)
