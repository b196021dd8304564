"""Find the shards of a corpus folder, and the row ranges of the inputs that none of them covers.

Nothing here needs torch: processes of Ray that only read input files load no model library.
"""

import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bellm.corpus import shards
from bellm.corpus.manifest import MANIFEST_FILE
from bellm.corpus.row_ranges import RowRange, RowsDigest, split_rows
from bellm.corpus.shards import SHARD_FOLDER, DamagedError, Shard
from bellm.errors import CorpusWarning, SourceError
from bellm.io.rows import STDIN, TextColumns, TextFile, TextRow


def scan_shards(out: Path, config_digest: str) -> list[Shard]:
    """Read every shard of a folder, whole; damaged ones are removed, so that their rows are embedded again.

    Raises:
        SourceError: A shard cannot be read, or does not belong here.

    Warns:
        CorpusWarning: A shard was damaged.
    """
    found = []
    for path in sorted((out / SHARD_FOLDER).glob("*.parquet")):
        try:
            shards.read_shard(path)
            shard = shards.read_shard_info(path)
        except DamagedError as error:
            # A manifest never names a shard that is not there.
            (out / MANIFEST_FILE).unlink(missing_ok=True)
            path.unlink()
            warnings.warn(f"{error} Its rows are embedded again.", CorpusWarning, stacklevel=3)
            continue
        if shard.config_digest != config_digest or shard.name != path.name:
            raise SourceError(f"{path} does not belong to {out}: it comes from elsewhere. Move it away.")
        found.append(shard)
    return found


def missing_ranges(
    files: Sequence[str], columns: TextColumns, done: Iterable[Shard], max_rows: int
) -> Iterator[RowRange]:
    """Read the inputs and yield the row ranges that no shard covers, in order.

    Args:
        files: Input files as `expand_inputs` names them.
        columns: Which columns are read.
        done: The shards that are there.
        max_rows: Most rows of a range.

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


def read_missing_ranges(
    row: dict[str, Any], columns: TextColumns, done: Sequence[Shard], max_rows: int, directory: str
) -> Iterator[dict[str, Any]]:
    """Ray task: row ranges of one input file that no shard covers.

    Args:
        row: The file, as a row of a Ray data set.
        columns: Which columns are read.
        done: The shards that are there.
        max_rows: Most rows of a range.
        directory: Working directory that relative paths are meant from.
    """
    os.chdir(directory)
    yield from ({"row_range": part} for part in missing_ranges([row["file"]], columns, done, max_rows))


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
            f"back, give another folder, or remove {shard.name} from {SHARD_FOLDER} to embed these rows again."
        )
