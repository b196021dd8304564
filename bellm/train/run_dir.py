"""The folder of a run: what is in it, and whose it is."""

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bellm.errors import SourceError
from bellm.io import atomic

RUN, METRICS, CHECKPOINT, BEST, MODEL = (
    "run.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "best.safetensors",
    "model",
)
"""What a folder of training holds; MODEL is the encoder, and the rest may go once it is there."""


class MetricsLog:
    """One JSON line for each step; lines of steps that are taken again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
        atomic.write_bytes(path, b"".join(lines))

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a step's line.

        Raises:
            SourceError: The disk refuses.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SourceError(
                f"{self._path} cannot be written: {error.strerror or error}. The last checkpoint is kept: mend this "
                "and give the same command again."
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


def check_config(output: Path, described: Mapping[str, Any]) -> None:
    """Begin a folder, also one in which another run kept nothing, or make sure that it is of this run.

    Raises:
        SourceError: It is of another.
    """
    path, plain = output / RUN, json.loads(json.dumps(described))
    known, kept = _known(path), [name for name in (MODEL, CHECKPOINT) if (output / name).exists()]
    if kept and known is None:
        raise SourceError(f"{output} holds {kept[0]!r} and no {RUN}: it is of no run. Choose another folder.")
    if not kept:
        (output / BEST).unlink(missing_ok=True)
        atomic.write_bytes(path, (json.dumps(plain, indent=1) + "\n").encode())
    else:
        refuse_other_config(output, "run", known, plain)


def refuse_other_config(output: Path, what: str, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Make sure that what a folder is known to hold is what is wanted there.

    Raises:
        SourceError: Something is different.
    """
    if other := [name for name in wanted if known.get(name) != wanted[name]]:
        name = other[0]
        raise SourceError(
            f"{output} holds a {what} with other {', '.join(other)} ({name} was {_short(known.get(name))}, is "
            f"{_short(wanted[name])}). Choose another folder, or remove it."
        )


def _known(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if {"data", "steps"} <= set(known):
            return known
        reason = "it is of no run"
    except (OSError, TypeError, ValueError) as error:
        reason = str(error)
    raise SourceError(f"{path} cannot be used: {reason}. Choose another folder.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def lock_run_dir(output: Path) -> AbstractContextManager[object]:
    """Keep a second run out; the system lets go of the lock whatever ends this one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock").acquire(timeout=0)
        atomic.remove_drafts(output)
        for draft in output.glob(f".{MODEL}-*"):
            shutil.rmtree(draft)
        return lock
    except Timeout as error:
        raise SourceError(f"Another run is training in {output}.") from error
    except OSError as error:
        raise SourceError(f"{output} cannot be written: {error.strerror or error}.") from error
