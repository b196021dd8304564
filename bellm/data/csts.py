"""Conditional similarity, C-STS: how alike two sentences are in one respect.

Deshpande et al. 2023, "C-STS: Conditional Semantic Textual Similarity" (arXiv 2305.15093). The set is given on request
only (github.com/princeton-nlp/c-sts), so that a user reads a copy of their own; the labels of its test part are hidden.

Shapes: N pairs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellm.data import sources
from bellm.data.sources import DataSource
from bellm.errors import SourceError
from bellm.io.rows import RowFile, file_suffix

CSTS_SOURCES = sources.by_name(DataSource("C-STS", "https://github.com/princeton-nlp/c-sts", hub=""))
"""By the name of the set."""

_FILE = "csts/csts_validation.csv"
COLUMNS = ("sentence1", "sentence2", "condition", "label")


@dataclass(frozen=True)
class CSTSPairs:
    """Pairs of sentences, and how alike people found them under a condition."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    conditions: tuple[str, ...]
    gold_N: NDArray[np.float64]
    """1, dissimilar, to 5, the same."""

    def texts(self) -> tuple[list[str], list[str]]:
        """Left and right texts to embed, each with the condition."""
        left = [join_condition(*pair) for pair in zip(self.left, self.conditions, strict=True)]
        right = [join_condition(*pair) for pair in zip(self.right, self.conditions, strict=True)]
        return left, right


def read_csts(name: str = "C-STS", folder: Path | None = None) -> CSTSPairs:
    """Read the validation part from a folder that holds `csts/csts_validation.csv`; see `read_csts_file`."""
    source = sources.find_source(name, CSTS_SOURCES, "conditional set of pairs")
    return read_csts_file(sources.require_file(sources.require_folder(folder, source), _FILE, source))


def read_csts_file(file: Path) -> CSTSPairs:
    """Read a CSV file with the columns sentence1, sentence2, condition and label (1 to 5).

    Raises:
        SourceError: The file cannot be read, a column is missing, or a row has no label, as in the hidden test part.
    """
    if file_suffix(str(file)) not in (".csv", ".tsv"):
        raise SourceError(f"{file} is no table. C-STS comes as csts_train.csv and csts_validation.csv.")
    rows = list(_rows(file))
    if not rows:
        raise SourceError(f"{file} holds no pairs.")
    left, right, conditions, golds = zip(*rows, strict=True)
    return CSTSPairs(left, right, conditions, np.array(golds))


def join_condition(sentence: str, condition: str) -> str:
    """One text of a sentence and its condition, for encoders that take one text.

    The paper's bi-encoder gives its tokenizer the sentence and then the condition (`get_preprocessing_function` in
    utils/sts/dataset_preprocessing.py of its code), with the separator of a masked language model between them.
    Decoders have none; a space stands there.

    >>> join_condition("Two dogs run on a beach.", "The number of animals.")
    'Two dogs run on a beach. The number of animals.'
    """
    return f"{sentence.strip()} {condition.strip()}"


def _rows(file: Path) -> Iterator[tuple[str, str, str, float]]:
    for row in RowFile(str(file)).rows(_select, strict=True):
        left, right, condition, label = (row.cells[column] for column in COLUMNS)
        yield left, right, condition, _label(f"{file}, {row.place}", label)


def _select(header: Sequence[str]) -> Sequence[str]:
    if missing := [column for column in COLUMNS if column not in header]:
        raise SourceError(f"no column {missing[0]}. A C-STS file has {', '.join(COLUMNS)}.")
    return COLUMNS


def _label(place: str, cell: str) -> float:
    try:
        label = float(cell or "-1")
    except ValueError:
        label = math.nan
    if label == -1:
        raise SourceError(f"{place}: no label. Labels of the test part are hidden: take csts_validation.csv.")
    if not 1 <= label <= 5:
        raise SourceError(f"{place}: {cell!r} is no label from 1 to 5.")
    return label
