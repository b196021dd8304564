"""Examples by their number, small in memory.

Shapes: R rows, T texts of all rows.
"""

import hashlib
import json
import mmap
import tempfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bellm.errors import SourceError
from bellm.train.examples import Example, text_key

_HEAD = 100  # Rows after which a source without a good one is given up.
_KEPT = 100  # Rejections that are kept; the others are counted.


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is left out."""

    place: str
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
        """Take rows in.

        Raises:
            SourceError: There are no rows; or the first hundred, or all, are rejections.
        """
        self.name = name
        self.rejections: list[Rejection] = []
        """The first hundred rows that were left out."""
        self.num_rejected = 0
        self._ends_R = array("q")
        self._keys_T = array("q")
        self._key_ends_R = array("q")
        with tempfile.TemporaryFile() as file:
            for row in rows:
                self._add(row, file) if isinstance(row, Example) else self._reject(row)
            if not len(self):
                self._give_up()
            file.flush()
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.digest = hashlib.sha256(self._bytes).hexdigest()
        """Of the examples in their order: the same only if they are the same."""

    def __len__(self) -> int:
        return len(self._ends_R)

    def __getitem__(self, row: int) -> Example:
        end = self._ends_R[row]  # An IndexError here also ends a loop over the rows.
        start = self._ends_R[row - 1] if row % len(self) else 0
        anchor, positives, negatives, score, symmetric = json.loads(self._bytes[start:end])
        return Example(anchor, tuple(positives), tuple(negatives), score, symmetric)

    @property
    def rated(self) -> bool:
        """Whether rows have scores; of what `read` gives, all have or none."""
        return self[0].score is not None

    @property
    def keys_T(self) -> NDArray[np.int64]:
        """The `key` of every text, row after row."""
        return np.array(self._keys_T, dtype=np.int64)

    @property
    def key_ends_R(self) -> NDArray[np.int64]:
        """Where each row's keys end."""
        return np.array(self._key_ends_R, dtype=np.int64)

    def _add(self, row: Example, file: IO[bytes]) -> None:
        fields = [row.anchor, row.positives, row.negatives, row.score, row.symmetric]
        file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
        self._ends_R.append(file.tell())
        self._keys_T.extend(map(text_key, row.texts))
        self._key_ends_R.append(len(self._keys_T))

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
        raise SourceError(f"No row of {self.name} can be read. {first.place}: {first.reason}")
