"""Find published data sets: in a folder, or on the Hub where none is named.

The folder is the one that a user gives, else the one in `BELLM_DATA`. A folder that lacks a set is an error and never
makes bellm turn to the Hub: scores of two copies of a set should not be mixed unseen.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bellm.errors import BellmError, SourceError
from bellm.io.rows import RowFile

VARIABLE = "BELLM_DATA"


@dataclass(frozen=True)
class DataSource:
    """Where a data set is published: the address of its files, and its copy on the Hub."""

    name: str
    address: str
    """Of the original files."""
    hub: str = ""
    """Repository of a copy on the Hub; empty where there is none."""
    revision: str = "main"
    """Of that copy."""


class TextLine(NamedTuple):
    """A line of a file, and where it is, in words."""

    location: str
    text: str


def find_source(name: str, known: Mapping[str, DataSource], kind: str) -> DataSource:
    """The source of that name; `kind` is what such sources are called."""
    if name not in known:
        raise BellmError(f"There is no {kind} {name!r}. Choose from {', '.join(known)}.")
    return known[name]


def data_folder(folder: Path | None, source: DataSource) -> Path | None:
    """The folder that a set is read from, or None for its copy on the Hub."""
    if folder is None and not os.environ.get(VARIABLE):
        if source.hub:
            return None
        need = f"{source.name} needs a folder of data sets (--data, {VARIABLE}): it is not on the Hub"
        raise SourceError(f"{need}. Get it from {source.address}.")
    path = Path(os.environ[VARIABLE]) if folder is None else folder
    if not path.is_dir():
        raise SourceError(f"{path} ({VARIABLE if folder is None else '--data'}) is not a folder of data sets.")
    return path


def require_file(folder: Path, path: str, source: DataSource) -> Path:
    """The file of a set in a folder, which must be there."""
    file = folder / path
    if not file.is_file():
        hub = f", or name no folder (--data, {VARIABLE}): {source.hub} then comes from the Hub" if source.hub else ""
        raise SourceError(f"{source.name} is not in {folder}: no file {path}. Get it from {source.address}{hub}.")
    return file


def read_lines(file: Path, encoding: str = "utf-8") -> Iterator[TextLine]:
    """Read lines without their ends, which are as in `RowFile.lines`; each must be in the encoding."""
    for row in RowFile(str(file)).lines(encoding, strict=True):
        yield TextLine(f"{file}, {row.location}", row.cells)


def fetch_from_hub(source: DataSource, *, split: str, config: str | None = None) -> Any:
    """A split of a set from the Hub, as a `datasets.Dataset`."""
    advice = f"Give a folder that has it (--data, {VARIABLE}); the original is at {source.address}."
    try:
        from datasets import load_dataset
    except ImportError as error:
        package = "the package datasets: pip install 'bellm[evaluate]'"
        raise SourceError(f"{source.name} comes from the Hub through {package}. {advice}") from error
    from bellm.io.hub import refuse_missing_data

    try:
        refuse_missing_data(source.hub, source.revision)
        return load_dataset(source.hub, config, split=split, revision=source.revision)
    except (OSError, ValueError) as error:  # No connection, no such repository, no such split.
        reason = str(error).partition("\n")[0]
        location = f"{source.hub}, {split}"
        raise SourceError(f"{source.name} cannot be fetched from the Hub ({location}): {reason} {advice}") from error
