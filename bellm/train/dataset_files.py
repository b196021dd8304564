"""Rows of training data from files and from the Hugging Face Hub, read as they come.

No row is dropped in silence: one that cannot be used comes as a `Rejection` with its place and the reason.
"""

import csv
import functools
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl

from bellm.errors import SourceError
from bellm.train.dataset import Dataset, Rejection
from bellm.train.examples import Columns, Example, Parts, mark_symmetric, match_columns, parse_example
from bellm.types import Path as PathLike

_LONGEST_CELL = 2**24  # The csv module's own limit of 128 KiB is shorter than a long document.
_BATCH = 1024  # Rows of a Parquet file that are in memory together.
_QUOTES = "Put quotes around a cell that holds quotes, and double those."
_MIXED = "no score where the rows before have one, or the other way round. Put rated rows in a file of their own."


class _Row(NamedTuple):
    """What came of a row, and where it was; without an example, why."""

    place: str
    example: Example | None
    reason: str = ""


def load_dataset(source: PathLike, columns: Columns | None = None) -> Dataset:
    """Read a whole source; see `read`.

    Raises:
        SourceError: It cannot be read, or none of its rows.
    """
    name = os.fspath(source)
    # A run goes on where its file has the same content, wherever it is now.
    return Dataset(os.path.basename(name) if _is_file(name) else name, read_examples(name, columns))


def read_examples(source: PathLike, columns: Columns | None = None) -> Iterator[Example | Rejection]:
    """Read a source row by row, in memory that does not depend on its length.

    All rows have scores or none has: no loss takes both, so the first good row decides.

    Args:
        source: A file that ends in .jsonl, .csv, .tsv or .parquet, or in one of these and .gz. Else a folder of such
            files, or a data set of the Hub, through `datasets`, with its configuration and its split unless that is
            train: `user/pairs?config=english&split=dev`.
        columns: Columns of each part of an example; None goes by their names, see `bellm.train.examples`.

    Raises:
        SourceError: The source cannot be read, or its columns are not those of examples.
    """
    name = os.fspath(source)
    rated: bool | None = None
    with _named(name):
        for place, example, reason in _of_file(name, columns) if _is_file(name) else _of_datasets(name, columns):
            if example and rated is None:
                rated = example.score is not None
            if example and (example.score is not None) == rated:
                yield example
            else:
                yield Rejection(f"{name}, {place}", reason or _MIXED)


def read_captions(files: Sequence[PathLike]) -> Iterator[Example | Rejection]:
    """Read texts that say the same from several files, line by line: captions of one image each.

    Args:
        files: Two or more text files of as many lines each, or such files with .gz behind their names.

    Raises:
        SourceError: A file cannot be read, or is shorter than another.
    """
    names = [os.fspath(file) for file in files]
    with _named(" + ".join(names)), ExitStack() as stack:
        lines = [stack.enter_context(_lines(stack.enter_context(_open(name)))) for name in names]
        for number, texts in enumerate(itertools.zip_longest(*lines), 1):
            if None in texts:
                raise SourceError(f"{names[texts.index(None)]} has {number - 1} lines and others have more.")
            _, example, reason = _row("", mark_symmetric, [text.rstrip("\r\n") for text in texts])
            yield example or Rejection(f"{names[0]}, line {number}", reason)


def _json_lines(stream: BinaryIO, columns: Columns | None) -> Iterator[_Row]:
    with _lines(stream) as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                yield _row(f"line {number}", _of_json, line, columns)


def _table(stream: BinaryIO, columns: Columns | None, dialect: str = "excel") -> Iterator[_Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with _lines(stream) as lines:
        # Strict, because a stray quote would otherwise swallow the rows that follow it in silence.
        rows = _cells(csv.reader(lines, dialect, strict=True))
        place, header, problem = next(rows, ("", [], ""))
        if problem:
            raise SourceError(f"{place}: {problem}")
        parts = match_columns(header, columns)
        for place, cells, problem in rows:
            yield _Row(place, None, problem) if problem else _row(place, _of_table, cells, header, parts)


def _parquet(stream: BinaryIO, columns: Columns | None) -> Iterator[_Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise SourceError("Parquet files need pyarrow: pip install 'bellm[parquet]'.") from error
    try:
        file = pq.ParquetFile(stream, pre_buffer=False)
        parts = match_columns(file.schema_arrow.names, columns)
        number = itertools.count(1)
        for batch in file.iter_batches(_BATCH, columns=list(itertools.chain(*parts.values()))):
            for at in range(len(batch)):
                yield _row(f"row {next(number)}", _of_arrow, batch, at, parts)
    except pa.ArrowException as error:
        raise SourceError(f"cannot be read as Parquet: {error}") from error


_FORMATS: dict[str, Callable[[BinaryIO, Columns | None], Iterator[_Row]]] = {
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": functools.partial(_table, dialect="excel-tab"),
    ".parquet": _parquet,
}


def _of_file(name: str, columns: Columns | None) -> Iterator[_Row]:
    if _suffix(name) not in _FORMATS:
        raise SourceError(f"its suffix is none of {', '.join(_FORMATS)}, nor one of these and .gz.")
    with _open(name) as stream:
        yield from _FORMATS[_suffix(name)](stream, columns)


def _of_datasets(name: str, columns: Columns | None) -> Iterator[_Row]:
    path, _, query = name.partition("?")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"config", "split"}:
        raise SourceError(f"{', '.join(sorted(unknown))} is no setting of a data set. Settings: config, split.")
    if not os.path.isdir(path) and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise SourceError("there is no such file or folder.")
    try:
        import datasets
    except ImportError as error:
        raise SourceError("folders and data sets of the Hub need datasets: pip install datasets.") from error
    try:
        rows = datasets.load_dataset(path, options.get("config"), split=options.get("split", "train"), streaming=True)
        for number, cells in enumerate(rows, 1):
            yield _row(f"row {number}", _of_cells, cells, columns)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise SourceError(f"datasets cannot read it: {str(error).splitlines()[0]}") from error


def _row(place: str, make: Callable[..., Example], *of: Any) -> _Row:
    try:
        return _Row(place, make(*of))
    except SourceError as error:
        return _Row(place, None, str(error))


def _of_json(line: str, columns: Columns | None) -> Example:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON ({error}). Each line holds one object, or a list of texts.") from error
    if isinstance(cells, list):
        return mark_symmetric(cells)
    if not isinstance(cells, dict):
        raise SourceError(f"{repr(cells)[:60]} is neither an object nor a list of texts.")
    return _of_cells(cells, columns)


def _of_cells(cells: dict[str, Any], columns: Columns | None) -> Example:
    return parse_example(cells, match_columns(list(cells), columns))


def _of_table(cells: list[str], header: list[str], parts: Parts) -> Example:
    if len(cells) != len(header):
        problem = f"{len(cells)} cells, but the header has {len(header)}. Quote cells that hold the separator."
        raise SourceError(problem)
    return parse_example(dict(zip(header, cells, strict=True)), parts)


def _of_arrow(batch: Any, at: int, parts: Parts) -> Example:
    try:
        return parse_example(batch.slice(at, 1).to_pylist()[0], parts)
    except UnicodeDecodeError as error:
        raise SourceError(f"byte 0x{error.object[error.start]:02x} is not UTF-8.") from error


def _cells(rows: Any) -> Iterator[tuple[str, list[str], str]]:
    """Place, cells and problem of each row of the csv module, which goes on behind a row that raises."""
    while True:
        start = rows.line_num + 1
        try:
            cells, problem = next(rows, None), ""
        except csv.Error as error:
            cells, problem = [], f"{error}. {_QUOTES}"
        if cells is None:
            return
        if cells or problem:
            yield f"line {start}" if start >= rows.line_num else f"lines {start}-{rows.line_num}", cells, problem


def _lines(stream: BinaryIO) -> TextIOWrapper:
    """Lines with their ends; bytes that are not UTF-8 become halves of characters, and a row with one is rejected."""
    return TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def _open(name: str) -> BinaryIO:
    return gzip.open(name) if name.lower().endswith(".gz") else open(name, "rb")  # type: ignore[return-value]


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _is_file(name: str) -> bool:
    return os.path.isfile(name) or (_suffix(name) in _FORMATS and not os.path.isdir(name))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors in one line that begins with the source's name."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
