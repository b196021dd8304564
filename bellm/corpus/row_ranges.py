"""Row ranges of the inputs: cut from files, told apart by digests, and missing where no shard covers them.

Nothing here needs torch or pyarrow: processes of Ray that only read input files load neither.
"""

import hashlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bellm.errors import SourceError
from bellm.io.documents import DOCUMENT_SUFFIXES
from bellm.io.formats import FORMATS
from bellm.io.rows import TextColumns, TextFile, TextPlace, TextRow, check_columns, expand_inputs, warn_unread
from bellm.io.streams import STDIN, content_suffix

Precision = Literal["float32", "float16", "int8"]
"""How shards keep vectors; int8 is symmetric by row, vector = scale * q."""

SHARD_FOLDER = "shards"
"""Folder in a corpus folder that holds the shards."""

SHARD_ROWS = 8192
"""Rows of a shard: what a kill costs at most; a hundred million rows are some twelve thousand files."""

MAX_RANGE_CHARACTERS = 2**26
"""A range ends early once it holds this many characters, so that memory is bounded whatever the texts."""


@dataclass
class RowRange:
    """Rows of one file that follow each other, read and ready to be embedded."""

    file: str
    first: int
    """Number of its first row; rows count from 1."""
    rows: list[int]
    """Numbers of the readable rows; `ids` and `texts` go with them."""
    ids: list[str]
    texts: list[str]
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """Numbers of the other rows, and why."""
    places: list[TextPlace] = field(default_factory=list)
    """Where chunks stand in their documents; empty where rows are whole texts."""
    num_numbered: int = 0
    """Rows that have no id of their own, although a column holds ids."""
    digest: str = ""
    """Of all its rows, see `digest_rows`."""
    begun: float = 0.0
    """Share of the inputs that was read when it began."""
    read: float = 0.0
    """Share of the inputs that was read when it was complete."""

    @property
    def stop(self) -> int:
        """Number of the row behind its last."""
        return self.first + len(self.rows) + len(self.unreadable)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Metadata of a shard."""

    file: str
    first: int
    """Number of the first row that it covers, from 1."""
    stop: int
    """Number of the row behind the last."""
    num_rows: int
    """Rows with a vector; the others of the range are unreadable."""
    num_numbered: int = 0
    """Rows that have no id of their own, although a column holds ids."""
    num_tokens: int
    num_truncated: int
    num_missing_graphs: int
    """Texts without an AMR graph, of an encoder that reads graphs."""
    rows_digest: str
    """Of the rows that it covers, see `digest_rows`."""
    config_digest: str
    """Digest of the corpus configuration and the encoder's fingerprint."""
    num_bytes: int = 0

    @property
    def name(self) -> str:
        """Name of the shard's file: the same for the same position in the corpus."""
        return shard_name(self.file, self.first)

    @property
    def num_unreadable(self) -> int:
        """Rows without a vector."""
        return self.stop - self.first - self.num_rows


def shard_name(file: str, first: int) -> str:
    """Name of the shard that begins with this row; sorted, the shards of a file are in order."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", file)[-60:].lstrip(".-")
    return f"{readable}-{hashlib.sha256(file.encode()).hexdigest()[:12]}-{first:012d}.parquet"


def digest_rows(rows: Iterable[TextRow]) -> str:
    """SHA-256 of ids, texts and places, row by row; of an unreadable row only its position counts."""
    digest = hashlib.sha256()
    for row in rows:
        if row.text is None:
            digest.update(b"-")
        else:
            text = row.text.encode()
            place = "" if row.place is None else " ".join(map(str, row.place))
            digest.update(f"{len(row.id)} {len(text)} {place}{row.id}".encode() + text)
    return digest.hexdigest()


def corpus_files(inputs: Sequence[str | Path], out: Path, columns: TextColumns, has_documents: bool) -> list[str]:
    """The input files of a corpus, after a look at their first rows; files of one document are left for later.

    Raises:
        SourceError: There is none, or no row can be read.

    Warns:
        BellmWarning: There are columns that are not read, or files without rows.
    """
    suffixes = dict.fromkeys([*FORMATS, *DOCUMENT_SUFFIXES]) if has_documents else FORMATS
    files = expand_inputs(inputs, out, suffixes)
    is_document = {file: has_documents and content_suffix(file) in DOCUMENT_SUFFIXES for file in files}
    if tables := [file for file in files if not is_document[file]]:
        check_columns(tables, columns)
    warn_unread([TextFile(file) for file in files if is_document[file] and not os.path.getsize(file)])
    return files


def split_rows(file: str, rows: Iterable[TextRow], max_rows: int) -> Iterator[RowRange]:
    """Cut rows that follow each other into ranges of at most `max_rows` rows, none of them empty."""
    rows = iter(rows)
    while part := _next_rows(rows, max_rows):
        yield RowRange(
            file,
            part[0].number,
            rows=[row.number for row in part if row.text is not None],
            ids=[row.id for row in part if row.text is not None],
            texts=[row.text for row in part if row.text is not None],
            unreadable=[(row.number, row.reason) for row in part if row.text is None],
            places=[row.place for row in part if row.place],
            num_numbered=sum(row.is_numbered for row in part),
            digest=digest_rows(part),
        )


def missing_ranges(
    files: Sequence[str], open_file: Callable[[str], TextFile], done: Iterable[Shard], max_rows: int
) -> Iterator[RowRange]:
    """Read the inputs and yield the row ranges that no shard covers, in order.

    Args:
        files: Input files as `expand_inputs` names them.
        open_file: What reads the rows of a file.
        done: The shards that are there.
        max_rows: Most rows of a range.
    """
    done_of: dict[str, list[Shard]] = defaultdict(list)
    for shard in sorted(done, key=lambda shard: shard.first):
        done_of[shard.file].append(shard)
    sizes = [0 if file == STDIN else os.path.getsize(file) for file in files]
    before, total = 0, max(sum(sizes), 1)
    for file, size in zip(files, sizes, strict=True):
        for row_range in _missing_in(open_file(file), done_of[file], max_rows):
            row_range.begun = (before + size * row_range.begun) / total
            row_range.read = (before + size * row_range.read) / total
            yield row_range
        before += size


def read_missing_ranges(
    row: dict[str, Any], find: Callable[[list[str]], Iterator[RowRange]], directory: str
) -> Iterator[dict[str, Any]]:
    """Ray task: the row ranges that `find` gives of one input file, whose path is meant from a directory."""
    os.chdir(directory)
    yield from ({"row_range": part} for part in find([row["file"]]))


def in_order(files: Sequence[str], done: Iterable[Shard]) -> list[Shard]:
    """Shards in the order of the corpus: the files as they were named, then those that were named in earlier runs."""
    index = {file: number for number, file in enumerate(files)}
    return sorted(done, key=lambda shard: (index.get(shard.file, len(index)), shard.file, shard.first))


def _next_rows(rows: Iterator[TextRow], max_rows: int) -> list[TextRow]:
    part: list[TextRow] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += len(row.text or "")
        if len(part) == max_rows or characters >= MAX_RANGE_CHARACTERS:
            break
    return part


def _missing_in(source: TextFile, done: Sequence[Shard], max_rows: int) -> Iterator[RowRange]:
    """Row ranges of one file between its shards, with the shares of the file that were read."""
    rows, row = source.texts(), 1
    for shard in [*done, None]:
        begun = source.share
        between = itertools.islice(rows, shard.first - row if shard else None)
        for row_range in split_rows(source.file, between, max_rows):
            row_range.begun, row_range.read = begun, source.share
            begun = row_range.read
            yield row_range
        if shard:
            _refuse_changed(source, itertools.islice(rows, shard.stop - shard.first), shard)
            row = shard.stop


def _refuse_changed(source: TextFile, rows: Iterator[TextRow], shard: Shard) -> None:
    if digest_rows(rows) != shard.rows_digest:
        raise SourceError(
            f"{source.title} has changed in rows {shard.first} to {shard.stop - 1}, which are embedded already. Put it "
            f"back, give another folder, or remove {shard.name} from {SHARD_FOLDER} to embed these rows again."
        )
