"""SentEval's seven transfer tasks: sentences or pairs of sentences, with class labels.

Files and their places are those that SentEval (github.com/facebookresearch/SentEval) writes to `data/downstream`. The
words of a sentence are put together with single spaces, a line without any becomes ".", and the rows of each part are
sorted by their number of words and then by class, as there: folds are drawn from this order.

Shapes: N rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bellm.data import sources
from bellm.data.sources import DataSource, TextLine
from bellm.errors import SourceError

SplitName = Literal["train", "dev", "test"]

_ADDRESS = (
    "SentEval (github.com/facebookresearch/SentEval): its data/downstream/get_transfer_data.bash fetches it into "
    "data/downstream, which becomes transfer/ in the folder of data sets"
)
_UTF8 = ("SST2", "MRPC")  # The others are Latin-1.
_QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


@dataclass(frozen=True)
class LabeledTexts:
    """A classification task."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    """One column of N sentences, or two where pairs are classified."""
    labels_N: NDArray[np.int64]
    """Classes, counted from 0."""
    split: Mapping[SplitName, range] = field(default_factory=dict)
    """The rows of each published part; empty where the task is cross-validated."""
    label_names: tuple[str, ...] = ()
    """What the classes are called, of files of a user's own."""

    def select(self, rows: Sequence[int] | NDArray[np.intp]) -> "LabeledTexts":
        """Some of the rows in this order, without parts."""
        columns = tuple(tuple(column[row] for row in rows) for column in self.columns)
        return LabeledTexts(self.name, columns, self.labels_N[list(rows)], label_names=self.label_names)


class _Row(NamedTuple):
    texts: tuple[str, ...]
    label: int


_Parser = Callable[[TextLine], _Row | None]
"""A line to its row, or to None for a header."""


def read_classification(name: str, folder: Path | None = None) -> LabeledTexts:
    """Read a task from a folder that holds `transfer/MR/rt-polarity.pos` and their like; the Hub has no copy of them.

    Names are `MR`, `CR`, `SUBJ`, `MPQA` (cross-validated), `SST2` (train, dev and test), `TREC` (coarse classes) and
    `MRPC` (pairs; train and test).

    Raises:
        BellmError: There is no task of that name, it is absent, or a line cannot be read.
    """
    source = sources.find_source(name, CLASSIFICATION_SOURCES, "transfer task")
    path = sources.data_folder(folder, source)
    assert path is not None, "none of these is on the Hub"
    rows: list[_Row] = []
    split: dict[SplitName, range] = {}
    for part, files in _FILES[name].items():
        part_rows = [row for file, parser in files.items() for row in _rows(path, file, parser, source)]
        if part:
            split[part] = range(len(rows), len(rows) + len(part_rows))
        rows += sorted(part_rows, key=lambda row: (*(len(text.split()) for text in row.texts), row.label))
    if not rows:
        raise SourceError(f"{name} holds no labelled texts. Get it from {source.address}.")
    columns = tuple(zip(*([text or "." for text in row.texts] for row in rows), strict=True))
    return LabeledTexts(name, columns, np.array([row.label for row in rows]), split)


def _rows(folder: Path, path: str, parser: _Parser, source: DataSource) -> Iterator[_Row]:
    file = sources.require_file(folder, f"transfer/{path}", source)
    lines = sources.read_lines(file, "utf-8" if source.name in _UTF8 else "latin-1")
    return (row for row in map(parser, lines) if row is not None)


def _words(text: str) -> str:
    return " ".join(text.split())


def _of_class(label: int) -> _Parser:
    return lambda line: _Row((_words(line.text),), label)


def _sentiment(line: TextLine) -> _Row:
    """A sentence, a tab, and its class."""
    text, tab, label = line.text.rstrip().rpartition("\t")
    if not tab or label not in ("0", "1"):
        raise _malformed(line, "a sentence, a tab, and 0 or 1")
    return _Row((_words(text),), int(label))


def _question(line: TextLine) -> _Row:
    """`LOC:city Where is it ?`: the class, how it is divided further, and the question."""
    label, _, rest = line.text.partition(":")
    _, space, text = rest.partition(" ")
    if not space or label not in _QUESTIONS:
        raise _malformed(line, f"one of {', '.join(_QUESTIONS)}, a colon, a finer class, a space and a question")
    return _Row((_words(text),), _QUESTIONS.index(label))


def _paraphrase(line: TextLine) -> _Row | None:
    """The class, two ids and two sentences between tabs, under a header."""
    cells = line.text.split("\t")
    if cells[0] == "Quality":
        return None
    if len(cells) != 5 or cells[0] not in ("0", "1"):
        raise _malformed(line, "0 or 1, two ids and two sentences, between tabs")
    return _Row((_words(cells[3]), _words(cells[4])), int(cells[0]))


def _malformed(line: TextLine, form: str) -> SourceError:
    return SourceError(f"{line.location}: {line.text[:40]!r} is not {form}.")


_FILES: dict[str, dict[SplitName | None, dict[str, _Parser]]] = {
    "MR": {None: {"MR/rt-polarity.pos": _of_class(1), "MR/rt-polarity.neg": _of_class(0)}},
    "CR": {None: {"CR/custrev.pos": _of_class(1), "CR/custrev.neg": _of_class(0)}},
    "SUBJ": {None: {"SUBJ/subj.objective": _of_class(1), "SUBJ/subj.subjective": _of_class(0)}},
    "MPQA": {None: {"MPQA/mpqa.pos": _of_class(1), "MPQA/mpqa.neg": _of_class(0)}},
    "SST2": {
        "train": {"SST/binary/sentiment-train": _sentiment},
        "dev": {"SST/binary/sentiment-dev": _sentiment},
        "test": {"SST/binary/sentiment-test": _sentiment},
    },
    "TREC": {"train": {"TREC/train_5500.label": _question}, "test": {"TREC/TREC_10.label": _question}},
    "MRPC": {
        "train": {"MRPC/msr_paraphrase_train.txt": _paraphrase},
        "test": {"MRPC/msr_paraphrase_test.txt": _paraphrase},
    },
}

CLASSIFICATION_SOURCES = {name: DataSource(name, _ADDRESS) for name in _FILES}
"""By the name of the task, in the order in which papers show them."""
