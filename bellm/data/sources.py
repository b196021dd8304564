"""Where data sets come from: a folder, or the Hub where none is named.

The folder is the one that a user gives, else the one in `BELLM_DATA`. A folder that lacks a set is an error and never
makes bellm turn to the Hub: scores of two copies of a set should not be mixed unseen.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bellm.errors import SourceError

VARIABLE = "BELLM_DATA"


@dataclass(frozen=True)
class DataSource:
    """Where a user gets a set."""

    name: str
    address: str
    """Of the original files."""
    hub: str
    """Repository of a copy on the Hub; empty where there is none."""
    revision: str = "main"
    """Of that copy."""


class TextLine(NamedTuple):
    """A line of a file, and where it is, in words."""

    place: str
    text: str


def data_folder(folder: Path | None) -> Path | None:
    """The folder that sets are read from, or None for the Hub.

    Raises:
        SourceError: A folder is named, and is not there.
    """
    if folder is None and not os.environ.get(VARIABLE):
        return None
    found = Path(os.environ[VARIABLE]) if folder is None else folder
    if not found.is_dir():
        raise SourceError(f"{found} ({VARIABLE if folder is None else '--data'}) is not a folder of data sets.")
    return found


def require_file(folder: Path, path: str, source: DataSource) -> Path:
    """The file of a set in a folder.

    Raises:
        SourceError: It is not there.
    """
    file = folder / path
    if not file.is_file():
        hub = f", or name no folder (--data, {VARIABLE}): {source.hub} then comes from the Hub" if source.hub else ""
        raise SourceError(f"{source.name} is not in {folder}: no file {path}. Get it from {source.address}{hub}.")
    return file


def read_lines(file: Path, encoding: str = "utf-8") -> Iterator[TextLine]:
    r"""Lines without their ends. Only \n and \r\n end a line: sentences may hold every other separator.

    Raises:
        SourceError: The file cannot be read, or a line is in another encoding.
    """
    try:
        # Bytes, because str.splitlines would split sentences at \x85 or U+2028.
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.removesuffix(b"\n").removesuffix(b"\r")
                yield TextLine(f"{file}, line {number}", text.decode(encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise SourceError(f"{file}, line {number}: byte 0x{byte:02x} is not {encoding}.") from error
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}.") from error


def fetch_from_hub(source: DataSource, *, split: str, config: str | None = None) -> Any:
    """A split of a set from the Hub, as a `datasets.Dataset`.

    Raises:
        SourceError: The set is not on the Hub, cannot be fetched, or datasets is not installed.
    """
    batching_mode = f"Give a folder that has it (--data, {VARIABLE}); the original is at {source.address}."
    if not source.hub:
        raise SourceError(f"{source.name} is not on the Hub. {batching_mode}")
    try:
        from datasets import load_dataset
    except ImportError as error:
        package = "the package datasets: pip install 'bellm[evaluate]'"
        raise SourceError(f"{source.name} comes from the Hub through {package}. {batching_mode}") from error
    try:
        return load_dataset(source.hub, config, split=split, revision=source.revision)
    except (OSError, ValueError) as error:  # No connection, no such repository, no such split.
        reason = str(error).partition("\n")[0]
        raise SourceError(
            f"{source.name} cannot be fetched from the Hub ({source.hub}, {split}): {reason} {batching_mode}"
        ) from error
