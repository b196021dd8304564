"""GraphEncoder: an exported encoder in ONNX Runtime or OpenVINO, without torch and transformers.

It is small, and quick to start.

Shapes: N texts, B texts of a batch, L tokens, W width of a vector.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from bellm.backbone.source_names import EXPORT_FILE
from bellm.config import EncoderConfig
from bellm.engine.tokenization import Tokens, chunk_texts, deduplicate, list_texts, tokenize, warn_truncated
from bellm.errors import BellmError, NonFiniteError, SourceError
from bellm.extras import require_extra
from bellm.progress import progress_bar
from bellm.saved_encoder import FINGERPRINT_TEXTS, read_object
from bellm.tensors.similarity import cosine_similarity
from bellm.types import InputType, Vectors

if TYPE_CHECKING:
    from bellm.engine.embedding import EncodeResult

GraphBackend = Literal["onnx", "openvino"]
"""What runs a graph; also the format of its export."""

GRAPH_FILES: Mapping[GraphBackend, str] = {"onnx": "model.onnx", "openvino": "model.xml"}

_KEYS = ("name", "num_layers", "embedding_dim", "dtype", "special_tokens", "fallback_token_id")
"""What export.json says besides settings."""

_BATCH_TOKENS = 1024
"""Of one run, padding included: the products are large enough by then."""

_Run = Callable[[Mapping[str, Any]], Any]
"""Arrays by the names of a graph's inputs to its vectors."""


class GraphEncoder:
    """An encoder as a graph in ONNX Runtime or OpenVINO, which `bellm export` wrote.

    Map, pooling and all that is done to vectors are in the graph, prompt and cutting of long texts as in `Encoder`.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], num_threads: int | None = None) -> None:
        """Open the graph and the tokenizer of a folder; use `from_pretrained`."""
        from tokenizers import Tokenizer

        self.backend: GraphBackend = manifest["format"]
        self.name, self.source = str(manifest["name"]), str(folder)
        self.config = EncoderConfig.from_dict(manifest)
        self.num_layers, self.embedding_dim = int(manifest["num_layers"]), int(manifest["embedding_dim"])
        self.dtype_name = str(manifest["dtype"])
        self._manifest = manifest
        path = folder / GRAPH_FILES[self.backend]
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._run, self._inputs = _OPENERS[self.backend](str(path), num_threads)
        except BellmError:
            raise
        except Exception as error:  # They raise classes of their own.
            raise SourceError(f"{folder} cannot be opened: {' '.join(str(error).split())[:300]}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        backend: GraphBackend | None = None,
        num_threads: int | None = None,
        **settings: Any,
    ) -> "GraphEncoder":
        """Open a folder that `bellm export --to onnx` or `--to openvino` wrote.

        Args:
            source: The folder.
            backend: What it has to be for; None for either.
            num_threads: Threads of one run; None for all cores.
            settings: None can be given: those of the export hold.

        Raises:
            BellmError: It is no such folder, its runtime is not installed, or a setting was given.
        """
        folder = Path(source)
        if settings:
            raise BellmError(
                f"{folder} is a graph with settings of its own: leave {next(iter(settings))} out, or export again."
            )
        manifest = read_object(folder / EXPORT_FILE, "Export again.")
        allowed = [backend] if backend else list(get_args(GraphBackend))
        if (kind := manifest.get("format")) not in allowed:
            raise SourceError(
                f"{folder} is an export for {kind}, and this opens those for {' and '.join(allowed)}: bellm export "
                f"--to {allowed[0]}."
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
        **unknown: Any,
    ) -> Vectors:
        """Embed texts, in their order, as float32 (len(texts), embedding_dim), and a string as one vector.

        Args:
            texts: A string, or any iterable of strings.
            input_type: Which of the prompt's templates the texts are put into.
            max_batch_tokens: Most tokens of one run, padding included.
            progress: Show a progress bar; None shows none.
            unknown: Keywords of `Encoder.encode` that a graph does not have.

        Raises:
            BellmError: `texts` are not strings, a keyword is not known, or the prompt leaves no room for text.

        Warns:
            TruncationWarning: Texts were longer than `max_tokens`.
        """
        if unknown:
            raise BellmError(
                f"encode of a graph has no {next(iter(unknown))}: it takes input_type, max_batch_tokens and progress. "
                "Settings of vectors are those of the export."
            )
        rows = [texts] if isinstance(texts, str) else list_texts(texts)
        vectors_NW, _, num_truncated = self.encode_with_counts(rows, input_type, max_batch_tokens, progress)
        warn_truncated(num_truncated, len(rows), self.config.max_tokens)
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

        return EncodeResult(*self.encode_with_counts(list_texts(texts), input_type, max_batch_tokens, progress))

    def encode_with_counts(
        self,
        texts: Sequence[str],
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> tuple[Vectors, int, int]:
        """Embed texts without a warning; returns the number of their tokens, and of the texts that were cut, too."""
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise BellmError(f"max_batch_tokens={max_batch_tokens} is too small: give at least 1.")
        vectors = [np.empty((0, self.embedding_dim), dtype=np.float32)]
        num_tokens = num_truncated = 0
        bar = progress_bar(len(texts), unit="text", shown=True) if progress else nullcontext(lambda _: None)
        with bar as done:
            for chunk in chunk_texts(texts):
                tokens = self.tokenize(chunk, input_type)
                vectors.append(self.encode_tokens(tokens, max_batch_tokens=max_batch_tokens))
                num_tokens += sum(map(len, tokens.ids))
                num_truncated += tokens.num_truncated
                done(len(chunk))
        return np.concatenate(vectors), num_tokens, num_truncated

    def similarity(self, left_ND: Vectors, right_MD: Vectors) -> Vectors:
        """Cosine of every left vector with every right vector, (N, M); one vector counts as a row."""
        return cosine_similarity(np.atleast_2d(left_ND), np.atleast_2d(right_MD))

    def tokenize(self, texts: Sequence[str], input_type: InputType = "text") -> Tokens:
        """Token ids as the graph gets them, with the count of texts that were cut."""
        template = self.config.template_for(input_type)
        are_text = not any(token in template for token in self._manifest["special_tokens"])
        tokenizer: Any = _FastTokenizer(self._tokenizer, self._manifest["fallback_token_id"], are_text)
        return tokenize(tokenizer, texts, template, self.config.max_tokens)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts, as texts and as queries, by which encoders are told apart."""
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
            "backend": self.backend,
        }

    def __repr__(self) -> str:
        return f"GraphEncoder({self.source}, {self.name}, {self.backend}, {self.embedding_dim} dimensions)"

    def encode_tokens(self, tokens: Tokens, *, max_batch_tokens: int | None = None) -> Vectors:
        """Embed rows of token ids, as `tokenize` gives them, each of those that are alike once, the longest first."""
        budget = max_batch_tokens or _BATCH_TOKENS
        rows, inverse = deduplicate(tokens, by_span="text_mask" in self._inputs)
        vectors_NW = np.empty((len(rows), self.embedding_dim), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda row: -len(rows.ids[row]))
        start = 0
        while start < len(order):
            longest = len(rows.ids[order[start]])
            batch = order[start : start + max(1, budget // longest)]
            vectors_NW[batch] = self._run(self._arrays(rows.select(batch), longest))
            start += len(batch)
        if not np.isfinite(vectors_NW).all():
            raise NonFiniteError(f"{self.source} gives NaN or infinity. Export the model in float32.")
        return vectors_NW[inverse]

    def _arrays(self, tokens: Tokens, length: int) -> dict[str, Any]:
        """What the graph gets of a batch."""
        ids_BL = np.full((len(tokens), length), self._manifest["fallback_token_id"], dtype=np.int64)
        mask_BL = np.zeros_like(ids_BL)
        text_BL = np.zeros_like(ids_BL)
        for row, (ids, (start, end)) in enumerate(zip(tokens.ids, tokens.spans, strict=True)):
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = 1
            text_BL[row, slice(start, end) if start < end else slice(len(ids))] = 1
        arrays = {"input_ids": ids_BL, "attention_mask": mask_BL, "text_mask": text_BL}
        return {name: arrays[name] for name in self._inputs}


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


def _open_onnx(path: str, num_threads: int | None) -> tuple[_Run, list[str]]:
    require_extra("export", "ONNX Runtime", ("onnxruntime",))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # A thread that waits takes no CPU.
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, dict(arrays))[0], [each.name for each in session.get_inputs()]


def _open_openvino(path: str, num_threads: int | None) -> tuple[_Run, list[str]]:
    require_extra("export", "OpenVINO", ("openvino",))
    import openvino

    # Where a processor has bfloat16, OpenVINO computes in it unless told otherwise, and rounds activations to integers
    # where weights are such.
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    if num_threads:
        properties["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(path, "CPU", properties)
    # A request of its own for each run, as threads may not share one.
    return lambda arrays: compiled.create_infer_request().infer(dict(arrays))[0], [
        each.get_any_name() for each in compiled.inputs
    ]


_OPENERS: Mapping[GraphBackend, Callable[[str, int | None], tuple[_Run, list[str]]]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
}
"""Each opens a graph; gives what runs it, and the names of its inputs."""


def is_graph(source: str) -> bool:
    """Whether a source is a folder here that holds an exported graph."""
    path = Path(source) / EXPORT_FILE
    return path.is_file() and read_object(path, "Export again.").get("format") in GRAPH_FILES
