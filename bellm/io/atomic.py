"""Write files and folders atomically: a draft that is renamed once it is complete, across kills and power cuts."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from bellm.errors import SourceError

DRAFT = ".part"
"""Suffix of a file that is being written."""

_RETRY = " Whatever was written before is kept: mend this and give the same command again."


@contextmanager
def reserve_file(path: Path, advice: str = "") -> Iterator[Callable[[], AbstractContextManager[BinaryIO]]]:
    """Create the draft of `path` now, so that a folder that takes no files shows, and fill it once there is content.

    Gives a function that opens the draft, and renames it to `path` when its block has succeeded and its bytes are on
    the disk. Nothing of the draft is left behind. Where the disk refuses, `advice` ends the message.
    """
    draft = path.with_name(f".{path.name}-{os.getpid()}{DRAFT}")

    @contextmanager
    def fill() -> Iterator[BinaryIO]:
        with _disk_errors(path, advice):
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # Makes the rename last through a power cut.
            finally:
                os.close(folder)

    try:
        with _disk_errors(path, advice):
            draft.touch()
        yield fill
    finally:
        with _disk_errors(path, advice):
            draft.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` once the block has succeeded and its bytes are on the disk."""
    with reserve_file(path, _RETRY) as fill, fill() as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file; see `atomic_write`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there."""
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` once the block has succeeded."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SourceError(f"{path} exists already and is not empty. Choose another name or remove it.")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield draft
            draft.chmod(0o755)
            os.replace(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left half-written; only its successor, who holds the lock, may do so."""
    for path in folder.glob(f".*{DRAFT}"):
        path.unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path, advice: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.{advice}") from error
