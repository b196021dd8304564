"""Split the rows of a file into the ranges that become shards."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from bellm.io.rows import TextRow

Precision = Literal["float32", "float16", "int8"]
"""How shards keep vectors; int8 is symmetric by row, vector = scale * q."""

SHARD_ROWS = 8192
"""Rows of a shard: what a kill costs at most; a hundred million rows are some twelve thousand files."""

MAX_RANGE_CHARACTERS = 2**26
"""A range ends early once it holds this many characters, so that memory is bounded whatever the texts."""


@dataclass
class RowRange:
    """Rows of one file in a row, read and ready to be embedded."""

    file: str
    first: int
    """Number of its first row; rows count from 1."""
    rows: list[int] = field(default_factory=list)
    """Numbers of the readable rows; `ids` and `texts` go with them."""
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """Numbers of the other rows, and why."""
    digest: str = ""
    """What tells these rows from any others: see `RowsDigest`."""
    begun: float = 0.0
    """Share of the inputs that was read when it began."""
    read: float = 0.0
    """Share of the inputs that was read when it was complete."""

    @property
    def stop(self) -> int:
        """Number of the row behind its last."""
        return self.first + len(self.rows) + len(self.unreadable)


class RowsDigest:
    """SHA-256 of ids and texts, row by row; of an unreadable row only its place counts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: TextRow) -> None:
        """Take one more row into account."""
        if row.text is None:
            self._hash.update(b"-")
        else:
            text = row.text.encode()
            self._hash.update(f"{len(row.id)} {len(text)} {row.id}".encode() + text)

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        return self._hash.hexdigest()


def split_rows(file: str, rows: Iterable[TextRow], max_rows: int) -> Iterator[RowRange]:
    """Cut rows that follow each other into ranges of at most `max_rows` rows, none of them empty."""
    rows = iter(rows)
    while (first := next(rows, None)) is not None:
        row_range, digest, characters = RowRange(file, first.number), RowsDigest(), 0
        for row in itertools.chain([first], rows):
            digest.add(row)
            if row.text is None:
                row_range.unreadable.append((row.number, row.reason))
            else:
                row_range.rows.append(row.number)
                row_range.ids.append(row.id)
                row_range.texts.append(row.text)
                characters += len(row.text)
            if row_range.stop - row_range.first == max_rows or characters >= MAX_RANGE_CHARACTERS:
                break
        row_range.digest = digest.hexdigest()
        yield row_range
