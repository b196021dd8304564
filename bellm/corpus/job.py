"""Embed a corpus: check the folder's configuration, find what is missing, embed it, write the manifest.

What embeds is this process unless another executor is given. Shards are the same: work that one has begun another can
finish.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from bellm.backbone.loading import resolve_device
from bellm.backbone.source_names import SETTINGS_FILE
from bellm.corpus import shards
from bellm.corpus.chunking import ChunkedFile, Chunking
from bellm.corpus.corpus_config import CorpusConfig, check_corpus_config
from bellm.corpus.manifest import (
    MANIFEST_FILE,
    REJECTED_FILE,
    Manifest,
    check_contents,
    scan_shards,
    write_manifest,
)
from bellm.corpus.row_ranges import (
    SHARD_FOLDER,
    SHARD_ROWS,
    Precision,
    RowRange,
    Shard,
    corpus_files,
    in_order,
    missing_ranges,
)
from bellm.data.amr import warn_missing_graphs
from bellm.encoder import Encoder
from bellm.engine.concurrency import prefetch
from bellm.engine.embedding import EncodeResult, warn_degenerate
from bellm.engine.tokenization import chunk_texts, warn_truncated
from bellm.errors import BellmError, SourceError, check_choice, check_encoder
from bellm.io import atomic
from bellm.io.rows import TextColumns, TextFile
from bellm.io.streams import STDIN
from bellm.multiview import MultiViewEncoder
from bellm.pool import EncoderPool
from bellm.saved_encoder import FINGERPRINT_FILE
from bellm.text_files import on_devices, run_summary
from bellm.types import Embedder, InputType

LOCK_FILE = ".lock"

_FILES = (LOCK_FILE, SHARD_FOLDER, MANIFEST_FILE, REJECTED_FILE)  # Of a corpus that has no fingerprint yet.
_PIECE_ROWS, _PIECE_CHARACTERS = 1024, 2**22  # Texts that go to the encoder at once: progress shows after each.


class CorpusProgress(NamedTuple):
    """How far a run has come, in rows and tokens that it embedded."""

    rows: int
    tokens: int
    share: float
    """How much of the inputs was read and embedded, from 0 to 1; 0 where that cannot be known."""


@dataclass(frozen=True)
class Job:
    """A run over a corpus folder: inputs, configuration and the shards that are done, for an executor."""

    out: Path
    files: list[str]
    open_file: Callable[[str], TextFile]
    """What reads the rows of a file, or the chunks of its documents."""
    shard_rows: int
    """Most rows of a shard."""
    done: list[Shard]
    config: CorpusConfig
    digest: str
    """Digest of the configuration and the encoder's fingerprint."""
    max_batch_tokens: int | None = None
    devices: Sequence[str] = ()
    """Devices of processes that embed in the encoder's place; none if empty."""

    def write(self, row_range: RowRange, parts: Sequence[EncodeResult]) -> Shard:
        """Write the shard of a row range from what `embed_rows` gave; errors as in `shards.write_shard`."""
        return shards.write_shard(
            self.out / SHARD_FOLDER,
            row_range,
            EncodeResult(
                np.concatenate([part.vectors for part in parts]),
                sum(part.num_tokens for part in parts),
                sum(part.num_truncated for part in parts),
                sum(part.num_missing_graphs for part in parts),
            ),
            precision=self.config.precision,
            keep_text=self.config.keep_text,
            has_places=self.config.chunk is not None,
            config_digest=self.digest,
        )


Executor = Callable[[Embedder, Job, Callable[[CorpusProgress], None]], list[Shard]]
"""Embeds what is missing and gives the new shards, in any order."""


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """Report of a run: the rows and tokens that it embedded, and the manifest of the folder."""

    out: Path
    manifest: Manifest
    new_rows: int
    new_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Numbers of the corpus and of this run, and the encoder."""
        counts = (
            "rows",
            "unreadable",
            "numbered",
            "duplicate_ids",
            "truncated",
            "missing_graphs",
            "tokens",
            "embedding_dim",
        )
        return {
            **{name: getattr(self.manifest, name) for name in counts},
            "shards": len(self.manifest.shards),
            "new_rows": self.new_rows,
            "output": str(self.out),
            "encoder": self.manifest.encoder,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        manifest = self.manifest
        return (
            f"{self.out}: {manifest.rows} rows of {manifest.embedding_dim} dimensions in {len(manifest.shards)} "
            f"shards, {self.new_rows} of them new, {run_summary(manifest.encoder, self.new_rows, self.seconds)}"
        )


def embed_corpus(
    encoder: Embedder | Callable[[], Embedder],
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    source: str | None = None,
    column: str = "text",
    id_column: str | None = None,
    input_type: InputType = "text",
    precision: Precision = "float32",
    keep_text: bool = False,
    chunk: int | None = None,
    overlap: int = 0,
    shard_rows: int = SHARD_ROWS,
    max_batch_tokens: int | None = None,
    devices: Sequence[str] = (),
    executor: Executor | None = None,
    progress: Callable[[CorpusProgress], None] = lambda _: None,
) -> CorpusReport:
    """Embed every row of the inputs into a folder of shards; the same call resumes where an earlier one was stopped.

    Rows that have a shard already are compared with it and not embedded again, so a second call on inputs that have
    grown embeds what is new.

    Args:
        encoder: An Encoder or any other Embedder, or a function that loads one, called once the inputs are checked.
        inputs: Files, folders, patterns, or `-` for standard input; see `bellm.io.rows.expand_inputs`.
        out: The folder; made if it is not there.
        source: What `Encoder.from_pretrained` was given, for the manifest.
        column: Where tables hold the texts; or `text=COLUMN,id=COLUMN`.
        id_column: Where tables hold ids; without it an id is `FILE:ROW`, the file as it was named.
        input_type: Which of the prompt's templates is used.
        precision: How vectors are kept.
        keep_text: Keep the texts beside their vectors.
        chunk: Split documents into chunks of at most so many tokens: files of Markdown, HTML and plain text, and the
            rows of all others. Every chunk is a row with `chunk`, `start`, `end` and `line`, its place in the document.
        overlap: At most so many tokens of a chunk stand in the next one too.
        shard_rows: Most rows of a shard.
        max_batch_tokens: Most tokens in one forward pass.
        devices: Embed with one process for each of these devices, in this machine.
        executor: What embeds, such as `bellm.corpus.ray_executor.RayExecutor`; None is this process.
        progress: Called with how far it is, after some hundred rows each time.

    Raises:
        BellmError: What came, what is allowed and what to do, in one line. Finished shards are kept.
        KeyboardInterrupt: Ctrl-C; its message says what is kept.

    Warns:
        TruncationWarning: Texts were cut to fit.
        BellmWarning: Texts have no AMR graph, and the encoder reads graphs.
        CorpusWarning: Rows cannot be read, a damaged shard was replaced, or the folder holds other files as well.
        NoOpWarning: Some hundred different texts have the same vector, or some have a vector of zeros.
    """
    out = Path(out)
    check_choice("precision", precision, Precision)
    check_choice("input_type", input_type, InputType)
    if shard_rows < 1:
        raise BellmError(f"shard_rows={shard_rows} is too small: give at least 1.")
    if executor and devices:
        raise BellmError("--devices belongs to --engine local: each worker of Ray takes the device that it is given.")
    for device in devices:
        resolve_device(device)
    check_encoder(encoder, Embedder)
    columns = TextColumns.parse(column, id_column)
    files = corpus_files(inputs, out, columns, chunk is not None)
    start = time.perf_counter()
    try:
        embedder = encoder() if callable(encoder) else encoder
        if devices and not isinstance(embedder, Encoder):
            raise BellmError("Processes on several devices need a bellm Encoder, and this is none: leave devices out.")
        if isinstance(embedder, MultiViewEncoder):
            embedder.check_graphs()  # Before the folder begins, which belongs to one file of graphs.
        config = CorpusConfig.of(
            embedder,
            input_type=input_type,
            precision=precision,
            keep_text=keep_text,
            column=columns.text,
            id_column=columns.id,
            chunk=chunk,
            overlap=overlap,
        )
        open_file: Callable[[str], TextFile] = partial(TextFile, columns=columns)
        if chunk is not None:
            chunking = _chunking(embedder, chunk, overlap, input_type)
            open_file = partial(ChunkedFile, columns=columns, chunking=chunking)
        with lock_corpus(out):
            digest = check_corpus_config(out, config, embedder)
            done = scan_shards(out, digest)
            job = Job(out, files, open_file, shard_rows, done, config, digest, max_batch_tokens, devices)
            new = (executor or _embed_here)(embedder, job, progress)
            description = embedder.describe()
            described = {"source": source or description.get("name"), **description}
            manifest = write_manifest(out, described, vars(config), digest, in_order(files, [*done, *new]))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"finished shards are kept in {out}, and the same command resumes there.") from None
    warn_truncated(manifest.truncated, manifest.rows, manifest.encoder.get("max_tokens", 0))
    warn_missing_graphs(manifest.missing_graphs, manifest.rows)
    check_contents(out, manifest, files)
    return CorpusReport(
        out=out,
        manifest=manifest,
        new_rows=sum(shard.num_rows for shard in new),
        new_tokens=sum(shard.num_tokens for shard in new),
        seconds=time.perf_counter() - start,
    )


def _chunking(embedder: Embedder, chunk: int, overlap: int, input_type: InputType) -> Chunking:
    """Chunks by an encoder's tokenizer that fit the encoder with its prompt."""
    if not isinstance(embedder, Encoder):
        raise BellmError("Chunks are counted by the tokenizer of one bellm Encoder, and this is none: leave chunk out.")
    frame = len(embedder.tokenize([""], input_type).ids[0])
    limit = embedder.config.max_tokens - frame
    if chunk > limit:
        raise BellmError(
            f"chunk={chunk} is too large: beside the prompt the encoder takes {limit} tokens (max_tokens)."
        )
    return Chunking(embedder.tokenizer.backend_tokenizer, chunk, overlap)


@contextmanager
def lock_corpus(out: Path) -> Iterator[None]:
    """Hold the lock of a corpus folder: make it if need be, and remove the drafts of a process that was killed."""
    try:
        # A saved encoder has a fingerprint too.
        is_ours = not out.exists() or ((out / FINGERPRINT_FILE).exists() and not (out / SETTINGS_FILE).exists())
        if not is_ours and any(path.name not in _FILES and path.suffix != atomic.DRAFT for path in out.iterdir()):
            raise SourceError(f"{out} holds other files and is no corpus of bellm. Give a new folder.")
        (out / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK_FILE, timeout=0):
            atomic.remove_drafts(out)
            atomic.remove_drafts(out / SHARD_FOLDER)
            yield
    except Timeout as error:
        raise SourceError(
            f"Another bellm is at work in {out}. Wait until it is done, or give another folder."
        ) from error
    except OSError as error:
        raise SourceError(f"{out} cannot be written: {error.strerror or error}.") from error


def embed_rows(embedder: Embedder | EncoderPool, row_range: RowRange, job: Job) -> Iterator[EncodeResult]:
    """Embed the readable texts of a row range in their order, some at a time."""
    # A pool cuts a piece again, and its processes should all have something to do.
    at_once = 4 * len(job.devices) if isinstance(embedder, EncoderPool) else 1
    pieces = chunk_texts(row_range.texts, max_texts=at_once * _PIECE_ROWS, max_characters=at_once * _PIECE_CHARACTERS)
    kind, first = job.config.input_type, 0
    for texts in pieces if row_range.texts else [[]]:
        if isinstance(embedder, Encoder | MultiViewEncoder | EncoderPool):
            part = embedder.encode_with_stats(texts, input_type=kind, max_batch_tokens=job.max_batch_tokens)
        else:
            part = EncodeResult(embedder.encode(texts, input_type=kind), 0, 0)
        if len(broken := np.flatnonzero(~np.isfinite(part.vectors).all(axis=1))):
            row = row_range.rows[first + broken[0]]
            computed = f" in {job.config.encoder['dtype']}" if "dtype" in job.config.encoder else ""
            raise BellmError(
                f"{row_range.file}, row {row}: its vector is not finite{computed}. Load the model with dtype float32."
            )
        warn_degenerate(texts, part.vectors, str(job.config.encoder.get("dtype", "float32")))
        first += len(texts)
        yield part


def _embed_here(embedder: Embedder, job: Job, progress: Callable[[CorpusProgress], None]) -> list[Shard]:
    """The executor of one machine: reads a row range ahead of the model, and writes a shard behind it."""
    row_ranges = missing_ranges(job.files, job.open_file, job.done, job.shard_rows)
    # Standard input is read where Ctrl-C arrives.
    row_ranges = row_ranges if STDIN in job.files else prefetch(row_ranges)
    written: list[Future[Shard]] = []
    rows = tokens = 0
    devices = on_devices(embedder, job.devices) if isinstance(embedder, Encoder) else nullcontext(embedder)
    with devices as embedding, ThreadPoolExecutor(1) as writer:
        for row_range in row_ranges:
            parts: list[EncodeResult] = []
            share = row_range.begun
            for part in embed_rows(embedding, row_range, job):
                if written and written[-1].done():
                    written[-1].result()  # A disk that is full shows before the next shard is embedded in vain.
                parts.append(part)
                rows, tokens = rows + len(part.vectors), tokens + part.num_tokens
                share += (row_range.read - row_range.begun) * len(part.vectors) / max(len(row_range.rows), 1)
                progress(CorpusProgress(rows, tokens, share))
            if written:
                written[-1].result()  # Two shards in memory at most.
            written.append(writer.submit(job.write, row_range, parts))
    return [future.result() for future in written]
