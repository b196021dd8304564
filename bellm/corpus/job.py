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

from bellm.corpus import plan, shards
from bellm.corpus.formats import Columns
from bellm.corpus.inputs import STDIN, check, expand
from bellm.corpus.manifest import MANIFEST_FILE, REJECTED_FILE, Manifest, finish
from bellm.corpus.recipe import Recipe, agree
from bellm.corpus.shards import Shard, VectorForm
from bellm.corpus.spans import SHARD_ROWS, Span
from bellm.encoder import Encoder
from bellm.engine.embedding import EncodeResult
from bellm.engine.plan import prefetch
from bellm.engine.tokenization import warn_truncated
from bellm.errors import BellmError, CorpusWarning, SourceError
from bellm.io import atomic
from bellm.metadata import encoder_metadata
from bellm.saving import FINGERPRINT_FILE
from bellm.types import InputType

LOCK_FILE = ".lock"

_PIECE_ROWS, _PIECE_CHARACTERS = 1024, 2**22  # Texts that go to the encoder at once: progress shows after each.


class Progress(NamedTuple):
    """How far a run has come."""

    rows: int
    """Rows embedded by this run."""
    tokens: int
    share: float
    """How much of the inputs was read and embedded, from 0 to 1; 0 where that cannot be known."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be embedded, and how: all that an engine needs to know next to the encoder."""

    out: Path
    files: list[str]
    columns: Columns
    shard_rows: int
    """Most rows of a shard."""
    done: list[Shard]
    """The shards that are there."""
    recipe: Recipe
    digest: str
    """Digest of the recipe and the encoder."""
    max_batch_tokens: int | None

    def write(self, span: Span, encoded: EncodeResult) -> Shard:
        """Write the shard of a span; errors as in `shards.write`."""
        form, keep_text = self.recipe.vectors, self.recipe.keep_text
        return shards.write(self.out / shards.FOLDER, span, encoded, form=form, keep_text=keep_text, recipe=self.digest)


Engine = Callable[[Encoder, Work, Callable[[Progress], None] | None], list[Shard]]
"""Embeds what is missing and gives the new shards, in any order."""


@dataclass(frozen=True, kw_only=True)
class Report:
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
    vectors: VectorForm = "float32",
    keep_text: bool = False,
    shard_rows: int = SHARD_ROWS,
    normalize: bool = False,
    max_batch_tokens: int | None = None,
    engine: Engine | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Embed every row of the inputs into a folder of shards; the same call goes on where an earlier one was stopped.

    Rows that have a shard already are compared with it and not embedded again, so a second call on inputs that have
    grown embeds what is new.

    Args:
        encoder: What embeds.
        inputs: Files, folders, patterns, or `-` for standard input; see `bellm.corpus.inputs.expand`.
        out: The folder; made if it is not there.
        source: What `Encoder.from_pretrained` was given, for the manifest.
        column: Where tables hold the texts.
        id_column: Where tables hold ids; without it an id is `FILE:ROW`, the file as it was named.
        input_type: Which of the prompt's templates is used.
        vectors: How vectors are kept.
        keep_text: Keep the texts beside their vectors.
        shard_rows: Most rows of a shard.
        normalize: Scale every vector to length 1.
        max_batch_tokens: Most tokens in one forward pass.
        engine: What does the work, such as `bellm.corpus.ray.RayEngine`; None is this process.
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
    columns = Columns(column, id_column)
    files = expand(inputs, skip=out)
    check(files, columns)
    recipe = Recipe(
        config=encoder.config.digest(),
        dtype=encoder.dtype_name,
        input_type=input_type,
        normalize=normalize,
        vectors=vectors,
        keep_text=keep_text,
        column=column,
        id_column=id_column,
    )
    start = time.perf_counter()
    with locked(out):
        digest = agree(out, recipe, encoder)
        done = plan.survey(out, digest)
        work = Work(
            out=out,
            files=files,
            columns=columns,
            shard_rows=shard_rows,
            done=done,
            recipe=recipe,
            digest=digest,
            max_batch_tokens=max_batch_tokens,
        )
        new = (engine or _embed)(encoder, work, progress)
        manifest = finish(out, encoder_metadata(source or encoder.name, encoder), plan.in_order(files, [*done, *new]))
    _tell(out, manifest, files)
    return Report(
        manifest=manifest,
        new_rows=sum(shard.num_rows for shard in new),
        new_tokens=sum(shard.num_tokens for shard in new),
        seconds=time.perf_counter() - start,
    )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a corpus folder alone: make it if need be, and clear away the drafts of a process that was killed.

    Raises:
        SourceError: Another process is at work there, the folder holds something else, or the disk refuses.
    """
    try:
        _refuse_strangers(out)
        (out / shards.FOLDER).mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK_FILE, timeout=0):
            atomic.remove_drafts(out)
            atomic.remove_drafts(out / shards.FOLDER)
            yield
    except Timeout as error:
        raise SourceError(
            f"Another bellm is at work in {out}. Wait until it is done, or give another folder."
        ) from error
    except OSError as error:
        raise SourceError(f"{out} cannot be written: {error.strerror or error}.") from error


def embed_span(
    encoder: Encoder,
    span: Span,
    recipe: Recipe,
    *,
    max_batch_tokens: int | None = None,
    watch: Callable[[int, int], None] = lambda rows, tokens: None,
) -> EncodeResult:
    """Embed the texts of a span, in their order.

    Args:
        encoder: What embeds.
        span: What to embed; it may hold no readable row.
        recipe: Role and length of the vectors.
        max_batch_tokens: Most tokens in one forward pass.
        watch: Called with the rows and tokens of each piece that is done.

    Raises:
        BellmError: A vector is not finite.
    """
    vectors = np.empty((len(span.texts), encoder.embedding_dim), np.float32)
    tokens = truncated = 0
    for piece in _pieces(span.texts):
        encoded = encoder.encode_with_stats(
            span.texts[piece],
            input_type=recipe.input_type,
            normalize=recipe.normalize,
            max_batch_tokens=max_batch_tokens,
        )
        vectors[piece] = encoded.vectors
        tokens, truncated = tokens + encoded.num_tokens, truncated + encoded.num_truncated
        watch(len(encoded.vectors), encoded.num_tokens)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise BellmError(
            f"{span.file}, row {span.rows[broken[0]]}: its vector is not finite. Load the model with dtype float32."
        )
    return EncodeResult(vectors, tokens, truncated)


def _embed(encoder: Encoder, work: Work, progress: Callable[[Progress], None] | None) -> list[Shard]:
    """The engine of one machine: reading is a span ahead of the model, and writing a shard behind it."""
    spans = plan.missing(work.files, work.columns, work.done, work.shard_rows)
    # Standard input is read where Ctrl-C arrives.
    spans = spans if STDIN in work.files else prefetch(spans)
    new: list[Shard] = []
    meter = _Meter(progress)

    def write(span: Span, encoded: EncodeResult) -> None:
        new.append(work.write(span, encoded))

    with ThreadPoolExecutor(1) as writer:
        for span in spans:
            meter.begin(span)
            encoded = embed_span(encoder, span, work.recipe, max_batch_tokens=work.max_batch_tokens, watch=meter.count)
            meter.written.result()
            meter.written = writer.submit(write, span, encoded)
        meter.written.result()
    return new


class _Meter:
    """Counts what is embedded, tells it, and sees at once when writing the shard before has failed."""

    def __init__(self, tell: Callable[[Progress], None] | None) -> None:
        self.written: Future[None] = Future()
        self.written.set_result(None)
        self._tell = tell
        self._now = Progress(0, 0, 0.0)
        self._gain = 0.0

    def begin(self, span: Span) -> None:
        """Know how much of the inputs each row of this span is."""
        self._now = self._now._replace(share=span.begun)
        self._gain = (span.read - span.begun) / max(len(span.rows), 1)

    def count(self, rows: int, tokens: int) -> None:
        """Take in a piece of the span."""
        if self.written.done():
            self.written.result()
        now = self._now
        self._now = Progress(now.rows + rows, now.tokens + tokens, now.share + rows * self._gain)
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
    ours = (LOCK_FILE, shards.FOLDER, MANIFEST_FILE, REJECTED_FILE)
    if any(path.name not in ours and not path.name.endswith(atomic.DRAFT) for path in out.iterdir()):
        raise SourceError(f"{out} holds other files and is no corpus of bellm. Give a new folder.")
