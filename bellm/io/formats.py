"""Readers of text lines, JSON, CSV, TSV and Parquet: from a stream of bytes to rows; but for .json in bounded memory.

No row is ever dropped or split: one that cannot be read comes with its problem in place of its cells. A stray quote in
a CSV file may swallow the lines behind it; all of them are then one such row.
"""

import codecs
import csv
import functools
import io
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from bellm.errors import SourceError
from bellm.io.streams import CONVERT, import_pyarrow

LONGEST = 2**24
"""Most bytes of a line and characters of a cell: longer ones would let memory depend on the input."""

_TOO_LONG = f"longer than {LONGEST:,} characters. Split the text."
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_QUOTES = "Put quotes around a cell that holds quotes, and double those."
_MOST_NAMES = 20  # Columns that a message lists.
_BATCH = 1024  # Rows of a Parquet file that are in memory together.

EMPTY_WORDS = frozenset(("nan", "NaN", "None", "null", "NULL", "n/a", "N/A", "NA", "<NA>", "#N/A"))
"""What pandas and others write into an empty cell of CSV, and read as one."""

SelectColumns = Callable[[Sequence[str]], Sequence[str]]
"""Which of a row's columns are read; raises a SourceError where one is missing. Other cells may hold anything."""


class Row(NamedTuple):
    """One row: where it is, in words, and its cells, or a problem that says why there are none."""

    location: str
    cells: Any = None
    """Selected cells by column; a line of text, or a JSON value that is no object, as it is."""
    problem: str = ""
    untyped: bool = False
    """Whether the file holds nothing but strings, as CSV does, which may stand for lists or for nothing."""


def quote_names(names: Iterable[str]) -> str:
    """Names of columns in quotes, as they stand in the file.

    >>> quote_names(["text", " label"])
    "'text', ' label'"
    """
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(repr, names[:_MOST_NAMES])) + more


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
    zeros = f"it holds zero bytes, which no text does. Take them out; or, if it is UTF-16: {CONVERT.format('utf-16')}"
    return zeros if "\0" in cell else ""


def is_blank(text: str) -> bool:
    r"""Whether a text has nothing to be seen: white space and characters of no width.

    >>> is_blank(" \u200b\ufeff"), is_blank("a")
    (True, False)
    """
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def plain_name(name: str) -> str:
    """A column's name without regard to case, spaces and punctuation.

    >>> plain_name("Similarity_Score ")
    'similarityscore'
    """
    return "".join(filter(str.isalnum, name.casefold()))


def same_columns(names: Iterable[str], wanted: str) -> list[str]:
    """Which columns one name means: those of exactly this name, or else those that differ in case or punctuation.

    >>> same_columns(["ID", "Text"], "text"), same_columns(["text", "Text"], "text")
    (['Text'], ['text'])
    """
    names = list(names)
    exact = [name for name in names if name == wanted]
    return exact or [name for name in names if plain_name(name) == plain_name(wanted) != ""]


def find_column(names: Sequence[str], wanted: str, part: str) -> str:
    """The column that a name means, for a part of a row; a SourceError where there is none, or more than one."""
    found = same_columns(names, wanted)
    if len(found) != 1:
        count = "more than one" if found else "no"
        raise SourceError(f"{count} column {wanted!r} for the {part}. Columns: {quote_names(names)}.")
    return found[0]


def parse_number(cell: object) -> float | None:
    """A finite number as files write it, or None; what only Python reads, as 1_000, is none.

    >>> parse_number("-2.5e3"), parse_number(True), parse_number("1_000"), parse_number(" 1"), parse_number("nan")
    (-2500.0, 1.0, None, None, None)
    """
    if isinstance(cell, str) and not _NUMBER.fullmatch(cell):
        return None
    try:
        number = float(cell)  # type: ignore[arg-type]  # whatever is no number raises
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def text_rows(stream: BinaryIO, select: SelectColumns | None = None, *, encoding: str = "utf-8") -> Iterator[Row]:
    """Rows of a text file."""
    for number, line in enumerate(_lines(stream), 1):
        location = f"line {number}"
        try:
            text = None if line is None else line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)
        except UnicodeDecodeError as error:
            yield Row(location, problem=_not_utf8(error.object[error.start]))
        else:
            yield Row(location, problem=_TOO_LONG) if text is None else Row(location, text)


def json_rows(stream: BinaryIO, select: SelectColumns, *, skip_blank: bool = False) -> Iterator[Row]:
    """Rows of a JSON Lines file."""
    for row in text_rows(stream):
        if row.problem:
            yield row
        elif not (skip_blank and row.cells.strip() == ""):
            try:
                value = json.loads(row.cells, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                yield Row(row.location, problem=f"not JSON ({error}). Each line holds one row.")
            else:
                yield _json_row(row.location, value, select)


def json_document_rows(stream: BinaryIO, select: SelectColumns, *, skip_blank: bool = False) -> Iterator[Row]:
    """Rows of a JSON file, which holds a list of them; JSON Lines under this name are read as such."""
    data = stream.read()
    try:
        document = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        yield from json_rows(io.BytesIO(data), select, skip_blank=skip_blank)
        return
    for number, value in enumerate(document if isinstance(document, list) else [document], 1):
        yield _json_row(f"row {number}", value, select)


def csv_rows(stream: BinaryIO, select: SelectColumns, *, dialect: str = "excel") -> Iterator[Row]:
    """Rows of a CSV or TSV file; its first line names the columns, empty lines are no rows.

    Where the columns are not found with the dialect's separator but with another, that one separates the cells.
    """
    lines = _lines(stream)
    number = 0
    first_line = next(lines, b"")
    separator = _separator(
        (first_line or b"").decode(errors="surrogateescape"), select, csv.get_dialect(dialect).delimiter
    )
    lines = itertools.chain([first_line], lines)

    def next_line() -> str:
        nonlocal number
        line = next(lines, b"")
        number += line != b""
        if line is None:
            raise csv.Error(_TOO_LONG)
        return line.decode(errors="surrogateescape")  # Only the cells that are read must be UTF-8.

    csv.field_size_limit(LONGEST)  # The csv module's own limit of 128 KiB is shorter than a long document.
    # Strict, because a stray quote would otherwise swallow the rows that follow it in silence. Such an iterator, unlike
    # a generator, goes on behind a line that raises.
    reader = csv.reader(iter(next_line, ""), dialect, delimiter=separator, strict=True)
    header: list[str] | None = None
    columns: dict[str, int] = {}
    while True:
        first = number + 1
        try:
            cells, problem = next(reader, None), ""
        except csv.Error as error:
            cells, problem = [], f"{error}. {_QUOTES}"
        location = f"line {number}" if first >= number else f"lines {first}-{number}"
        if header is None and problem:
            raise SourceError(f"{location}: {problem}")
        if header is None and cells != []:
            header = cells or []
            columns = {name: header.index(name) for name in select(header)}
        elif cells is not None and (cells or problem):
            problem = problem or _no_row(cells, header or [], separator)
            yield Row(location, problem=problem) if problem else _csv_row(location, cells, len(header or []), columns)
        if cells is None:
            return


def parquet_rows(stream: BinaryIO, select: SelectColumns) -> Iterator[Row]:
    """Rows of a Parquet file."""
    pa, pq = import_pyarrow()
    try:
        # As it comes, Arrow would take the whole column into memory.
        file = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        names = list(select(file.schema_arrow.names))
        number = itertools.count(1)
        for batch in file.iter_batches(_BATCH, columns=names):
            for cells in zip(*(_values(batch.column(name)) for name in names), strict=True):
                problem = next((cell.problem for cell in cells if isinstance(cell, Row)), "")
                yield Row(f"row {next(number)}", None if problem else dict(zip(names, cells, strict=True)), problem)
    except pa.ArrowException as error:
        raise SourceError(f"cannot be read as Parquet: {error}") from error


FORMATS: dict[str, Callable[..., Iterator[Row]]] = {
    ".txt": text_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_document_rows,
    ".csv": csv_rows,
    ".tsv": functools.partial(csv_rows, dialect="excel-tab"),
    ".parquet": parquet_rows,
}
"""How each suffix is read. A reader raises a SourceError without the file's name where no row can be read at all."""


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends, and None for each that is too long to be held."""
    line = stream.readline(LONGEST + 1).removeprefix(codecs.BOM_UTF8)
    if b"\r" in line[:-1] and not line.endswith(b"\n"):
        raise SourceError("its lines end in carriage returns alone. Convert it, for instance with: tr '\\r' '\\n'.")
    while line:
        yield line if len(line) <= LONGEST or line.endswith(b"\n") else None
        while len(line) > LONGEST and not line.endswith(b"\n"):
            line = stream.readline(LONGEST + 1)
        line = stream.readline(LONGEST + 1)


def _separator(header: str, select: SelectColumns, usual: str) -> str:
    """What separates cells: the usual character, unless the columns to be read are found with another alone."""
    for candidate in dict.fromkeys((usual, ",", ";", "\t", "|")):
        try:
            if select(next(csv.reader([header], delimiter=candidate), [])):
                return candidate
        except (SourceError, csv.Error):
            continue
    return usual


def _no_row(cells: list[str], header: list[str], separator: str) -> str:
    """Why cells are no row: they are the header, or a stray quote swallowed rows, which show between tabs."""
    if len(header) > 1 and [cells[0].removeprefix("\ufeff"), *cells[1:]] == header:
        return "the header again, as where files were joined. Take the line out."
    lines = [line for cell in cells for line in cell.split("\n")[1:-1]]
    if separator == "\t" and any(line.count("\t") == len(header) - 1 > 0 for line in lines):
        return f"a cell holds several lines and tabs, as if a quote were not closed. {_QUOTES}"
    return ""


def _csv_row(location: str, cells: list[str], width: int, columns: dict[str, int]) -> Row:
    if len(cells) != width:
        problem = f"{len(cells)} cells, but the header has {width}. Quote cells that hold the separator."
        return Row(location, problem=problem)
    selected = {name: cells[index] for name, index in columns.items()}
    try:
        "".join(selected.values()).encode()
    except UnicodeEncodeError as error:
        return Row(location, problem=_not_utf8(ord(error.object[error.start]) - 0xDC00))
    return Row(location, selected, untyped=True)


class _Doubled(dict[str, Any]):
    """An object of JSON with a name that stands more than once, as in the header of a table."""

    names: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        cells = _Doubled(cells)
        cells.names = [name for name, _ in pairs]
    return cells


def _json_row(location: str, value: Any, select: SelectColumns) -> Row:
    try:
        if isinstance(value, dict):
            names = value.names if isinstance(value, _Doubled) else list(value)
            value = {name: value[name] for name in select(names)}
        return Row(location, value)
    except SourceError as error:
        return Row(location, problem=str(error))


def _values(column: Any) -> list[object]:
    """Cells of an Arrow column; one that is no text gives its problem."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return Row("", problem=f"byte 0x{error.object[error.start]:02x} is not UTF-8.")


def _not_utf8(byte: int) -> str:
    return f"byte 0x{byte:02x} is not UTF-8. {CONVERT.format('latin1')}"
