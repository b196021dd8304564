"""Rows of a corpus, and the spans of rows that become shards."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SHARD_ROWS = 8192
"""Rows of a shard: what a kill costs at most; a hundred million rows are some twelve thousand files."""

MAX_SPAN_CHARACTERS = 2**26
"""A span ends early once it holds this many characters, so that memory is bounded whatever the texts."""


class Row(NamedTuple):
    """One row of an input file; `text` is None where it cannot be read, and `reason` says why."""

    number: int
    id: str
    text: str | None
    reason: str = ""


@dataclass
class Span:
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
    """What tells these rows from any others: see `Digest`."""
    begun: float = 0.0
    """Share of the inputs that was read when it began."""
    read: float = 0.0
    """Share of the inputs that was read when it was complete."""

    @property
    def stop(self) -> int:
        """Number of the row behind its last."""
        return self.first + len(self.rows) + len(self.unreadable)


class Digest:
    """SHA-256 of ids and texts, row by row; of an unreadable row only its place counts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Take one more row into account."""
        if row.text is None:
            self._hash.update(b"-")
        else:
            text = row.text.encode()
            self._hash.update(f"{len(row.id)} {len(text)} {row.id}".encode() + text)

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        return self._hash.hexdigest()


def cut(file: str, rows: Iterable[Row], max_rows: int) -> Iterator[Span]:
    """Cut rows that follow each other into spans of at most `max_rows` rows, none of them empty."""
    span, digest, characters = None, Digest(), 0
    for row in rows:
        if span is None:
            span, digest, characters = Span(file, row.number), Digest(), 0
        digest.add(row)
        if row.text is None:
            span.unreadable.append((row.number, row.reason))
        else:
            span.rows.append(row.number)
            span.ids.append(row.id)
            span.texts.append(row.text)
            characters += len(row.text)
        if span.stop - span.first == max_rows or characters >= MAX_SPAN_CHARACTERS:
            span.digest = digest.hexdigest()
            yield span
            span = None
    if span is not None:
        span.digest = digest.hexdigest()
        yield span
