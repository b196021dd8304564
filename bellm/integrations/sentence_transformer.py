"""An encoder as a SentenceTransformer, for code that asks for one: BERTopic, KeyBERT, heads as of SetFit."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from bellm.encoder import Encoder
from bellm.errors import BellmError


class EncoderModule(InputModule):  # type: ignore[misc] # sentence-transformers is not seen by mypy
    """An encoder as the only module of a SentenceTransformer: texts in, vectors out, with the encoder's prompt.

    It embeds, and cannot be trained. Moving the SentenceTransformer moves it, and leaves the encoder that was given
    where it is.
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
        """Keep texts as they are; `task` is `query` or `document`, and `prompt` comes before each text."""
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

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Refuse: a saved encoder has a format of its own."""
        raise BellmError("A SentenceTransformer of an encoder is not saved. Write encoder.save_pretrained(folder).")

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
        modules=[EncoderModule(encoder)], device=str(encoder.device), similarity_fn_name="cosine"
    )
