"""Vectors on disk, by encoder and text: what was embedded once is not embedded again.

One SQLite file for each encoder, named by what decides its vectors. The file also holds the encoder's fingerprint, and
begins anew when another encoder comes by the same name. Rows are committed part by part, so that an interrupted
evaluation goes on where it stopped.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bellm import saving
from bellm.errors import SourceError
from bellm.types import Vectors

_PART = 2048
"""Texts between two commits, in sorted order: those that begin alike are embedded together."""

_FETCH = 500
"""Keys in one query; SQLite takes some 30 000."""


def default_cache_folder() -> Path:
    """`BELLM_CACHE`, or `bellm` where the system keeps caches."""
    given = os.environ.get("BELLM_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellm"


class VectorCache:
    """The vectors of one encoder."""

    def __init__(self, place: Path, name: str, fingerprint: Vectors, tolerance: float) -> None:
        """Open the encoder's file, or begin it.

        Args:
            place: Folder of all encoders' files.
            name: What decides the vectors, in any words.
            fingerprint: Vectors of fixed texts.
            tolerance: Largest relative distance of a fingerprint that rounding explains.

        Raises:
            SourceError: The folder cannot be written.
        """
        self._file = place / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.sqlite"
        self._width = fingerprint.shape[1]
        try:
            place.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
                self._agree(database, fingerprint, tolerance)
        except OSError as error:
            raise SourceError(f"{place} cannot be written: {error.strerror or error}. Choose --cache.") from error

    def vectors(
        self,
        texts: Sequence[str],
        view: str,
        embed: Callable[[Sequence[str]], Vectors],
        done: Callable[[int], None] = lambda _: None,
    ) -> Vectors:
        """Vectors of texts in their order, float32 (texts, width); those that are not here are embedded and kept.

        Args:
            texts: Any texts; equal ones are embedded once.
            view: What else decides a text's vector: the template it is put into, say.
            embed: Gives vectors of texts.
            done: Called with how many different texts are there, after each part.
        """
        keys = {text: hashlib.sha256(f"{len(view)} {view}{text}".encode()).digest() for text in dict.fromkeys(texts)}
        with self._open() as database:
            known = dict(_fetch(database, list(keys.values())))
            missing = sorted(text for text, key in keys.items() if key not in known)
            done(len(known))
            for start in range(0, len(missing), _PART):
                part = missing[start : start + _PART]
                rows = [(keys[text], row.tobytes()) for text, row in zip(part, embed(part), strict=True)]
                with database:
                    database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                known.update(rows)
                done(len(part))
        found = b"".join(known[keys[text]] for text in texts)
        return np.frombuffer(found, dtype=np.float32).reshape(len(texts), self._width)

    def _agree(self, database: sqlite3.Connection, fingerprint: Vectors, tolerance: float) -> None:
        rows = [b"fingerprint %d" % number for number in range(len(fingerprint))]
        found = dict(_fetch(database, rows))
        if set(found) == set(rows):
            kept = np.stack([np.frombuffer(found[row], dtype=np.float32) for row in rows])
            if kept.shape == fingerprint.shape and saving.fingerprint_distance(kept, fingerprint) <= tolerance:
                return
        with database:
            database.execute("DELETE FROM vectors")
            database.executemany(
                "INSERT INTO vectors VALUES (?, ?)",
                [(row, vector.tobytes()) for row, vector in zip(rows, fingerprint, strict=True)],
            )

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
