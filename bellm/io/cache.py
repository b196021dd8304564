"""bellm's cache: a folder of what bellm can make again, in it a folder for each kind, and in that an entry for each.

An entry is a file or a folder; when it was last used is the time of its last change.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bellm.errors import BellmWarning, SourceError, warn
from bellm.io.atomic import atomic_directory, make_folder, write_json

Made = TypeVar("Made")

MODELS_KIND, VECTORS_KIND, CHECKS_KIND = "models", "vectors", "checks"
KINDS = {
    MODELS_KIND: "GGUF files, converted",
    VECTORS_KIND: "vectors of evaluated texts",
    CHECKS_KIND: "checks that models passed",
}

LIMIT = 8 * 2**30
"""Most bytes of the entries that `cached_directory` makes of a kind."""

_MOST_FILES = 100
"""Most entries that `keep_json` makes of a kind."""


@dataclass(frozen=True)
class CacheEntry:
    """A file or folder of the cache."""

    kind: str
    path: Path
    num_bytes: int
    last_used: float
    """Seconds since 1970."""


def default_cache_folder() -> Path:
    """`BELLM_CACHE`, or `bellm` where the system keeps caches; a SourceError where nobody says where that is."""
    given = os.environ.get("BELLM_CACHE")
    try:
        return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellm"
    except RuntimeError as error:
        raise SourceError("This user has no home folder for bellm's cache: set BELLM_CACHE to a folder.") from error


def cache_entries(kinds: Sequence[str] = tuple(KINDS)) -> list[CacheEntry]:
    """What the cache holds of these kinds, of each kind the last used first."""
    entries = []
    for kind in kinds:
        folder = default_cache_folder() / kind
        found = [_entry(kind, path) for path in (folder.iterdir() if folder.is_dir() else ())]
        entries += sorted(filter(None, found), key=lambda entry: entry.last_used, reverse=True)
    return entries


def clear_cache(kinds: Sequence[str] = tuple(KINDS)) -> list[CacheEntry]:
    """Remove what the cache holds of these kinds, and nothing else; returns what that was."""
    entries = cache_entries(kinds)
    for entry in entries:
        _remove(entry)
    return entries


def find_cached(kind: str, name: str) -> Path | None:
    """Folder of an entry, used now; None where there is none."""
    folder = default_cache_folder() / kind / name
    if not folder.is_dir():
        return None
    with suppress(OSError):  # Of another user, or on a disk that is read only.
        os.utime(folder)
    return folder


def cached_directory(
    kind: str, name: str, num_bytes: int, make: Callable[[], Made], save: Callable[[Made, Path], None]
) -> Path | None:
    """Make an entry of at most `num_bytes`, for which those have to go that were not used for longest.

    `save` writes what `make` gave to an empty folder. Returns the folder of the entry; None where it is too large for
    the cache, or, with a warning, where the cache cannot be written.
    """
    if num_bytes > LIMIT:
        return None
    folder = default_cache_folder() / kind / name
    try:
        make_folder(folder.parent)
    except SourceError as error:
        _warn_refused(error)
        return None
    made = make()
    try:
        _make_room(kind, num_bytes)
        with atomic_directory(folder) as draft:
            save(made, draft)
    except SourceError as error:
        if not folder.is_dir():  # Else another process was quicker.
            _warn_refused(error)
            return None
    return folder


def kept_json(kind: str, name: str) -> Any:
    """Value of a small entry, used now; None where there is none, or a damaged one."""
    try:
        file = default_cache_folder() / kind / name
        value = json.loads(file.read_bytes())
        os.utime(file)
    except (OSError, ValueError):
        return None
    return value


def keep_json(kind: str, name: str, value: Any) -> None:
    """Keep a small value, for which the entry not used for longest has to go where there are many.

    Where the cache cannot be written nothing is kept, without a word: it is for what is quickly made again.
    """
    with suppress(SourceError, OSError):
        file = default_cache_folder() / kind / name
        make_folder(file.parent)
        for entry in cache_entries([kind])[_MOST_FILES - 1 :]:
            _remove(entry)
        write_json(file, value)


def _warn_refused(error: SourceError) -> None:
    warn(f"{error} What is kept there is made anew each time; BELLM_CACHE names another folder.", BellmWarning)


def _make_room(kind: str, num_bytes: int) -> None:
    """Remove entries until there is room for another."""
    entries = cache_entries([kind])
    while entries and sum(entry.num_bytes for entry in entries) + num_bytes > LIMIT:
        _remove(entries.pop())


def _entry(kind: str, path: Path) -> CacheEntry | None:
    """An entry as it is, or None where another process has just removed it."""
    try:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        return CacheEntry(kind, path, sum(file.stat().st_size for file in files), path.stat().st_mtime)
    except OSError:
        return None


def _remove(entry: CacheEntry) -> None:
    try:
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    except OSError as error:
        raise SourceError(f"{entry.path} cannot be removed: {error.strerror or error}.") from error
