"""Training examples from files and from the Hugging Face Hub, read as they come.

No row is dropped in silence: one that cannot be used comes as a `Rejection` with its place and the reason.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import parse_qsl

from bellm.errors import SourceError
from bellm.io.formats import FORMATS, Row, SelectColumns
from bellm.io.rows import RowFile, file_suffix
from bellm.train.dataset import Dataset, Rejection
from bellm.train.examples import Columns, Example, Parts, mark_symmetric, match_columns, parse_example
from bellm.types import Path as PathLike

_TABLES = [suffix for suffix in FORMATS if suffix != ".txt"]  # One line of text is no example.
_MIXED = "no score where the rows before have one, or the other way round. Put rated rows in a file of their own."


def load_dataset(source: PathLike, columns: Columns | None = None) -> Dataset:
    """Read a whole source; see `read_examples`.

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

    @functools.lru_cache(1024)  # The rows of most files have the same columns.
    def match(*names: str) -> Parts:
        return match_columns(names, columns)

    def select(names: Sequence[str]) -> list[str]:
        return list(itertools.chain(*match(*names).values()))

    rated: bool | None = None
    for row in _file_rows(name, select) if _is_file(name) else _dataset_rows(name):
        try:
            example = _parse_row(row, match)
            rated = example.score is not None if rated is None else rated
            if (example.score is not None) != rated:
                raise SourceError(_MIXED)
            yield example
        except SourceError as error:
            yield Rejection(f"{name}, {row.place}", str(error))


def read_captions(files: Sequence[PathLike]) -> Iterator[Example | Rejection]:
    """Read texts that say the same from several files, line by line: captions of one image each.

    Args:
        files: Two or more text files of as many lines each, or such files with .gz behind their names.

    Raises:
        SourceError: A file cannot be read, or is shorter than another.
    """
    names = [os.fspath(file) for file in files]
    for number, rows in enumerate(itertools.zip_longest(*(RowFile(name).lines() for name in names)), 1):
        if None in rows:
            raise SourceError(f"{names[rows.index(None)]} has {number - 1} lines and others have more.")
        try:
            if problem := next(filter(None, (row.problem for row in rows)), ""):
                raise SourceError(problem)
            yield mark_symmetric([row.cells for row in rows])
        except SourceError as error:
            yield Rejection(f"{names[0]}, line {number}", str(error))


def _is_file(name: str) -> bool:
    return os.path.isfile(name) or (file_suffix(name) in _TABLES and not os.path.isdir(name))


def _file_rows(name: str, select: SelectColumns) -> Iterator[Row]:
    if file_suffix(name) not in _TABLES:
        raise SourceError(f"{name}: its suffix is none of {', '.join(_TABLES)}, nor one of these and .gz.")
    return RowFile(name).rows(select, skip_blank=True)


def _dataset_rows(name: str) -> Iterator[Row]:
    path, _, query = name.partition("?")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"config", "split"}:
        raise SourceError(f"{name}: {', '.join(sorted(unknown))} is no setting of a data set. Settings: config, split.")
    if not os.path.isdir(path) and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise SourceError(f"{name}: there is no such file or folder.")
    try:
        import datasets
    except ImportError as error:
        raise SourceError(f"{name}: folders and data sets of the Hub need datasets: pip install datasets.") from error
    try:
        rows = datasets.load_dataset(path, options.get("config"), split=options.get("split", "train"), streaming=True)
        for number, cells in enumerate(rows, 1):
            yield Row(f"row {number}", cells)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise SourceError(f"{name}: datasets cannot read it: {str(error).splitlines()[0]}") from error


def _parse_row(row: Row, match: Callable[..., Parts]) -> Example:
    if row.problem:
        raise SourceError(row.problem)
    if isinstance(row.cells, list):
        return mark_symmetric(row.cells)
    if not isinstance(row.cells, dict):
        raise SourceError(f"{repr(row.cells)[:60]} is neither an object nor a list of texts.")
    return parse_example(row.cells, match(*row.cells))
