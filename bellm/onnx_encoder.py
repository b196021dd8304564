"""OnnxEncoder: an exported encoder in ONNX Runtime, without torch and transformers: small, and quick to start.

Shapes: N texts, B texts of a batch, L tokens, W width of a vector.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bellm.backbone.source_names import EXPORT_FILE
from bellm.config import EncoderConfig
from bellm.engine.tokenization import Tokens, list_texts, tokenize, warn_truncated
from bellm.errors import NonFiniteError, SourceError
from bellm.extras import require_extra
from bellm.saved_encoder import read_object
from bellm.types import InputType, Vectors

if TYPE_CHECKING:
    from bellm.engine.embedding import EncodeResult

GRAPH_FILE = "model.onnx"

_KEYS = ("name", "num_layers", "embedding_dim", "dtype", "special_tokens", "fallback_token_id")
"""What export.json says besides settings."""

_BATCH_TOKENS = 1024
"""Of one run, padding included: the products are large enough by then."""


class OnnxEncoder:
    """An encoder in ONNX Runtime, which `bellm export --to onnx` wrote.

    Map, pooling and all that is done to vectors are in the graph, prompt and cutting of long texts as in `Encoder`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], num_threads: int | None = None) -> None:
        """Open the graph and the tokenizer of a folder; use `from_pretrained`."""
        require_extra("export", "ONNX Runtime", ("onnxruntime",))
        import onnxruntime
        from tokenizers import Tokenizer

        self.name, self.source = str(manifest["name"]), str(folder)
        self.config = EncoderConfig.from_dict(manifest)
        self.num_layers, self.embedding_dim = int(manifest["num_layers"]), int(manifest["embedding_dim"])
        self.dtype_name = str(manifest["dtype"])
        self._manifest = manifest
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # A thread that waits takes no CPU.
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            graph = str(folder / GRAPH_FILE)
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # Both raise classes of their own.
            raise SourceError(f"{folder} cannot be opened: {' '.join(str(error).split())[:300]}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._takes_spans = len(self._session.get_inputs()) > 2

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, num_threads: int | None = None) -> "OnnxEncoder":
        """Open a folder that `bellm export --to onnx` wrote; `num_threads` is for one run, None for all cores.

        Raises:
            BellmError: It is no such folder, or ONNX Runtime is not installed.
        """
        folder = Path(source)
        manifest = read_object(folder / EXPORT_FILE, "Export again.")
        if (kind := manifest.get("format")) != "onnx":
            raise SourceError(
                f"{folder} is an export for {kind}, and this opens those for onnx: bellm export --to onnx."
            )
        if missing := [name for name in _KEYS if name not in manifest]:
            raise SourceError(f"{folder / EXPORT_FILE} cannot be read: {missing[0]} is missing. Export again.")
        return cls(folder, manifest, num_threads)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> Vectors:
        """Embed texts, in their order, as float32 (len(texts), embedding_dim), and a string as one vector.

        Args:
            texts: A string, or any iterable of strings.
            input_type: Which of the prompt's templates the texts are put into.
            max_batch_tokens: Most tokens of one run, padding included.
            progress: Without meaning here: there is no bar.

        Warns:
            TruncationWarning: Texts were longer than `max_tokens`.
        """
        rows = [texts] if isinstance(texts, str) else list_texts(texts)
        vectors_NW, tokens = self.encode_with_counts(rows, input_type, max_batch_tokens)
        warn_truncated(tokens.num_truncated, len(rows), self.config.max_tokens)
        return vectors_NW[0] if isinstance(texts, str) else vectors_NW

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Vectors:
        """Embed queries; see `encode`."""
        return self.encode(texts, input_type="query", **options)

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> Vectors:
        """Embed documents; see `encode`."""
        return self.encode(texts, input_type="document", **options)

    def encode_with_stats(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> "EncodeResult":
        """Embed texts and count their tokens and those that were cut, without a warning; this imports torch."""
        from bellm.engine.embedding import EncodeResult

        vectors_NW, tokens = self.encode_with_counts(list_texts(texts), input_type, max_batch_tokens)
        return EncodeResult(vectors_NW, sum(map(len, tokens.ids)), tokens.num_truncated)

    def tokenize(self, texts: Sequence[str], input_type: InputType = "text") -> Tokens:
        """Token ids as the graph gets them, with the count of texts that were cut."""
        template = self.config.template_for(input_type)
        are_text = not any(token in template for token in self._manifest["special_tokens"])
        tokenizer: Any = _FastTokenizer(self._tokenizer, self._manifest["fallback_token_id"], are_text)
        return tokenize(tokenizer, texts, template, self.config.max_tokens)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts, as texts and as queries, by which encoders are told apart."""
        from bellm.saving import FINGERPRINT_TEXTS  # It imports torch.

        texts = list(FINGERPRINT_TEXTS)
        return np.concatenate([self.encode(texts), self.encode_query(texts)])

    def describe(self) -> dict[str, Any]:
        """What this encoder is and every setting that decides its vectors, as JSON values."""
        return {
            "name": self.name,
            **self.config.to_dict(),
            "num_layers": self.num_layers,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype_name,
            "device": "cpu",
            "backend": "onnx",
        }

    def __repr__(self) -> str:
        return f"OnnxEncoder({self.source}, {self.name}, {self.embedding_dim} dimensions)"

    def encode_with_counts(
        self, texts: Sequence[str], input_type: InputType = "text", max_batch_tokens: int | None = None
    ) -> tuple[Vectors, Tokens]:
        """Embed texts without a warning; returns their tokens, too."""
        tokens = self.tokenize(texts, input_type)
        vectors_NW = np.empty((len(texts), self.embedding_dim), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(tokens.ids[row]))
        budget, start = max_batch_tokens or _BATCH_TOKENS, 0
        while start < len(order):
            longest = len(tokens.ids[order[start]])
            rows = order[start : start + max(1, budget // longest)]
            vectors_NW[rows] = self._run(tokens.select(rows), longest)
            start += len(rows)
        if not np.isfinite(vectors_NW).all():
            raise NonFiniteError(f"{self.source} gives NaN or infinity. Export the model in float32.")
        return vectors_NW, tokens

    def _run(self, tokens: Tokens, length: int) -> Vectors:
        ids_BL = np.full((len(tokens), length), self._manifest["fallback_token_id"], dtype=np.int64)
        mask_BL = np.zeros_like(ids_BL)
        text_BL = np.zeros_like(ids_BL)
        for row, (ids, (start, end)) in enumerate(zip(tokens.ids, tokens.spans, strict=True)):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
            text_BL[row, slice(start, end) if start < end else slice(len(ids))] = 1
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        inputs |= {"text_mask": text_BL} if self._takes_spans else {}
        (vectors_BW,) = self._session.run(None, inputs)
        return np.asarray(vectors_BW, dtype=np.float32)


@dataclass(frozen=True)
class _FastTokenizer:
    """What `tokenize` asks of a tokenizer of transformers, of the file alone."""

    tokenizer: Any
    bos_token_id: int
    special_tokens_are_text: bool

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Any]:
        self.tokenizer.encode_special_tokens = self.special_tokens_are_text
        encoded = self.tokenizer.encode_batch(list(texts))
        return {"input_ids": [list(row.ids) for row in encoded], "offset_mapping": [row.offsets for row in encoded]}


def is_onnx_export(source: str) -> bool:
    """Whether a source is a folder of an export for ONNX Runtime."""
    return (Path(source) / EXPORT_FILE).is_file() and (Path(source) / GRAPH_FILE).is_file()
