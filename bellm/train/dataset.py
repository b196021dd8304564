"""Data sets of training examples, read from files and from the Hugging Face Hub as they come, small in memory.

No row is dropped in silence: one that cannot be used comes as a `Rejection` with its location and the reason.

Shapes: R rows, T texts of all rows.
"""

import functools
import hashlib
import itertools
import json
import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from bellm.data.own_files import may_be_classes
from bellm.errors import BellmWarning, SourceError, warn
from bellm.io.formats import EMPTY_WORDS, FORMATS, Row, parse_number, quote_names
from bellm.io.hub import refuse_missing_data
from bellm.io.rows import RowFile, expand_inputs, parse_columns
from bellm.io.streams import COMPRESSIONS, content_suffix
from bellm.train.examples import (
    NLI_NUMBERS,
    Example,
    ExampleColumns,
    Part,
    Parts,
    is_label,
    join_nli,
    mark_symmetric,
    match_columns,
    nli_cell,
    numbers_are_classes,
    parse_csv_cell,
    parse_example,
    parse_nli,
    text_key,
    unread_columns,
)

_HEAD = 100  # Rows after which a source without a good one is given up.
_KEPT = 100  # Rejections that are kept; the others are counted.
_TABLES = [suffix for suffix in FORMATS if suffix != ".txt"]  # One line of text is no example.
_MIXED = "no score where the rows before have one, or the other way round. Put rated rows in a file of their own."


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is left out."""

    location: str
    """File and line, in words."""
    reason: str


class Dataset:
    """Rows of one source, in its order.

    A row is kept as its JSON in a nameless temporary file, which the system reads as needed and removes at the end: a
    million NLI triplets take 0.3 GB there, and 40 MB of memory for where they are and which texts they share.

    >>> rows = Dataset("pairs", [Example("a wet dog", ("a dog in the rain",))])
    >>> len(rows), rows[0].anchor
    (1, 'a wet dog')
    """

    def __init__(self, name: str, rows: Iterable[Example | Rejection]) -> None:
        """Take rows in; a SourceError says that there are none, or that the first hundred, or all, are rejections."""
        self.name = name
        self.rejections: list[Rejection] = []
        """The first hundred rows that were left out."""
        self.num_rejected = 0
        self._ends_R, keys_T, key_ends_R = array("q"), array("q"), array("q")
        with tempfile.TemporaryFile() as file:
            for row in rows:
                if isinstance(row, Rejection):
                    self._reject(row)
                    continue
                fields = [row.anchor, row.positives, row.negatives, row.score, row.symmetric]
                file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
                self._ends_R.append(file.tell())
                keys_T.extend(map(text_key, row.texts))
                key_ends_R.append(len(keys_T))
            if not len(self):
                self._give_up()
            file.flush()
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.digest = hashlib.sha256(self._bytes).hexdigest()
        """Of the examples in their order: the same only if they are the same."""
        self.keys_T: NDArray[np.int64] = np.array(keys_T, dtype=np.int64)
        """The `text_key` of every text, row after row."""
        self.key_ends_R: NDArray[np.int64] = np.array(key_ends_R, dtype=np.int64)
        """Where each row's keys end."""

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} rows)"

    def __len__(self) -> int:
        return len(self._ends_R)

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> Example:
        end = self._ends_R[row]
        start = self._ends_R[row - 1] if row % len(self) else 0
        anchor, positives, negatives, score, symmetric = json.loads(self._bytes[start:end])
        return Example(anchor, tuple(positives), tuple(negatives), score, symmetric)

    @property
    def rated(self) -> bool:
        """Whether rows have scores; of what `read_examples` gives, all have or none."""
        return self[0].score is not None

    def _reject(self, row: Rejection) -> None:
        self.num_rejected += 1
        if len(self.rejections) < _KEPT:
            self.rejections.append(row)
        if self.num_rejected >= _HEAD and not len(self):
            self._give_up()

    def _give_up(self) -> None:
        if not self.rejections:
            raise SourceError(f"{self.name} holds no rows.")
        first = self.rejections[0]
        raise SourceError(f"No row of {self.name} can be read. {first.location}: {first.reason}")


def load_dataset(source: str | os.PathLike[str], columns: ExampleColumns | str | None = None) -> Dataset:
    """Read a whole source; see `read_examples`. Columns may be named in a text too: `anchor=query,positive=passage`.

    Raises:
        SourceError: It cannot be read, or none of its rows.

    Warns:
        BellmWarning: Columns are not read; or how rows of NLI became triplets.
    """
    name = os.fspath(source)
    if isinstance(columns, str):
        columns = cast("ExampleColumns", parse_columns(columns, get_args(Part)))
    # A run resumes where its file has the same content, wherever it is now.
    return Dataset(os.path.basename(name) if _is_file(name) else name, read_examples(name, columns))


def check_file(source: str) -> None:
    """Raise a SourceError where a source is the name of one file that is not there; others are left to reading."""
    if _is_file(source) and not os.path.exists(source) and not any(magic in source for magic in "*["):
        raise SourceError(f"{source} cannot be read: No such file or directory.")


def read_examples(
    source: str | os.PathLike[str], columns: ExampleColumns | None = None
) -> Iterator[Example | Rejection]:
    """Read a source row by row, in memory that does not depend on its length.

    It is a table in one of the formats of `bellm.io`, compressed or not, or a pattern of such files (`pairs-*.csv`).
    Else it is a folder of them, or a data set of the Hub, through `datasets`, with its configuration and its split
    unless that is train: `user/pairs?config=english&split=dev`. Columns go by their names unless they are given; see
    `bellm.train.examples`.

    All rows have scores or none has: no loss takes both, so the first good row decides. Rows of NLI come at the end,
    joined to triplets.
    """
    reader = _Reader(columns)
    name = os.fspath(source)
    is_pattern = not os.path.exists(name) and any(magic in name for magic in "*[")
    for file in expand_inputs([name]) if is_pattern else [name]:
        yield from reader.read(file)
    yield from reader.finish(name)


class _Reader:
    """Rows of one or several files as examples, and what is only known at the end of them."""

    def __init__(self, columns: ExampleColumns | None) -> None:
        self._columns = columns
        self._match = functools.lru_cache(1024)(self._match_anew)  # The rows of most files have the same columns.
        self._unread: dict[str, None] = {}
        self._empty: dict[str, None] = {}  # Words that were read as empty cells.
        self._kind = ""  # Of the first row: all rows are rated, or all are NLI, or none is.
        self._nli: list[Example] = []
        self._labels: set[str] = set()  # Some of what stands in a column that is called label.
        self._label = ""
        self._may_be_nli = False

    def read(self, name: str) -> Iterator[Example | Rejection]:
        """Examples of a file, but for rows of NLI, which are kept."""
        if not _is_file(name):
            rows = _dataset_rows(name)
        elif content_suffix(name) in _TABLES:
            rows = RowFile(name).rows(lambda names: [*itertools.chain(*self._match(*names).values())], skip_blank=True)
        else:
            known = f"{', '.join(_TABLES)}, nor one of these and {', '.join(COMPRESSIONS)}"
            raise SourceError(f"{name}: its suffix is none of {known}.")
        for row in rows:
            try:
                if example := self._parse(row):
                    yield example
            except SourceError as error:
                yield Rejection(f"{name}, {row.location}", str(error))
            if self._label and self._is_mixed():
                raise self._unclear(name)

    def finish(self, name: str) -> Iterator[Example]:
        """What rows of NLI became, and a warning of all that is not read; refuses classes that look like scores."""
        if self._unread:
            what = f"column{'s' if len(self._unread) > 1 else ''} {quote_names(self._unread)}"
            warn(f"{name}: not read: {what}.", BellmWarning)
        if self._empty:
            words = quote_names(self._empty)
            warn(f"{name}: read as empty cells: {words}. In JSON Lines a string is a text.", BellmWarning)
        numbers = {number for label in self._labels if (number := parse_number(label)) is not None}
        if numbers and may_be_classes(numbers) and not ("2" in self._labels and self._nli):
            raise self._unclear(name)
        if self._nli:
            rows = list(join_nli(self._nli))
            if not rows:
                raise SourceError(f"{name}: no premise has an entailment, so that nothing belongs together.")
            kind = "triplets of premise, entailment and contradiction" if rows[0].negatives else "pairs"
            warn(f"{name}: {len(self._nli)} rows of NLI make {len(rows)} {kind}.", BellmWarning)
            yield from rows

    def _match_anew(self, *names: str) -> Parts:
        parts = match_columns(names, self._columns)
        if self._columns is None:
            self._unread |= dict.fromkeys(unread_columns(names, parts))
        return parts

    def _parse_csv(self, cells: Mapping[str, object], parts: Parts) -> dict[str, object]:
        """The cells that are read, as what they stand for."""
        read = {name: cells[name] for name in itertools.chain(*parts.values())}
        self._empty |= dict.fromkeys(cell for cell in read.values() if isinstance(cell, str) and cell in EMPTY_WORDS)
        return {name: parse_csv_cell(cell) if isinstance(cell, str) else cell for name, cell in read.items()}

    def _look_at_label(self, cells: Mapping[str, object], parts: Parts) -> None:
        label = parts.get("score", ("",))[0]
        if self._columns is None and is_label(label) and len(self._labels) < 5:
            self._label, self._may_be_nli = label, numbers_are_classes(parts)
            self._labels.add(nli_cell(cells[label]))

    def _is_mixed(self) -> bool:
        """Whether numbers of classes stand beside other numbers, where they are read as NLI."""
        others = self._labels - {*NLI_NUMBERS}
        return (
            self._may_be_nli
            and len(others) < len(self._labels)
            and any(parse_number(label) is not None for label in others)
        )

    def _unclear(self, name: str) -> SourceError:
        return SourceError(
            f"{name}: {self._label!r} holds {', '.join(sorted(self._labels))}: are these classes or ratings? Where a "
            f"higher one means more alike, say so (--columns anchor=NAME,positive=NAME,score={self._label}); write "
            "classes of NLI as entailment, neutral and contradiction."
        )

    def _parse(self, row: Row) -> Example | None:
        if row.problem:
            raise SourceError(row.problem)
        nli: Example | None = None
        if isinstance(row.cells, list):
            example = mark_symmetric(row.cells)
        elif isinstance(row.cells, dict):
            parts = self._match(*row.cells)
            cells = self._parse_csv(row.cells, parts) if row.untyped else row.cells
            self._look_at_label(cells, parts)
            nli = parse_nli(cells, parts, numbers=self._columns is None)
            example = nli or parse_example(cells, parts)
        else:
            raise SourceError(f"{repr(row.cells)[:60]} is neither an object nor a list of texts.")
        kind = "NLI" if nli else "rated" if example.score is not None else "not rated"
        self._kind = self._kind or kind
        if kind != self._kind:
            raise SourceError(_MIXED)
        if nli:
            self._nli.append(nli)
        return None if nli else example


def _is_file(name: str) -> bool:
    return os.path.isfile(name) or (content_suffix(name) in _TABLES and not os.path.isdir(name))


def _dataset_rows(name: str) -> Iterator[Row]:
    path, _, query = name.partition("?")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"config", "split"}:
        raise SourceError(f"{name}: {', '.join(sorted(unknown))} is no setting of a data set. Settings: config, split.")
    if not path:
        raise SourceError("An empty name is no data: give a file, a folder or a data set of the Hub.")
    if not os.path.isdir(path) and (path.count("/") > 1 or path.startswith((".", "/"))):
        raise SourceError(f"{name}: there is no such file or folder.")
    try:
        import datasets
    except ImportError as error:
        raise SourceError(f"{name}: folders and data sets of the Hub need datasets: pip install datasets.") from error
    try:
        if not os.path.isdir(path):
            refuse_missing_data(path)
        rows = datasets.load_dataset(path, options.get("config"), split=options.get("split", "train"), streaming=True)
        untyped = rows.info.builder_name == "csv"
        for number, cells in enumerate(rows, 1):
            yield Row(f"row {number}", cells, untyped=untyped)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:240]
        what = "" if os.path.isdir(path) else "there is no such folder, or "
        raise SourceError(f"{name}: {what}datasets cannot read it: {reason}") from error
