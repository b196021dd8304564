"""Cache of vectors on disk, by model and text.

One SQLite file for each model, named by what decides its vectors. The file also holds the model's fingerprint, and is
emptied when another model comes by the same name. Rows are committed part by part, so that an interrupted evaluation
resumes where it stopped.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bellm.errors import SourceError
from bellm.io.cache import VECTORS_KIND
from bellm.tensors.similarity import relative_distance
from bellm.types import Vectors

_PART = 2048  # Texts between two commits, in sorted order: those that begin alike are embedded together.
_FETCH = 500  # Keys in one query; SQLite takes some 30 000.
_FINGERPRINT = b"fingerprint"  # Its key; those of texts are digests.


class VectorCache:
    """The vectors of one model."""

    def __init__(self, folder: Path, name: str, fingerprint: Vectors, tolerance: float) -> None:
        """Open the model's file, or make it.

        Args:
            folder: A cache, as of `bellm.io.cache`.
            name: What decides the vectors, in any words.
            fingerprint: Vectors of fixed texts, shape (texts, width).
            tolerance: Largest relative distance between fingerprints that rounding explains.
        """
        self._file = folder / VECTORS_KIND / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.sqlite"
        self._width = fingerprint.shape[1]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
                self._check_fingerprint(database, fingerprint, tolerance)
        except OSError as error:
            raise SourceError(f"{folder} cannot be written: {error.strerror or error}. Choose --cache.") from error

    def vectors(
        self,
        texts: Sequence[str],
        view: str,
        embed: Callable[[Sequence[str]], Vectors],
        done: Callable[[int], None] = lambda _: None,
    ) -> Vectors:
        """Look up texts in their order, float32 (texts, width); those that are missing are embedded and kept.

        Args:
            texts: Any texts; equal ones are embedded once.
            view: What else decides a text's vector, such as its input type.
            embed: Embeds texts.
            done: Called with the number of further distinct texts whose vectors are there.
        """
        key_of = {text: hashlib.sha256(f"{len(view)} {view}{text}".encode()).digest() for text in dict.fromkeys(texts)}
        row_of = {key: row for row, key in enumerate(key_of.values())}
        vectors_UD = np.empty((len(key_of), self._width), dtype=np.float32)  # Of the distinct texts.
        known = set()
        with self._open() as database:
            for key, vector in _fetch(database, list(row_of)):
                vectors_UD[row_of[key]] = np.frombuffer(vector, dtype=np.float32)
                known.add(key)
            missing = sorted(text for text, key in key_of.items() if key not in known)
            done(len(known))
            for start in range(0, len(missing), _PART):
                part = missing[start : start + _PART]
                made, keys = embed(part), [key_of[text] for text in part]
                rows = ((key, row.tobytes()) for key, row in zip(keys, made, strict=True))
                with database:
                    database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                vectors_UD[[row_of[key] for key in keys]] = made
                done(len(part))
        return vectors_UD if len(key_of) == len(texts) else vectors_UD[[row_of[key_of[text]] for text in texts]]

    def _check_fingerprint(self, database: sqlite3.Connection, fingerprint: Vectors, tolerance: float) -> None:
        """Empty the file if it holds vectors of another model."""
        for _, kept in _fetch(database, [_FINGERPRINT]):
            if len(kept) == fingerprint.nbytes:
                kept_ND = np.frombuffer(bytearray(kept), dtype=np.float32).reshape(fingerprint.shape)
                if relative_distance(kept_ND, fingerprint) <= tolerance:
                    return
        with database:
            database.execute("DELETE FROM vectors")
            database.execute("INSERT INTO vectors VALUES (?, ?)", (_FINGERPRINT, fingerprint.tobytes()))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._file, timeout=60)
        try:
            yield database
        except sqlite3.Error as error:
            raise SourceError(f"{self._file} cannot be used: {error}. Remove it, or choose another --cache.") from error
        finally:
            database.close()


def _fetch(database: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(keys), _FETCH):
        part = keys[start : start + _FETCH]
        marks = ", ".join("?" * len(part))
        yield from database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)
