"""An encoder as a SentenceTransformer, for code that asks for one: BERTopic, KeyBERT, heads as of SetFit."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.prompts import SLOT
from bellm.saving import TEMPLATE_NAMES


class EncoderModule(InputModule):  # type: ignore[misc] # sentence-transformers is not seen by mypy
    """An encoder as the only module of a SentenceTransformer: texts in, vectors out, with the encoder's prompt.

    It embeds, and cannot be trained. Moving the SentenceTransformer moves it, and leaves the encoder that was given
    where it is. A folder that bellm saved names this class in `modules.json`, so that sentence-transformers loads it.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder, whose weights are shared."""
        super().__init__()
        self.encoder = copy.copy(encoder)
        place = torch.empty(0, dtype=encoder.model.dtype, device=encoder.device)
        self.register_buffer("place", place, persistent=False)  # SentenceTransformer looks here for its device.

    @property
    def tokenizer(self) -> Any:
        """The encoder's tokenizer."""
        return self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Longest input in tokens, its prompt included."""
        return self.encoder.config.max_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.encoder = self.encoder.replace(max_tokens=value)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.encoder.embedding_dim

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, task: str | None = None, **_: Any
    ) -> dict[str, Any]:
        """Keep texts as they are; `task`, or a prompt by name, is `query` or `document`; a prompt comes before each."""
        names = {template: name for name, template in TEMPLATE_NAMES.items()}
        if prompt in names:
            task, prompt = names[prompt], None
        if prompt and SLOT in prompt:
            raise BellmError(
                f"prompt={prompt!r} is put before each text as it is, with {SLOT}. For a template write "
                f"as_sentence_transformer(encoder.replace(prompt={prompt!r}))."
            )
        return {"texts": [(prompt or "") + text for text in inputs], "input_type": task or "text"}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add the vectors of the texts, (len(texts), embedding_dim).

        Raises:
            BellmError: It is to be trained.
        """
        if self.training and torch.is_grad_enabled():
            raise BellmError("An encoder learns in bellm.train, not within a SentenceTransformer, which only embeds.")
        vectors = self.encoder.encode(
            features["texts"], input_type=features["input_type"], progress=False, convert_to_tensor=True
        )
        return {**features, "sentence_embedding": vectors}

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> "EncoderModule":
        """Load what bellm saved, checked by its fingerprint; arguments are those of SentenceTransformer.

        Raises:
            BellmError: It cannot be loaded, or an argument has no meaning for bellm.
        """
        given = {**(processor_kwargs or {}), **(config_kwargs or {}), **(model_kwargs or {})}
        dtype = given.pop("torch_dtype", None) or given.pop("dtype", None) or "auto"
        attention = given.pop("attn_implementation", None) or "auto"
        if given:
            raise BellmError(
                f"bellm has no {', '.join(given)} for an encoder that it saved. Of these arguments dtype and "
                "attn_implementation are taken; settings change with Encoder.from_pretrained(...).replace(...)."
            )
        folder = model_name_or_path
        if not Path(folder).is_dir():
            place = {"token": token, "cache_dir": cache_folder, "local_files_only": local_files_only}
            folder = huggingface_hub.snapshot_download(folder, revision=revision, **place)
        dtype = str(dtype).removeprefix("torch.")
        options: dict[str, Any] = {"attention": attention, "trust_remote_code": trust_remote_code}
        return cls(Encoder.from_pretrained(folder, dtype=dtype, **options))

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Save the encoder as bellm does, to a folder that sentence-transformers has made."""
        with tempfile.TemporaryDirectory(dir=output_path) as parent:
            self.encoder.save_pretrained(Path(parent) / "encoder")
            shutil.copytree(Path(parent) / "encoder", output_path, dirs_exist_ok=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EncoderModule":
        """Follow `to`, `half`, `cuda` and the like."""
        super()._apply(fn, recurse)
        self.encoder.to(self.place.device, self.place.dtype)
        return self


def as_sentence_transformer(encoder: Encoder) -> SentenceTransformer:
    """Give a SentenceTransformer whose vectors are those of an encoder.

    `encode_query` and `encode_document` use the prompt's templates. Texts come in batches of `batch_size`, so that
    `Encoder.encode`, which packs all of them, is quicker.
    """
    return SentenceTransformer(
        modules=[EncoderModule(encoder)],
        device=str(encoder.device),
        similarity_fn_name="cosine",
        prompts=TEMPLATE_NAMES,
    )
