"""Files that are there whole or not at all, also after a kill or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bellm.errors import SourceError

DRAFT = ".part"
"""Suffix of a file that is being written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` once the block has succeeded and its bytes are on the disk.

    Raises:
        SourceError: The disk refuses; nothing is left behind.
    """
    part = path.with_name(f".{path.name}-{os.getpid()}{DRAFT}")
    try:
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be written: {error.strerror or error}. Whatever was written before is kept: mend this and "
            "give the same command again."
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole; see `draft`."""
    with atomic_write(path) as file:
        file.write(data)


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half-written; only its successor, who holds the lock, may do so."""
    for path in folder.glob(f".*{DRAFT}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
