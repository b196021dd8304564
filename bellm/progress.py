"""Progress bars of the library, on tqdm (which works in notebooks too)."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet


def can_show_bars() -> bool:
    """Whether somebody watches: standard error is a terminal, or the process the kernel of a notebook."""
    return sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules


@contextmanager
def progress_bar(total: int, *, unit: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """Give a function that counts `total` steps of a `unit` (singular) as done, on a progress bar if one is shown.

    Without a bar nothing of tqdm is used: its lock is a semaphore shared with every fork of the process, which a fork
    that is killed never gives back, and its monitor is a thread, which a fork does not have.
    """
    if not shown:
        yield lambda _: None
        return
    with _bar_class()(total=total, unit=unit, leave=False, disable=False) as bar:
        yield bar.update


@functools.cache
def _bar_class() -> Any:
    """A tqdm without a monitor thread, whose lock belongs to one process."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc] # tqdm is untyped
        monitor_interval = 0

    Bar._instances = WeakSet()
    Bar.set_lock(threading.RLock())
    if hasattr(os, "register_at_fork"):
        # Another thread of the parent may have held the lock, and does not exist in the child.
        os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))
    return Bar
