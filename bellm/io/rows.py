"""Which files a user means, and their rows by suffix, plain or with .gz: all cells asked for, or texts with their ids.

Every command reads its inputs here. Memory does not depend on the number of rows.
"""

import glob
import gzip
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from bellm.errors import SourceError, check_list
from bellm.io.formats import FORMATS, Row, SelectColumns, json_rows, text_problem, text_rows

STDIN = "-"

_LONGEST_REASON = 300
_HEAD = 100  # Rows of a file that are looked at before a model is loaded.


@dataclass
class RowFile:
    """A file whose rows are read one by one from its beginning; `-` is standard input, lines of text."""

    file: str
    share: float = field(default=0.0, init=False)
    """How much of it was read, from 0 to 1, in bytes as they lie on the disk; 0 for standard input."""

    @property
    def title(self) -> str:
        """Its name for people."""
        return "standard input" if self.file == STDIN else self.file

    def rows(self, select: SelectColumns, *, strict: bool = False, skip_blank: bool = False) -> Iterator[Row]:
        """Read the rows by the file's suffix; memory does not depend on their number.

        Args:
            select: Asked once for a table, and for each row of JSON.
            strict: Raise for the first row that cannot be read.
            skip_blank: Whether blank lines of JSON Lines are no rows; else they are rows that cannot be read.

        Raises:
            SourceError: The file cannot be read or lacks a column; or, where `strict`, a row cannot be read.
        """
        reader = FORMATS[".txt" if self.file == STDIN else require_suffix(self.file)]
        how: dict[str, Any] = {"skip_blank": True} if skip_blank and reader is json_rows else {}
        return self._read(partial(reader, select=select, **how), strict)

    def lines(self, encoding: str = "utf-8", *, strict: bool = False) -> Iterator[Row]:
        r"""Read lines of text without their ends, whatever the suffix; errors as in `rows`.

        Only \n and \r\n end a line: texts may hold every other separator.
        """
        return self._read(partial(text_rows, encoding=encoding), strict)

    def _read(self, reader: Callable[[BinaryIO], Iterator[Row]], strict: bool) -> Iterator[Row]:
        place = ""
        try:
            if self.file == STDIN and sys.stdin is None:
                raise SourceError("standard input is closed: give it lines, or name a file.")
            with nullcontext(sys.stdin.buffer) if self.file == STDIN else open(self.file, "rb") as raw:
                size = 0 if self.file == STDIN else os.fstat(raw.fileno()).st_size
                stream = gzip.GzipFile(fileobj=raw) if self.file.lower().endswith(".gz") else raw
                for row in reader(cast("BinaryIO", stream)):
                    self.share = raw.tell() / size if size else 0.0
                    if strict and row.problem:
                        place = f", {row.place}"
                        raise SourceError(row.problem)
                    yield row
                self.share = float(size > 0)
        except SourceError as error:
            raise SourceError(f"{self.title}{place}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self.title} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


class TextColumns(NamedTuple):
    """Which columns of a table hold texts and ids."""

    text: str = "text"
    id: str | None = None

    def select(self, names: Sequence[str]) -> list[str]:
        """The columns that are read; an empty file has none, and no rows either."""
        if names and (problem := self.problem(names)):
            raise SourceError(problem)
        return [self.text, *filter(None, [self.id])] if names else []

    def problem(self, names: Sequence[str]) -> str:
        """Why the columns cannot be read from a row with these; empty if they can."""
        for column, option in zip(self, ("--column", "--id-column"), strict=True):
            if column is not None and names.count(column) != 1:
                count = "more than one" if column in names else "no"
                return f"{count} column {column!r}. Columns: {', '.join(names)}. Choose with {option}."
        return ""


class TextRow(NamedTuple):
    """One row of a file; `text` is None where it cannot be read, and `reason` says where and why."""

    number: int
    id: str
    text: str | None
    reason: str = ""


@dataclass
class TextFile(RowFile):
    """A file of texts, read row by row from its beginning."""

    columns: TextColumns = field(default_factory=TextColumns)
    """Without a column of ids, a row's id is `FILE:ROW`."""

    def texts(self) -> Iterator[TextRow]:
        """Read the rows, counted from 1; errors as in `rows`."""
        for number, row in enumerate(self.rows(self.columns.select), 1):
            cells = row.cells if isinstance(row.cells, dict) else {self.columns.text: row.cells}
            text, id = cells.get(self.columns.text), cells.get(self.columns.id)
            problem = row.problem or text_problem(text)
            if self.columns.id is None:
                id = f"{self.file}:{number}"
            elif not problem and (isinstance(id, bool) or not isinstance(id, int)) and text_problem(id):
                problem = f"{repr(id)[:60]} is not an id. Give a string or a whole number."
            problem = problem and (row.problem or self.columns.problem(list(cells)) or problem)
            if problem:
                yield TextRow(number, "", None, f"{row.place}: {problem}"[:_LONGEST_REASON])
            else:
                yield TextRow(number, str(id), text)


def file_suffix(path: str) -> str:
    """Suffix of a file in lower case, that before .gz where it is compressed."""
    return Path(path.lower().removesuffix(".gz")).suffix


def require_suffix(path: str) -> str:
    """Suffix of a file that bellm can read; an error where it is another, or tells nothing and there is no file."""
    suffix = file_suffix(path)
    if suffix not in FORMATS:
        if not os.path.exists(path):
            raise SourceError(f"There is no file or folder {path}.")
        known = f"{', '.join(FORMATS)}, nor one of these and .gz"
        raise SourceError(f"bellm cannot read {path}: its suffix is {suffix!r}, not one of {known}.")
    return suffix


def read_texts(file: str, column: str = "text") -> list[str]:
    """Read all texts of a file, or the lines of standard input for `-`."""
    source = TextFile(file, TextColumns(column))
    texts = []
    for row in source.texts():
        if row.text is None:
            raise SourceError(f"{source.title}, {row.reason}")
        texts.append(row.text)
    return texts


def check_text(name: str, text: str) -> str:
    """Give a text back as it came; an error where it holds half a character, or is too long."""
    if problem := text_problem(text):
        raise SourceError(f"{name}: {problem}")
    return text


def expand_inputs(inputs: Sequence[str], skip: Path | None = None) -> list[str]:
    """Name the files that are meant, in order and each once, with forward slashes.

    A folder stands for all files under it that bellm can read and a pattern for what it matches, both sorted; `-` is
    standard input. Hidden files of a folder are left out, and so is everything in `skip`.
    """
    check_list("inputs", inputs)
    files: dict[str, str] = {}
    skipped = skip and skip.resolve()
    for entry in inputs:
        for path in [STDIN] if entry == STDIN else _paths(entry):
            real = path if path == STDIN else os.path.realpath(path)
            if skipped is None or not Path(real).is_relative_to(skipped):
                files.setdefault(real, path if path == STDIN else _name(path))
    return list(files.values())


def check_columns(files: Sequence[str], columns: TextColumns) -> None:
    """Look at the first rows of every file, before a model is loaded; standard input is left for later."""
    reasons = []
    for file in files:
        if file != STDIN:
            head = list(itertools.islice(TextFile(file, columns).texts(), _HEAD))
            if any(row.text is not None for row in head):
                reasons.append("")
            reasons += [f"{file}, {row.reason}" for row in head[:1] if row.text is None]
    if reasons and all(reasons):
        raise SourceError(f"No row can be read. {reasons[0]}")


def _paths(entry: str) -> list[str]:
    if os.path.isdir(entry):
        return _under(entry)
    if os.path.exists(entry) or not glob.has_magic(entry):
        require_suffix(entry)
        return [entry]
    found = sorted(glob.glob(entry, recursive=True))
    if not found:
        raise SourceError(f"{entry} matches no file.")
    return [path for match in found for path in _paths(match)]


def _under(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        known = (name for name in names if file_suffix(name) in FORMATS and not name.startswith("."))
        found += [os.path.join(parent, name) for name in known]
    if not found:
        raise SourceError(f"{folder} holds no file that bellm can read: none ends in {', '.join(FORMATS)}.")
    return sorted(found)


def _name(path: str) -> str:
    name = os.path.normpath(path).replace(os.sep, "/")
    if text_problem(name):
        raise SourceError(f"The name of {name!r} is not UTF-8, and ids are made of it. Rename the file.")
    return name
