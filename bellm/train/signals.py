"""Graceful stop: Ctrl-C and SIGTERM end training at the next step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """Training stopped on request; the same call resumes it."""


@contextmanager
def resumable_errors(output: Path) -> Iterator[None]:
    """Turn a Ctrl-C outside the steps, or a second one, into an `Interrupted` that names the run directory."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"what {output} holds is kept; the same command goes on.") from None


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
