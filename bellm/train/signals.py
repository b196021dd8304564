"""Stopping in good order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """Training stopped when asked; the same call goes on."""


@contextmanager
def resumable_errors(output: Path) -> Iterator[None]:
    """Say of a Ctrl-C outside the steps, or a second one, that not everything is lost."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"what {output} holds is kept; the same command goes on.") from None


class StopRequest:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.stop = False

    def __bool__(self) -> bool:
        return self.stop


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Turn Ctrl-C and a polite kill into a question that is asked between steps; a second one stops at once."""
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        asked.stop = True
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
