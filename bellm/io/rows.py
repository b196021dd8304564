"""Which files a user means, and their rows by suffix, plain or compressed: all cells asked for, or texts with ids.

Every command reads its inputs here. But for .json memory does not depend on the number of rows.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from bellm.errors import BellmWarning, SourceError, check_list, warn
from bellm.io.formats import FORMATS, Row, SelectColumns, is_blank, quote_names, same_columns, text_problem, text_rows
from bellm.io.streams import COMPRESSIONS, STDIN, STREAM_ERRORS, as_utf8, content_suffix, open_stream

_LONGEST_REASON = 300
_HEAD = 100  # Rows of a file that are looked at before a model is loaded.


@dataclass
class RowFile:
    """A file whose rows are read one by one from its beginning; `-` is standard input, lines of text."""

    file: str
    share: float = field(default=0.0, init=False)
    """How much of it was read, from 0 to 1, in bytes as they lie on the disk; 0 for standard input."""
    unread: dict[str, None] = field(default_factory=dict, init=False)
    """Columns that were there and not selected."""
    num_rows: int = field(default=0, init=False)
    """How many were read so far."""

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

        def watched(names: Sequence[str]) -> Sequence[str]:
            if selected := select(names):
                self.unread |= dict.fromkeys(name for name in names if name not in selected)
            return selected

        suffix = ".txt" if self.file == STDIN else require_suffix(self.file)
        how: dict[str, Any] = {"skip_blank": True} if skip_blank and "json" in suffix else {}
        return self._read(partial(FORMATS[suffix], select=watched, **how), strict)

    def lines(self, encoding: str = "utf-8", *, strict: bool = False) -> Iterator[Row]:
        r"""Read lines of text without their ends, whatever the suffix; errors as in `rows`.

        Only \n and \r\n end a line: texts may hold every other separator.
        """
        return self._read(partial(text_rows, encoding=encoding), strict)

    def _read(self, reader: Callable[[BinaryIO], Iterator[Row]], strict: bool) -> Iterator[Row]:
        location = ""
        try:
            with open_stream(self.file) as (raw, size, content):
                is_text = content_suffix(self.file) != ".parquet"
                for row in reader(as_utf8(content) if is_text else content):
                    self.share = raw.tell() / size if size else 0.0
                    self.num_rows += 1
                    if strict and row.problem:
                        location = f", {row.location}"
                        raise SourceError(row.problem)
                    yield row
                self.share = float(size > 0)
        except SourceError as error:
            raise SourceError(f"{self.title}{location}: {error}") from error
        except FileNotFoundError as error:
            is_pattern = ", and patterns are not taken here: give one file" * glob.has_magic(self.file)
            raise SourceError(f"{self.file} cannot be read: {error.strerror}{is_pattern}.") from error
        except STREAM_ERRORS as error:
            raise SourceError(f"{self.title} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


class TextColumns(NamedTuple):
    """Which columns of a table hold texts and ids, by names that `same_columns` compares."""

    text: str = "text"
    id: str | None = None

    @classmethod
    def parse(cls, text: str, id: str | None = None) -> "TextColumns":
        """The columns as users write them: that of the texts, or `text=COLUMN,id=COLUMN`.

        >>> TextColumns.parse("text=body,id=url")
        TextColumns(text='body', id='url')
        """
        given = parse_columns(text, cls._fields) if "=" in text else {"text": [text]}
        given.setdefault("text", ["text"])
        if twice := [part for part, columns in given.items() if len(columns) > 1]:
            raise SourceError(f"{text!r} names more than one column for the {twice[0]}, which has one.")
        return cls(*given["text"], *given.get("id", [id]))

    def select(self, names: Sequence[str]) -> list[str]:
        """The columns that are read; an empty file has none, and no rows either. Ids need not be there."""
        if not names:
            return []
        for column, option, least in ((self.text, "--column", 1), (self.id, "--id-column", 0)):
            if column is not None and not least <= (count := len(same_columns(names, column))) <= 1:
                many = "more than one" if count else "no"
                raise SourceError(f"{many} column {column!r}. Columns: {quote_names(names)}. Choose with {option}.")
        return [*same_columns(names, self.text), *(same_columns(names, self.id) if self.id is not None else [])]

    def cells(self, cells: Mapping[str, Any]) -> tuple[Any, Any]:
        """Text and id of a row that was read with `select`, each None where there is none."""
        return _cell(cells, self.text), None if self.id is None else _cell(cells, self.id)


def _cell(cells: Mapping[str, Any], column: str) -> Any:
    return next(map(cells.get, same_columns(cells, column)), None)


class TextPlace(NamedTuple):
    """Where a chunk stands in its document."""

    chunk: int
    """Its number, from 0."""
    start: int
    """Its first character."""
    end: int
    """The character behind its last."""
    line: int
    """The line that it begins in, from 1."""


class TextRow(NamedTuple):
    """One row of a file; `text` is None where it cannot be read, and `reason` says where and why."""

    number: int
    id: str
    text: str | None
    reason: str = ""
    is_numbered: bool = False
    """Whether its id is `FILE:ROW` because the column of ids has none for it."""
    place: TextPlace | None = None
    """Of a chunk of a document."""


@dataclass
class TextFile(RowFile):
    """A file of texts, read row by row from its beginning."""

    columns: TextColumns = field(default_factory=TextColumns)

    def texts(self) -> Iterator[TextRow]:
        """Read the rows, counted from 1; the id of one that has none is `FILE:ROW`. Errors as in `rows`."""
        for number, row in enumerate(self.rows(self.columns.select), 1):
            text, id = self.columns.cells(row.cells) if isinstance(row.cells, dict) else (row.cells, None)
            has_id = id is not None and bool(str(id).strip())
            problem = row.problem or text_problem(text)
            if not problem and has_id and (isinstance(id, bool) or not isinstance(id, int)) and text_problem(id):
                problem = f"{repr(id)[:60]} is not an id. Give a string or a whole number."
            if problem:
                yield TextRow(number, "", None, f"{row.location}: {problem}"[:_LONGEST_REASON])
            elif has_id:
                yield TextRow(number, str(id), text)
            else:
                yield TextRow(number, f"{self.file}:{number}", text, is_numbered=self.columns.id is not None)


def require_suffix(path: str, suffixes: Iterable[str] = FORMATS) -> str:
    """Suffix of a file that bellm can read; an error where it is another, or tells nothing and there is no file."""
    suffix = content_suffix(path)
    if suffix not in suffixes:
        if not os.path.exists(path):
            raise SourceError(f"There is no file or folder {path}.")
        known = f"{', '.join(suffixes)}, nor one of these and {', '.join(COMPRESSIONS)}"
        twice = "it is compressed twice, unpack it once; " if suffix in COMPRESSIONS else ""
        raise SourceError(f"bellm cannot read {path}: {twice}its suffix is {suffix!r}, not one of {known}.")
    return suffix


def read_texts(files: str | Sequence[str], column: str = "text") -> list[str]:
    """Read all texts of a file or of several, or the lines of standard input for `-`.

    Warns:
        BellmWarning: There are columns that are not read.
    """
    columns = TextColumns.parse(column)
    if columns.id is not None:
        raise SourceError(f"{column!r}: only a corpus folder keeps ids. Name the column of the texts alone.")
    sources = [TextFile(file, columns) for file in ([files] if isinstance(files, str) else files)]
    texts = []
    for source in sources:
        for row in source.texts():
            if row.text is None:
                raise SourceError(f"{source.title}, {row.reason}")
            texts.append(row.text)
    warn_unread(sources)
    return texts


def warn_unread(files: Sequence[RowFile]) -> None:
    """Name once the columns of some files that were not read, and files without rows."""
    names = dict.fromkeys(name for file in files for name in file.unread)
    if names:
        titles = [file.title for file in files if file.unread]
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        columns = "column" if len(names) == 1 else "columns"
        warn(f"{titles[0]}{more}: not read: {columns} {quote_names(names)}.", BellmWarning)
    if empty := [file.title for file in files if not file.num_rows]:
        warn(f"There are no rows in {quote_names(empty)}.", BellmWarning)


def parse_columns(text: str, parts: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each part of a row, as users write them; a part that is named again has more than one.

    >>> parse_columns("anchor=query,negative=worst,negative=bad one", ("anchor", "positive", "negative"))
    {'anchor': ['query'], 'negative': ['worst', 'bad one']}
    """
    columns: dict[str, list[str]] = {}
    for entry in text.split(","):
        part, equals, column = entry.partition("=")
        if not equals or part.strip() not in parts or not column:
            example = ",".join(f"{part}=COLUMN" for part in parts[:2])
            raise SourceError(f"{entry!r} names no column of a part: write {example}. Parts: {', '.join(parts)}.")
        columns.setdefault(part.strip(), []).append(column)
    return columns


def check_text(name: str, text: str) -> str:
    """Give a text back as it came; an error where it holds half a character or a zero byte, or is too long."""
    if problem := text_problem(text):
        raise SourceError(f"{name}: {problem}")
    return text


def check_query(query: str) -> str:
    """Give a query back as it came; an error where it is no text, or empty."""
    if is_blank(check_text("The query", query)):
        raise SourceError("The query is empty: say what to look for.")
    return query


def expand_inputs(
    inputs: Sequence[str | Path], skip: Path | None = None, suffixes: Iterable[str] = FORMATS
) -> list[str]:
    """Name the files that are meant, in order and each once, with forward slashes.

    A folder stands for all files under it with one of the `suffixes` and a pattern for what it matches, both sorted;
    `-` is standard input. Hidden files of a folder are left out, and so is everything in `skip`.
    """
    check_list("inputs", inputs)
    files: dict[str, str] = {}
    skipped = skip and skip.resolve()
    for entry in map(str, inputs):
        for path in [STDIN] if entry == STDIN else _paths(entry, tuple(suffixes)):
            real = path if path == STDIN else os.path.realpath(path)
            if skipped is None or not Path(real).is_relative_to(skipped):
                files.setdefault(real, path if path == STDIN else _name(path))
    if inputs and not files:
        raise SourceError(f"All inputs lie in {skip}, where the output goes. Choose another folder.")
    return list(files.values())


def refuse_own_input(output: str, files: Sequence[str]) -> None:
    """Raise an error where an output would take the place of one of the files that it is made of."""
    if os.path.exists(output) and any(file != STDIN and os.path.samefile(file, output) for file in files):
        raise SourceError(f"{output} is one of the inputs, and would be replaced. Choose another name.")


def check_columns(files: Sequence[str], columns: TextColumns) -> None:
    """Look at the first rows of every file, before a model is loaded; standard input is left for later.

    Warns:
        BellmWarning: There are columns that are not read.
    """
    sources = [TextFile(file, columns) for file in files if file != STDIN]
    problem, can_read, has_ids = "", False, columns.id is None
    for source in sources:
        head = list(itertools.islice(source.texts(), _HEAD))
        can_read = can_read or any(row.text is not None for row in head)
        has_ids = has_ids or any(row.text is not None and not row.is_numbered for row in head)
        if head and head[0].text is None:
            problem = problem or f"{source.file}, {head[0].reason}"
    if problem and not can_read:
        raise SourceError(f"No row can be read. {problem}")
    if can_read and not has_ids:
        names = dict.fromkeys(name for source in sources for name in source.unread)
        others = f" Columns: {quote_names(names)}, and that of the texts." if names else ""
        raise SourceError(f"No file has ids in a column {columns.id!r}.{others} Choose with --id-column.")
    warn_unread(sources)


def _paths(entry: str, suffixes: Collection[str]) -> list[str]:
    if os.path.isdir(entry):
        return _under(entry, suffixes)
    if os.path.exists(entry) or not glob.has_magic(entry):
        require_suffix(entry, suffixes)
        return [entry]
    found = sorted(_matches(entry))
    if not found:
        raise SourceError(f"{entry} matches no file.")
    return [path for match in found for path in _paths(match, suffixes)]


def _matches(pattern: str) -> Iterator[str]:
    """Files and folders that a pattern matches; `**` is every folder below, each once, which `glob` does not ensure."""
    recursive = re.fullmatch(r"(.*?)(?<![^/])\*\*(?:/(.*))?", pattern)
    if not recursive:
        yield from glob.glob(pattern)
        return
    before, after = recursive.groups()
    for top in glob.glob(before) if before else ["."]:
        for folder, names in _folders(top):
            below = os.path.normpath(folder)
            if after:
                yield from _matches(os.path.join(glob.escape(below), after) if below != "." else after)
            else:
                yield from (os.path.join(below, name) for name in names if not name.startswith("."))


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and those below it that are not hidden, with their files; links lead to others, none comes twice."""
    seen, tops = set(), [top]
    while tops:  # Links come last: a folder has the name under which it lies.
        links = []
        for parent, folders, names in itertools.chain(*(os.walk(each, onerror=_unreadable) for each in tops)):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield parent, names
            links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
        tops = links


def _unreadable(error: OSError) -> NoReturn:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _under(folder: str, suffixes: Collection[str]) -> list[str]:
    found = []
    for parent, names in _folders(folder):
        known = (name for name in names if content_suffix(name) in suffixes and not name.startswith("."))
        found += [os.path.join(parent, name) for name in known]
    if not found:
        raise SourceError(f"{folder} holds no file that bellm can read: none ends in {', '.join(suffixes)}.")
    return sorted(found)


def _name(path: str) -> str:
    name = os.path.normpath(path).replace(os.sep, "/")
    if text_problem(name):
        raise SourceError(f"The name of {name!r} is not UTF-8, and ids are made of it. Rename the file.")
    return name
