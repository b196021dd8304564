"""Embed a corpus on many machines: Ray Data hands row ranges to workers that load the encoder once and write shards.

Every machine finds the inputs and the corpus folder under the same paths: they lie on a file system that all share. A
worker that dies is started again, and with it the row ranges that it held.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from bellm.corpus.corpus_config import EncoderRef
from bellm.corpus.job import CorpusProgress, Job, embed_rows
from bellm.corpus.ray_cluster import ray_cluster, share_cluster, use_share
from bellm.corpus.row_ranges import SHARD_FOLDER, Shard, missing_ranges, read_missing_ranges
from bellm.encoder import Encoder
from bellm.engine.graph_encoder import GraphEncoder
from bellm.errors import BellmError, SourceError
from bellm.io import atomic
from bellm.io.streams import STDIN
from bellm.multiview import MultiViewEncoder
from bellm.types import Embedder

try:
    import ray
    import ray.data
except ImportError as error:
    raise SourceError("The engine ray needs Ray Data: pip install 'bellm[corpus]'.") from error


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Embeds with the workers of a Ray cluster; an `Executor` for `embed_corpus`.

    The cluster is the one that this process is connected to, that RAY_ADDRESS names or that runs on this machine;
    without any, one is started here and ended with the work.
    """

    source: str
    """What `Encoder.from_pretrained` was given; workers load it too."""
    workers: int | None = None
    """How many load the encoder and embed; None is one for each GPU, or for each machine where there is none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `Encoder.from_pretrained` that leave the vectors alone."""

    def __call__(
        self, encoder: Embedder, job: Job, progress: Callable[[CorpusProgress], None] = lambda _: None
    ) -> list[Shard]:
        """Embed what is missing; returns the new shards. Where a worker fails, finished shards are kept."""
        if not isinstance(encoder, Encoder | MultiViewEncoder):
            raise BellmError("Other machines load a bellm Encoder again, and this is none: leave the executor out.")
        if STDIN in job.files:
            raise BellmError("Other machines cannot read this one's standard input: give files, or engine local.")
        source = os.path.abspath(self.source) if os.path.exists(self.source) else self.source
        encoder_ref = EncoderRef(
            source=source,
            config=encoder.config if isinstance(encoder, Encoder) else None,
            dtype=encoder.dtype_name,
            fingerprint=encoder.fingerprint(),
            weights=job.config.weights,
        )
        with ray_cluster(), _blocks_of_one(), _one_line():
            rows = self._dataset(encoder_ref, job).iter_rows() if job.files else iter(())
            new = list(_written_shards(rows, job, progress))
        atomic.remove_drafts(job.out / SHARD_FOLDER)
        return new

    def _dataset(self, encoder_ref: EncoderRef, job: Job) -> Any:
        """Lazy pipeline from files to row ranges to the metadata of each shard."""
        directory = os.getcwd()
        workers, cpus, gpus = share_cluster(self.workers)
        files = ray.data.from_items([{"file": file} for file in job.files], override_num_blocks=len(job.files))
        find = partial(missing_ranges, open_file=job.open_file, done=job.done, max_rows=job.shard_rows)
        row_ranges = files.flat_map(read_missing_ranges, fn_args=(find, directory), num_cpus=0)
        # From flat_map, unlike from map, a worker's error comes through as it is.
        return row_ranges.flat_map(
            _Worker,
            fn_constructor_args=(encoder_ref, dict(self.options), job, directory),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )


@dataclass
class _Worker:
    """Ray actor: one encoder that embeds row ranges and writes their shards."""

    encoder_ref: EncoderRef
    options: dict[str, Any]
    job: Job
    directory: str

    def __post_init__(self) -> None:
        os.chdir(self.directory)

    @cached_property
    def _encoder(self) -> Encoder | MultiViewEncoder | GraphEncoder:
        # Not when the actor is made: there an error would reach nobody in words.
        use_share()
        return self.encoder_ref.load(**self.options)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        row_range = row["row_range"]
        shard = self.job.write(row_range, list(embed_rows(self._encoder, row_range, self.job)))
        yield vars(shard) | {"read": row_range.read}


def _written_shards(
    rows: Iterator[dict[str, Any]], job: Job, progress: Callable[[CorpusProgress], None]
) -> Iterator[Shard]:
    """The shards that workers have written, with a call of `progress` for each."""
    # Of files that have shards already it is not known here how far those go.
    sizes = {} if job.done else {file: os.path.getsize(file) for file in job.files}
    total, read = max(sum(sizes.values()), 1), dict.fromkeys(job.files, 0.0)
    num_rows = num_tokens = 0
    for row in rows:
        share = row.pop("read")
        shard = Shard(**row)
        read[shard.file] = max(read[shard.file], share)
        num_rows, num_tokens = num_rows + shard.num_rows, num_tokens + shard.num_tokens
        progress(CorpusProgress(num_rows, num_tokens, sum(read[file] * sizes[file] for file in sizes) / total))
        yield shard


@contextlib.contextmanager
def _blocks_of_one() -> Iterator[None]:
    """Have a block of data for each row range, so that every worker gets some, quietly."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    settings = {"target_max_block_size": 1, "enable_progress_bars": False, "print_on_execution_start": False}
    kept = {name: getattr(context, name) for name in settings}
    for name, value in settings.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(context, name, value)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Put what a worker met in one line: its first, as Ray adds advice of its own."""
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or error
        # Of a process that died, the system's word comes behind Ray's names for it.
        text = str(reason).strip()
        first = (text.partition("Worker exit detail: ")[2] or text).splitlines()[0]
        if isinstance(reason, BellmError):
            raise type(reason)(first) from error
        raise SourceError(f"A worker failed: {first} Finished shards are kept: mend this and go on.") from error
