"""What is done in a corpus folder, and which spans of the inputs are not."""

import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bellm.corpus import shards
from bellm.corpus.manifest import MANIFEST_FILE
from bellm.corpus.row_ranges import RowRange, RowsDigest, split_rows
from bellm.corpus.shards import DamagedError, Shard
from bellm.errors import CorpusWarning, SourceError
from bellm.io.rows import STDIN, TextColumns, TextFile, TextRow


def scan_shards(out: Path, recipe: str) -> list[Shard]:
    """Read every shard of a folder, whole; damaged ones are removed, so that their rows are embedded again.

    Raises:
        SourceError: A shard cannot be read, or does not belong here.

    Warns:
        CorpusWarning: A shard was damaged.
    """
    found = []
    for path in sorted((out / shards.SHARD_FOLDER).glob("*.parquet")):
        try:
            shards.read_shard(path)
            shard = shards.read_shard_info(path)
        except DamagedError as error:
            # A manifest never names a shard that is not there.
            (out / MANIFEST_FILE).unlink(missing_ok=True)
            path.unlink()
            warnings.warn(f"{error} Its rows are embedded again.", CorpusWarning, stacklevel=3)
            continue
        if shard.recipe != recipe or shard.name != path.name:
            raise SourceError(f"{path} does not belong to {out}: it comes from elsewhere. Move it away.")
        found.append(shard)
    return found


def missing_ranges(
    files: Sequence[str], columns: TextColumns, done: Iterable[Shard], max_rows: int
) -> Iterator[RowRange]:
    """Read the inputs and give the spans that no shard covers, in order.

    Args:
        files: Input files as `expand` names them.
        columns: Which columns are read.
        done: The shards that are there.
        max_rows: Most rows of a span.

    Raises:
        SourceError: A file cannot be read, or rows that were embedded have changed.
    """
    shards_of = by_file(done)
    sizes = [0 if file == STDIN else os.path.getsize(file) for file in files]
    read, total = 0, sum(sizes)
    for file, size in zip(files, sizes, strict=True):
        source = TextFile(file, columns)
        for row_range in _missing(source, shards_of.get(file, []), max_rows):
            row_range.begun, row_range.read = (
                (read + size * share) / max(total, 1) for share in (row_range.begun, row_range.read)
            )
            yield row_range
        read += size


def in_order(files: Sequence[str], done: Iterable[Shard]) -> list[Shard]:
    """Shards in the order of the corpus: the files as they were named, then those that were named in earlier runs."""
    place = {file: number for number, file in enumerate(files)}
    return sorted(done, key=lambda shard: (place.get(shard.file, len(place)), shard.file, shard.first))


def by_file(done: Iterable[Shard]) -> dict[str, list[Shard]]:
    """The shards of each file, in order."""
    found: dict[str, list[Shard]] = defaultdict(list)
    for shard in sorted(done, key=lambda shard: shard.first):
        found[shard.file].append(shard)
    return found


def _missing(source: TextFile, done: Sequence[Shard], max_rows: int) -> Iterator[RowRange]:
    rows = source.texts()
    row = 1
    for shard in done:
        yield from _cut(source, itertools.islice(rows, shard.first - row), max_rows)
        _refuse_changed(source, itertools.islice(rows, shard.stop - shard.first), shard)
        row = shard.stop
    yield from _cut(source, rows, max_rows)


def _cut(source: TextFile, rows: Iterator[TextRow], max_rows: int) -> Iterator[RowRange]:
    begun = source.share
    for row_range in split_rows(source.file, rows, max_rows):
        row_range.begun, row_range.read = begun, source.share
        begun = row_range.read
        yield row_range


def _refuse_changed(source: TextFile, rows: Iterator[TextRow], shard: Shard) -> None:
    digest = RowsDigest()
    for row in rows:
        digest.add(row)
    if digest.hexdigest() != shard.rows_digest:
        raise SourceError(
            f"{source.title} has changed in rows {shard.first} to {shard.stop - 1}, which are embedded already. Put it "
            f"back, give another folder, or remove {shard.name} from {shards.SHARD_FOLDER} to embed these rows again."
        )
