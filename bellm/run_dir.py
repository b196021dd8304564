"""The run directory: its files, its lock, the check that it is of this run's config, and stops that keep it."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bellm.config import changed_settings
from bellm.errors import SourceError
from bellm.io import atomic

RUN, MINED, METRICS, LOCK = "run.json", "mined.jsonl", "metrics.jsonl", ".lock"
CHECKPOINT, BEST, MODEL = "checkpoint.safetensors", "best.safetensors", "model"
"""MODEL is the encoder; the other files of a run directory may go once it is there."""

_OWN = {RUN, MINED, METRICS, CHECKPOINT, BEST, MODEL, "tensorboard"}


class Interrupted(KeyboardInterrupt):
    """Training stopped on request; the same call resumes it."""


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Lock the folder against a second run, and leave it as it was if nothing was learned in it.

    The system releases the lock however this run ends.
    """
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / LOCK).acquire(timeout=0)
        atomic.remove_drafts(run_dir)
        for draft in run_dir.glob(f".{MODEL}-*"):
            shutil.rmtree(draft)
    except Timeout as error:
        raise SourceError(f"Another run is training in {run_dir}.") from error
    except OSError as error:
        raise SourceError(f"{run_dir} cannot be written: {error.strerror or error}.") from error
    with lock:
        try:
            yield
        finally:
            kept = [run_dir / name for name in _OWN - {RUN}]
            if not any(path.exists() and path.stat().st_size for path in kept):
                for name in (RUN, METRICS, LOCK):
                    (run_dir / name).unlink(missing_ok=True)
                if is_new:
                    with suppress(OSError):  # Somebody has put something there meanwhile.
                        run_dir.rmdir()


def refuse_foreign_folder(run_dir: Path) -> None:
    """Make sure that a folder is of a run, or new, or holds nothing but hidden files."""
    if run_dir.is_dir() and not (run_dir / RUN).exists():
        names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
        if foreign := sorted(names - _OWN):
            raise SourceError(f"{run_dir} is no run directory: it holds {foreign[0]!r}. Choose another folder.")


def check_config(run_dir: Path, config: Mapping[str, Any], *, begin: bool = True) -> None:
    """Make sure that a folder is of this run, or holds nothing that another run kept, and begin it unless told not to.

    The config is what decides the weights, or a part of it.
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
    """Make sure that what a folder is known to hold agrees with the wanted config, or name what is different."""
    if changed := changed_settings({name: known.get(name) for name in wanted}, wanted):
        other = ", ".join(dict.fromkeys(name.partition(".")[0] for name in changed))
        name, (then, now) = next(iter(changed.items()))
        raise SourceError(
            f"{run_dir} holds a {what} with other {other} ({name} was {json.dumps(then)}, is "
            f"{json.dumps(now)}). Choose another folder, or remove it."
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


@contextmanager
def resumable_errors(run_dir: Path) -> Iterator[None]:
    """Turn a Ctrl-C outside the steps, or a second one, into an `Interrupted` that names the run directory."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"what {run_dir} holds is kept; the same command resumes.") from None


@contextmanager
def graceful_stop() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list that is read between steps; a second one of a kind stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
