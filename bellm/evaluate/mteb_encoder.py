"""Adapter to mteb: run any of its tasks on anything that embeds.

mteb (Muennighoff et al. 2023, arXiv 2210.07316) takes objects that follow its `EncoderProtocol`:

    mteb.evaluate(MtebEncoder(encoder), mteb.get_tasks(["STSBenchmark", "NFCorpus"]))
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from bellm.errors import SourceError
from bellm.evaluate.evaluated_model import TextEncoder, as_embedder, name_of
from bellm.types import Vectors


class MtebEncoder:
    """An encoder that follows mteb's protocol; texts of a task are embedded together, not in mteb's batches."""

    def __init__(self, encoder: TextEncoder, name: str | None = None) -> None:
        """Wrap bellm's encoder, or anything with `encode(texts)` and perhaps `encode_query` and `encode_document`.

        `name` is how mteb's results call it, `organisation/model`; None takes the encoder's name under `bellm/`.

        Raises:
            SourceError: mteb is not installed.
        """
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
            from mteb.similarity_functions import cos_sim, pairwise_cos_sim
        except ImportError as error:
            raise SourceError("Tasks of mteb need mteb 2.26 or newer: pip install 'bellm[evaluate]'.") from error
        self.embedder = as_embedder(encoder)
        self.similarity, self.similarity_pairwise = cos_sim, pairwise_cos_sim
        name = name or PurePath(name_of(encoder)).name
        fingerprint = self.embedder.fingerprint()
        # mteb keeps results by name and revision and gives old ones back.
        settings = json.dumps(self.embedder.describe(), sort_keys=True)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name if "/" in name else f"bellm/{name}",
                "revision": hashlib.sha256(settings.encode() + fingerprint.tobytes()).hexdigest()[:16],
                "embed_dim": fingerprint.shape[1],
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any) -> Vectors:
        """Embed the texts of mteb's batches, (texts, width), by its `PromptType`: queries, documents or neither."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embedder.encode(texts, input_type="text" if prompt_type is None else prompt_type.value)
