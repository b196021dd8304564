"""The run directory: its files, its lock, and the check that it belongs to this run's config."""

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bellm.errors import SourceError
from bellm.io import atomic

RUN, MINED, METRICS = "run.json", "mined.jsonl", "metrics.jsonl"
CHECKPOINT, BEST, MODEL = "checkpoint.safetensors", "best.safetensors", "model"
"""MODEL is the encoder; the other files of a run directory may go once it is there."""


def check_config(run_dir: Path, config: Mapping[str, Any], *, begin: bool = True) -> None:
    """Make sure that a folder is of this run, or holds nothing that another run kept, and begin it.

    Args:
        run_dir: The folder.
        config: What decides the weights, or a part of it.
        begin: Whether a folder without a model or checkpoint gets this config.

    Raises:
        SourceError: It is of another run.
    """
    path, plain = run_dir / RUN, json.loads(json.dumps(config))
    known, kept = _read_config(path), [name for name in (MODEL, CHECKPOINT) if (run_dir / name).exists()]
    if kept and known is None:
        raise SourceError(f"{run_dir} holds {kept[0]!r} and no {RUN}: it is of no run. Choose another folder.")
    if kept:
        refuse_other_config(run_dir, "run", known, plain)
    elif begin:
        (run_dir / BEST).unlink(missing_ok=True)
        atomic.write_bytes(path, (json.dumps(plain, indent=1) + "\n").encode())


def refuse_other_config(run_dir: Path, what: str, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Make sure that a folder's known config agrees with the wanted one.

    Raises:
        SourceError: Something is different.
    """
    if other := [name for name in wanted if known.get(name) != wanted[name]]:
        name = other[0]
        raise SourceError(
            f"{run_dir} holds a {what} with other {', '.join(other)} ({name} was {_short(known.get(name))}, is "
            f"{_short(wanted[name])}). Choose another folder, or remove it."
        )


def _read_config(path: Path) -> Any:
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


def lock_run_dir(run_dir: Path) -> AbstractContextManager[object]:
    """Lock the folder against a second run; the system releases the lock however this one ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / ".lock").acquire(timeout=0)
        atomic.remove_drafts(run_dir)
        for draft in run_dir.glob(f".{MODEL}-*"):
            shutil.rmtree(draft)
        return lock
    except Timeout as error:
        raise SourceError(f"Another run is training in {run_dir}.") from error
    except OSError as error:
        raise SourceError(f"{run_dir} cannot be written: {error.strerror or error}.") from error
