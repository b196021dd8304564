"""The rows of a file in each format that bellm reads, in bounded memory.

One text is one row: a line of `.txt`, an object or string of `.jsonl`, a row of `.csv`, `.tsv` or `.parquet`. No row
is ever dropped or split: one that cannot be read comes with its problem in place of its cells. A stray quote in a CSV
file may swallow the lines behind it; all of them are then one such row.
"""

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from bellm.errors import SourceError

LONGEST = 2**24
"""Most bytes of a line and characters of a cell: longer ones would let memory depend on the input."""

_TOO_LONG = f"longer than {LONGEST:,} characters. Split the text."
_QUOTES = "Put quotes around a cell that holds quotes, and double those."
_BATCH = 1024  # Rows of a Parquet file that are in memory together.


class Columns(NamedTuple):
    """Which columns of a table are read."""

    text: str = "text"
    id: str | None = None


class Cells(NamedTuple):
    """What a row holds, and where it is, in words; `problem` says why there is nothing."""

    place: str
    text: object = None
    id: object = None
    problem: str = ""


def text_rows(stream: BinaryIO, _columns: Columns) -> Iterator[Cells]:
    """Rows of a text file."""
    for number, line in enumerate(_lines(stream), 1):
        place = f"line {number}"
        try:
            yield Cells(place, problem=_TOO_LONG) if line is None else Cells(place, _text(line))
        except UnicodeDecodeError as error:
            yield Cells(place, problem=_not_utf8(error.object[error.start]))


def json_rows(stream: BinaryIO, columns: Columns) -> Iterator[Cells]:
    """Rows of a JSON Lines file."""
    for cells in text_rows(stream, columns):
        yield cells if cells.problem else _json_cells(cells.place, str(cells.text), columns)


def csv_rows(stream: BinaryIO, columns: Columns, *, dialect: str = "excel") -> Iterator[Cells]:
    """Rows of a CSV file; its first line names the columns, empty lines are no rows."""
    csv.field_size_limit(LONGEST)  # The csv module's own limit of 128 KiB is shorter than a long document.
    text = _CsvLines(stream)
    # Strict, because a stray quote would otherwise swallow the rows that follow it in silence.
    rows = csv.reader(text, dialect, strict=True)
    header: list[str] | None = None
    while True:
        start = text.number + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            place, problem = _place(start, text.number), f"{error}. {_QUOTES}"
            if header is None:
                raise SourceError(f"{place}: {problem}") from error
            yield Cells(place, problem=problem)
            continue
        if row is None:
            return
        if header is None:
            header = row
            _refuse_header(header, columns)
        elif row:
            yield _csv_cells(_place(start, text.number), row, header, columns)


def tsv_rows(stream: BinaryIO, columns: Columns) -> Iterator[Cells]:
    """Rows of a tab-separated file, quoted as CSV is."""
    return csv_rows(stream, columns, dialect="excel-tab")


def parquet_rows(stream: BinaryIO, columns: Columns) -> Iterator[Cells]:
    """Rows of a Parquet file."""
    from bellm.corpus.arrow import pa, pq

    try:
        # As it comes, Arrow would take the whole column into memory.
        file = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        _refuse_header(file.schema_arrow.names, columns)
        number = itertools.count(1)
        for batch in file.iter_batches(_BATCH, columns=list(filter(None, columns))):
            ids = [None] * len(batch) if columns.id is None else _values(batch.column(columns.id))
            for text, id in zip(_values(batch.column(columns.text)), ids, strict=True):
                problem = next((cell.problem for cell in (text, id) if isinstance(cell, Cells)), "")
                yield Cells(f"row {next(number)}", text, id, problem)
    except pa.ArrowException as error:
        raise SourceError(f"cannot be read as Parquet: {error}") from error


READERS: dict[str, Callable[[BinaryIO, Columns], Iterator[Cells]]] = {
    ".txt": text_rows,
    ".jsonl": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}
"""How each suffix is read. A reader raises a SourceError without the file's name where no row can be read at all."""


def text_problem(cell: object) -> str:
    """Why a cell is no text; empty if it is one."""
    if not isinstance(cell, str):
        return f"{repr(cell)[:60]} is not a text. Give a string, be it an empty one."
    if len(cell) > LONGEST:
        return _TOO_LONG
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        return f"{error.object[error.start]!r} is half a character. Write the text as UTF-8."
    return ""


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends, and None for each that is too long to be held."""
    line = stream.readline(LONGEST + 1).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line if len(line) <= LONGEST or line.endswith(b"\n") else None
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = stream.readline(LONGEST + 1)
        line = stream.readline(LONGEST + 1)


class _CsvLines:
    """Lines for the csv module, which goes on behind one that raises; a generator would end there."""

    def __init__(self, stream: BinaryIO) -> None:
        self.number = 0
        self._lines = _lines(stream)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if line is None:
            raise csv.Error(_TOO_LONG)
        return line.decode(errors="surrogateescape")  # Only the cells that are read must be UTF-8.


def _csv_cells(place: str, row: list[str], header: list[str], columns: Columns) -> Cells:
    if len(row) != len(header):
        return Cells(
            place, problem=f"{len(row)} cells, but the header has {len(header)}. Quote cells that hold the separator."
        )
    text = row[header.index(columns.text)]
    id = None if columns.id is None else row[header.index(columns.id)]
    try:
        f"{text}{id}".encode()
    except UnicodeEncodeError as error:
        return Cells(place, problem=_not_utf8(ord(error.object[error.start]) - 0xDC00))
    return Cells(place, text, id)


def _json_cells(place: str, line: str, columns: Columns) -> Cells:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Cells(place, problem=f"not JSON ({error}). Each line holds one object or string.")
    if not isinstance(row, dict):
        problem = "" if columns.id is None else f"no column {columns.id!r}. Each line holds one object."
        return Cells(place, row, None, problem)
    problem = _header_problem(list(row), columns)
    return Cells(place, problem=problem) if problem else Cells(place, row[columns.text], row.get(columns.id))


def _values(column: Any) -> list[object]:
    """Cells of an Arrow column; one that is no text gives its problem."""
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(cell) for cell in column]
    return values


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return Cells("", problem=_not_utf8(error.object[error.start]))


def _refuse_header(header: list[str], columns: Columns) -> None:
    if problem := _header_problem(header, columns):
        raise SourceError(problem)


def _header_problem(header: list[str], columns: Columns) -> str:
    for column, option in zip(columns, ("--column", "--id-column"), strict=True):
        if column is not None and header.count(column) != 1:
            count = "more than one" if column in header else "no"
            return f"{count} column {column!r}. Columns: {', '.join(header)}. Choose with {option}."
    return ""


def _place(first: int, last: int) -> str:
    return f"line {last}" if first >= last else f"lines {first}-{last}"


def _text(line: bytes) -> str:
    return line.decode().removesuffix("\n").removesuffix("\r")


def _not_utf8(byte: int) -> str:
    return f"byte 0x{byte:02x} is not UTF-8. Convert the file, for instance with: iconv -f latin1 -t utf-8."
