"""Values in a file by their key, line by line, so that what was computed before a stop is not computed again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bellm.errors import SourceError
from bellm.io.atomic import make_folder

_PIECE = 64
"""Values that are computed together: as many are lost by a stop."""


class KeptValues:
    """JSON values by key; a line that a stop cut short, or somebody spoiled, counts as none."""

    def __init__(self, path: Path, is_value: Callable[[Any], bool]) -> None:
        """Read what is there; the file is made when something is kept.

        Args:
            path: Of the file.
            is_value: Says whether a value is one of those that are kept.

        Raises:
            SourceError: The file cannot be read.
        """
        self._path = path
        self._known: dict[str, Any] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}. Remove it, to begin anew.") from error
        self._is_cut = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
                key, value = str(row["key"]), row["value"]
            except (ValueError, KeyError, TypeError):
                continue
            if is_value(value):
                self._known[key] = value

    def values(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[int]], Sequence[Any]],
        done: Callable[[int], object] = lambda _: None,
    ) -> list[Any]:
        """Values of keys in their order; those that are missing are computed, some at a time, and kept.

        Args:
            keys: Of what is asked for; equal ones are computed once.
            compute: Gives the values of some of the keys, by their numbers.
            done: Called with the number of further different keys whose values are there.

        Raises:
            SourceError: The disk refuses.
        """
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        missing = sorted(number for key, number in first.items() if key not in self._known)
        done(len(first) - len(missing))
        for start in range(0, len(missing), _PIECE):
            piece = missing[start : start + _PIECE]
            self._keep({keys[number]: value for number, value in zip(piece, compute(piece), strict=True)})
            done(len(piece))
        return [self._known[key] for key in keys]

    def _keep(self, rows: dict[str, Any]) -> None:
        lines = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in rows.items())
        make_folder(self._path.parent)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._is_cut + lines)
        except OSError as error:
            raise SourceError(f"{self._path} cannot be written: {error.strerror or error}.") from error
        self._is_cut = False
        self._known |= rows
