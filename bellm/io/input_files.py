"""Which files a user means by files, folders and patterns, and a look at their first rows."""

import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from bellm.errors import SourceError
from bellm.io.formats import FORMATS, text_problem
from bellm.io.rows import STDIN, TextColumns, TextFile, file_suffix, require_suffix

_HEAD = 100  # Rows of a file that are looked at before a model is loaded.


def expand_inputs(inputs: Sequence[str], skip: Path | None = None) -> list[str]:
    """Name the files that are meant, in order and each once, with forward slashes.

    A folder stands for all files under it that bellm can read and a pattern for what it matches, both sorted; `-` is
    standard input. Hidden files of a folder are left out, and so is everything in `skip`.

    Raises:
        SourceError: An input is not there, matches nothing, or has an unknown suffix.
    """
    files: dict[str, str] = {}
    skipped = skip and skip.resolve()
    for entry in inputs:
        for path in [STDIN] if entry == STDIN else _paths(entry):
            real = path if path == STDIN else os.path.realpath(path)
            if skipped is None or not Path(real).is_relative_to(skipped):
                files.setdefault(real, path if path == STDIN else _name(path))
    return list(files.values())


def check_columns(files: Sequence[str], columns: TextColumns) -> None:
    """Look at the first rows of every file, before a model is loaded; standard input is left for later.

    Raises:
        SourceError: A file cannot be opened, has no such column, or none of the rows can be read.
    """
    reasons = []
    for file in files:
        if file != STDIN:
            head = list(itertools.islice(TextFile(file, columns).texts(), _HEAD))
            if any(row.text is not None for row in head):
                reasons.append("")
            reasons += [f"{file}, {row.reason}" for row in head[:1] if row.text is None]
    if reasons and all(reasons):
        raise SourceError(f"No row can be read. {reasons[0]}")


def _paths(entry: str) -> list[str]:
    if os.path.isdir(entry):
        return _under(entry)
    if os.path.exists(entry) or not glob.has_magic(entry):
        require_suffix(entry)
        return [entry]
    found = sorted(glob.glob(entry, recursive=True))
    if not found:
        raise SourceError(f"{entry} matches no file.")
    return [path for match in found for path in _paths(match)]


def _under(folder: str) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        known = (name for name in names if file_suffix(name) in FORMATS and not name.startswith("."))
        found += [os.path.join(parent, name) for name in known]
    if not found:
        raise SourceError(f"{folder} holds no file that bellm can read: none ends in {', '.join(FORMATS)}.")
    return sorted(found)


def _name(path: str) -> str:
    name = os.path.normpath(path).replace(os.sep, "/")
    if text_problem(name):
        raise SourceError(f"The name of {name!r} is not UTF-8, and ids are made of it. Rename the file.")
    return name
