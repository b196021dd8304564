"""Embed a corpus: agree, plan, embed, finish.

The engine between plan and finish is this process unless another is given. Whichever it is, shards are the same: work
that one has begun another can finish.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from bellm.corpus import shard_plan, shards
from bellm.corpus.corpus_config import CorpusConfig, check_corpus_config
from bellm.corpus.input_files import check_columns, expand_inputs
from bellm.corpus.manifest import MANIFEST_FILE, REJECTED_FILE, Manifest, write_manifest
from bellm.corpus.row_ranges import SHARD_ROWS, RowRange
from bellm.corpus.shards import Precision, Shard
from bellm.encoder import Encoder
from bellm.engine.concurrency import prefetch
from bellm.engine.embedding import EncodeResult
from bellm.engine.tokenization import warn_truncated
from bellm.errors import BellmError, CorpusWarning, SourceError
from bellm.io import atomic
from bellm.io.rows import STDIN, TextColumns
from bellm.metadata import encoder_metadata
from bellm.saving import FINGERPRINT_FILE
from bellm.types import InputType

LOCK_FILE = ".lock"

_PIECE_ROWS, _PIECE_CHARACTERS = 1024, 2**22  # Texts that go to the encoder at once: progress shows after each.


class CorpusProgress(NamedTuple):
    """How far a run has come."""

    rows: int
    """Rows embedded by this run."""
    tokens: int
    share: float
    """How much of the inputs was read and embedded, from 0 to 1; 0 where that cannot be known."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be embedded, and how: all that an engine needs to know next to the encoder."""

    out: Path
    files: list[str]
    columns: TextColumns
    shard_rows: int
    """Most rows of a shard."""
    done: list[Shard]
    """The shards that are there."""
    recipe: CorpusConfig
    digest: str
    """Digest of the recipe and the encoder."""
    max_batch_tokens: int | None

    def write(self, row_range: RowRange, encoded: EncodeResult) -> Shard:
        """Write the shard of a span; errors as in `shards.write`."""
        form, keep_text = self.recipe.vectors, self.recipe.keep_text
        return shards.write_shard(
            self.out / shards.SHARD_FOLDER, row_range, encoded, form=form, keep_text=keep_text, recipe=self.digest
        )


Executor = Callable[[Encoder, Job, Callable[[CorpusProgress], None] | None], list[Shard]]
"""Embeds what is missing and gives the new shards, in any order."""


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """What a run has done, and what the folder holds."""

    manifest: Manifest
    new_rows: int
    """Rows embedded by this run."""
    new_tokens: int
    seconds: float


def embed_corpus(
    encoder: Encoder,
    inputs: Sequence[str],
    out: str | Path,
    *,
    source: str | None = None,
    column: str = "text",
    id_column: str | None = None,
    input_type: InputType = "text",
    vectors: Precision = "float32",
    keep_text: bool = False,
    shard_rows: int = SHARD_ROWS,
    max_batch_tokens: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[CorpusProgress], None] | None = None,
) -> CorpusReport:
    """Embed every row of the inputs into a folder of shards; the same call goes on where an earlier one was stopped.

    Rows that have a shard already are compared with it and not embedded again, so a second call on inputs that have
    grown embeds what is new.

    Args:
        encoder: What embeds.
        inputs: Files, folders, patterns, or `-` for standard input; see `bellm.corpus.input_files.expand_inputs`.
        out: The folder; made if it is not there.
        source: What `Encoder.from_pretrained` was given, for the manifest.
        column: Where tables hold the texts.
        id_column: Where tables hold ids; without it an id is `FILE:ROW`, the file as it was named.
        input_type: Which of the prompt's templates is used.
        vectors: How vectors are kept.
        keep_text: Keep the texts beside their vectors.
        shard_rows: Most rows of a shard.
        max_batch_tokens: Most tokens in one forward pass.
        executor: What does the work, such as `bellm.corpus.ray_executor.RayExecutor`; None is this process.
        progress: Called with how far it is, after some hundred rows each time.

    Raises:
        BellmError: What came, what is allowed and what to do, in one line. Finished shards are kept.

    Warns:
        TruncationWarning: Texts were cut to fit.
        CorpusWarning: Rows cannot be read, a damaged shard was replaced, or the folder holds other files as well.
    """
    out = Path(out)
    if shard_rows < 1:
        raise BellmError(f"shard_rows={shard_rows} is too small: give at least 1.")
    columns = TextColumns(column, id_column)
    files = expand_inputs(inputs, skip=out)
    check_columns(files, columns)
    recipe = CorpusConfig(
        config=encoder.config.digest(),
        dtype=encoder.dtype_name,
        input_type=input_type,
        vectors=vectors,
        keep_text=keep_text,
        column=column,
        id_column=id_column,
    )
    start = time.perf_counter()
    with lock_corpus(out):
        digest = check_corpus_config(out, recipe, encoder)
        done = shard_plan.scan_shards(out, digest)
        job = Job(
            out=out,
            files=files,
            columns=columns,
            shard_rows=shard_rows,
            done=done,
            recipe=recipe,
            digest=digest,
            max_batch_tokens=max_batch_tokens,
        )
        new = (executor or _embed)(encoder, job, progress)
        manifest = write_manifest(
            out, encoder_metadata(source or encoder.name, encoder), shard_plan.in_order(files, [*done, *new])
        )
    _tell(out, manifest, files)
    return CorpusReport(
        manifest=manifest,
        new_rows=sum(shard.num_rows for shard in new),
        new_tokens=sum(shard.num_tokens for shard in new),
        seconds=time.perf_counter() - start,
    )


@contextmanager
def lock_corpus(out: Path) -> Iterator[None]:
    """Hold a corpus folder alone: make it if need be, and clear away the drafts of a process that was killed.

    Raises:
        SourceError: Another process is at work there, the folder holds something else, or the disk refuses.
    """
    try:
        _refuse_strangers(out)
        (out / shards.SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK_FILE, timeout=0):
            atomic.remove_drafts(out)
            atomic.remove_drafts(out / shards.SHARD_FOLDER)
            yield
    except Timeout as error:
        raise SourceError(
            f"Another bellm is at work in {out}. Wait until it is done, or give another folder."
        ) from error
    except OSError as error:
        raise SourceError(f"{out} cannot be written: {error.strerror or error}.") from error


def embed_rows(
    encoder: Encoder,
    row_range: RowRange,
    recipe: CorpusConfig,
    *,
    max_batch_tokens: int | None = None,
    watch: Callable[[int, int], None] = lambda rows, tokens: None,
) -> EncodeResult:
    """Embed the texts of a span, in their order.

    Args:
        encoder: What embeds.
        row_range: What to embed; it may hold no readable row.
        recipe: Role and length of the vectors.
        max_batch_tokens: Most tokens in one forward pass.
        watch: Called with the rows and tokens of each piece that is done.

    Raises:
        BellmError: A vector is not finite.
    """
    vectors = np.empty((len(row_range.texts), encoder.embedding_dim), np.float32)
    tokens = truncated = 0
    for piece in _pieces(row_range.texts):
        encoded = encoder.encode_with_stats(
            row_range.texts[piece],
            input_type=recipe.input_type,
            max_batch_tokens=max_batch_tokens,
        )
        vectors[piece] = encoded.vectors
        tokens, truncated = tokens + encoded.num_tokens, truncated + encoded.num_truncated
        watch(len(encoded.vectors), encoded.num_tokens)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise BellmError(
            f"{row_range.file}, row {row_range.rows[broken[0]]}: its vector is not finite. Load the model with dtype "
            "float32."
        )
    return EncodeResult(vectors, tokens, truncated)


def _embed(encoder: Encoder, job: Job, progress: Callable[[CorpusProgress], None] | None) -> list[Shard]:
    """The engine of one machine: reading is a span ahead of the model, and writing a shard behind it."""
    row_ranges = shard_plan.missing_ranges(job.files, job.columns, job.done, job.shard_rows)
    # Standard input is read where Ctrl-C arrives.
    row_ranges = row_ranges if STDIN in job.files else prefetch(row_ranges)
    new: list[Shard] = []
    meter = _Meter(progress)

    def write(row_range: RowRange, encoded: EncodeResult) -> None:
        new.append(job.write(row_range, encoded))

    with ThreadPoolExecutor(1) as writer:
        for row_range in row_ranges:
            meter.begin(row_range)
            encoded = embed_rows(
                encoder, row_range, job.recipe, max_batch_tokens=job.max_batch_tokens, watch=meter.count
            )
            meter.written.result()
            meter.written = writer.submit(write, row_range, encoded)
        meter.written.result()
    return new


class _Meter:
    """Counts what is embedded, tells it, and sees at once when writing the shard before has failed."""

    def __init__(self, tell: Callable[[CorpusProgress], None] | None) -> None:
        self.written: Future[None] = Future()
        self.written.set_result(None)
        self._tell = tell
        self._now = CorpusProgress(0, 0, 0.0)
        self._gain = 0.0

    def begin(self, row_range: RowRange) -> None:
        """Know how much of the inputs each row of this span is."""
        self._now = self._now._replace(share=row_range.begun)
        self._gain = (row_range.read - row_range.begun) / max(len(row_range.rows), 1)

    def count(self, rows: int, tokens: int) -> None:
        """Take in a piece of the span."""
        if self.written.done():
            self.written.result()
        now = self._now
        self._now = CorpusProgress(now.rows + rows, now.tokens + tokens, now.share + rows * self._gain)
        if self._tell:
            self._tell(self._now)


def _tell(out: Path, manifest: Manifest, files: Sequence[str]) -> None:
    """Say what a corpus lacks, and what it holds besides."""
    listed = f"{out / REJECTED_FILE} lists them."
    if manifest.unreadable and not manifest.rows:
        raise SourceError(f"None of the {manifest.unreadable} rows can be read; {listed}")
    if manifest.unreadable:
        found = manifest.rows + manifest.unreadable
        warnings.warn(f"{manifest.unreadable} of {found} rows cannot be read; {listed}", CorpusWarning, stacklevel=3)
    warn_truncated(manifest.truncated, manifest.rows, manifest.encoder["max_tokens"])
    if others := sorted({shard["file"] for shard in manifest.shards} - set(files)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(
            f"{out} also holds {others[0]}{more}, embedded earlier and not named now.", CorpusWarning, stacklevel=3
        )


def _pieces(texts: Sequence[str]) -> Iterator[slice]:
    """Cut texts into pieces of bounded size, none of them empty."""
    start = characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if number + 1 - start == _PIECE_ROWS or characters >= _PIECE_CHARACTERS:
            yield slice(start, number + 1)
            start, characters = number + 1, 0
    if start < len(texts):
        yield slice(start, len(texts))


def _refuse_strangers(out: Path) -> None:
    if (out / FINGERPRINT_FILE).exists() or not out.exists():
        return
    ours = (LOCK_FILE, shards.SHARD_FOLDER, MANIFEST_FILE, REJECTED_FILE)
    if any(path.name not in ours and not path.name.endswith(atomic.DRAFT) for path in out.iterdir()):
        raise SourceError(f"{out} holds other files and is no corpus of bellm. Give a new folder.")
