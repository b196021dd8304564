"""Input files: which are meant, and their rows."""

import glob
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bellm.corpus.formats import READERS, Cells, Columns, text_problem
from bellm.corpus.row_ranges import CorpusRow
from bellm.errors import SourceError

STDIN = "-"

_HEAD = 100  # Rows of a file that are looked at before a model is loaded.
_LONGEST_REASON = 300


def expand_inputs(inputs: Sequence[str], skip: Path | None = None) -> list[str]:
    """Name the files that are meant, in order and each once, with forward slashes.

    A folder stands for all files under it that bellm can read and a pattern for what it matches, both sorted; `-` is
    standard input. Hidden files of a folder are left out, and so is everything in `skip`.

    Raises:
        SourceError: An input is not there, matches nothing, or has an unknown suffix.
    """
    files: dict[str, str] = {}
    skipped = skip and skip.resolve()
    for entry in inputs:
        for path in [STDIN] if entry == STDIN else _paths(entry):
            real = path if path == STDIN else os.path.realpath(path)
            if skipped is None or not Path(real).is_relative_to(skipped):
                files.setdefault(real, path if path == STDIN else _name(path))
    return list(files.values())


@dataclass
class InputFile:
    """One input file, read row by row from its beginning."""

    file: str
    """Its name as `expand` gives it."""
    columns: Columns = field(default_factory=Columns)
    """Without a column of ids, a row's id is `FILE:ROW`."""
    share: float = field(default=0.0, init=False)
    """How much of it was read, from 0 to 1; 0 for standard input."""

    @property
    def title(self) -> str:
        """Its name for people."""
        return "standard input" if self.file == STDIN else self.file

    def rows(self) -> Iterator[CorpusRow]:
        """Read the rows, counted from 1; memory does not depend on their number.

        Raises:
            SourceError: The file cannot be read, or has no such column.
        """
        reader = READERS[".txt" if self.file == STDIN else _suffix(self.file)]
        try:
            with self._open() as stream:
                size = 0 if self.file == STDIN else os.fstat(stream.fileno()).st_size
                for number, cells in enumerate(reader(stream, self.columns), 1):
                    self.share = stream.tell() / size if size else 0.0
                    yield self._row(number, cells)
                self.share = 1.0 if size else 0.0
        except SourceError as error:
            raise SourceError(f"{self.title}: {error}") from error
        except OSError as error:
            raise SourceError(f"{self.title} cannot be read: {error.strerror or error}.") from error

    def _open(self) -> AbstractContextManager[BinaryIO]:
        return nullcontext(sys.stdin.buffer) if self.file == STDIN else open(self.file, "rb")

    def _row(self, number: int, cells: Cells) -> CorpusRow:
        problem = cells.problem or text_problem(cells.text)
        id = f"{self.file}:{number}"
        if not problem and self.columns.id is not None:
            id, problem = str(cells.id), _id_problem(cells.id)
        if problem:
            return CorpusRow(number, "", None, f"{cells.place}: {problem}"[:_LONGEST_REASON])
        return CorpusRow(number, id, str(cells.text))


def check_columns(files: Sequence[str], columns: Columns) -> None:
    """Look at the first rows of every file, before a model is loaded; standard input is left for later.

    Raises:
        SourceError: A file cannot be opened, has no such column, or none of the rows can be read.
    """
    reasons = []
    for file in files:
        if file != STDIN:
            source = InputFile(file, columns)
            head = list(itertools.islice(source.rows(), _HEAD))
            if any(row.text is not None for row in head):
                reasons.append("")
            reasons += [f"{file}, {row.reason}" for row in head[:1] if row.text is None]
    if reasons and all(reasons):
        raise SourceError(f"No row can be read. {reasons[0]}")


def _paths(entry: str) -> list[str]:
    if os.path.isdir(entry):
        return _under(entry)
    if os.path.exists(entry) or not glob.has_magic(entry):
        _suffix(entry)
        return [entry]
    found = sorted(glob.glob(entry, recursive=True))
    if not found:
        raise SourceError(f"{entry} matches no file.")
    return [path for match in found for path in _paths(match)]


def _under(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        known = (name for name in names if Path(name).suffix.lower() in READERS and not name.startswith("."))
        found += [os.path.join(parent, name) for name in known]
    if not found:
        raise SourceError(f"{folder} holds no file that bellm can read: none ends in {', '.join(READERS)}.")
    return sorted(found)


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        if not os.path.exists(path):
            raise SourceError(f"There is no file or folder {path}.")
        raise SourceError(f"bellm cannot read {path}: its suffix is {suffix!r}, not one of {', '.join(READERS)}.")
    return suffix


def _name(path: str) -> str:
    name = os.path.normpath(path).replace(os.sep, "/")
    if text_problem(name):
        raise SourceError(f"The name of {name!r} is not UTF-8, and ids are made of it. Rename the file.")
    return name


def _id_problem(id: object) -> str:
    is_id = text_problem(id) == "" or (isinstance(id, int) and not isinstance(id, bool))
    return "" if is_id else f"{repr(id)[:60]} is not an id. Give a string or a whole number."
