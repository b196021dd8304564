"""Adapter to mteb: run any of its tasks on anything that embeds.

mteb (Muennighoff et al. 2023, arXiv 2210.07316) takes objects that follow its `EncoderProtocol`:

    mteb.evaluate(MtebEncoder(encoder), mteb.get_tasks(["STSBenchmark", "NFCorpus"]))
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from bellm.encoder import Encoder
from bellm.errors import SourceError
from bellm.evaluate.evaluated_model import TextEncoder, as_embedder, name_of
from bellm.prompts import PROMPTS, SLOT, Prompt
from bellm.types import Embedder, InputType, Vectors


class MtebEncoder:
    """An encoder that follows mteb's protocol; texts of a task are embedded together, not in mteb's batches.

    An encoder with the prompt `instruct` gets the instruction of each task, as mteb gives it to E5-Mistral: before
    queries, and before all texts of tasks without documents. With `instruct:TASK` that is so for tasks that have an
    instruction of their own; the others keep TASK.
    """

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

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        prompt_type: Any = None,
        **_: Any,
    ) -> Vectors:
        """Embed the texts of mteb's batches, (texts, width).

        Args:
            inputs: Batches with their texts in `text`.
            task_metadata: mteb's `TaskMetadata`, which has the task's instruction.
            prompt_type: mteb's `PromptType`: whether texts are queries or documents, or None for neither.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind: InputType = "text" if prompt_type is None else prompt_type.value
        return self._instructed(task_metadata, kind).encode(texts, input_type=kind)

    def _instructed(self, task: Any, kind: InputType) -> Embedder:
        """The encoder with the instruction of a task in its prompt."""
        encoder = self.embedder
        if task is None or not isinstance(encoder, Encoder) or encoder.config.prompt.name != "instruct":
            return encoder
        own = task.prompt.get(kind) if isinstance(task.prompt, dict) else task.prompt if kind != "document" else None
        if not own and kind != "document" and encoder.config.prompt == PROMPTS["instruct"]:
            from mteb.abstasks.abstask import get_abstask_prompt

            own = get_abstask_prompt(task.name)
        if not own:
            return encoder
        template = f"Instruct: {own}\nQuery: {SLOT}"
        return encoder.replace(prompt=Prompt("instruct", template, template, template), verify=False)
