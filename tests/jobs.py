"""Inside a process that loads once and forks a job whenever it is asked to: no job can harm the next by its death.

A fork has only the thread that forked: a lock that another thread held is never let go of, and a lock that processes
share is lost with a job that is killed while it holds it. So the parent runs one thread, and there is no shared lock.
"""

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

LASTING = ("replace", "fsync")
"""What makes a file last."""


def prepare() -> None:
    """To be called before anything is loaded."""
    tqdm.set_lock(threading.RLock())  # Otherwise a semaphore that all forks share.
    tqdm.monitor_interval = 0  # Otherwise a thread.


def wishes() -> Iterator[dict[str, Any]]:
    """What the test asks for, from now on."""
    tell(os.getpid())
    return map(json.loads, sys.stdin)


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def fork() -> int:
    """A fork of a process that has one thread, but for those of memory allocators, which know of forks."""
    assert threading.active_count() == 1, threading.enumerate()
    return os.fork()


def how_it_ended(job: int) -> int:
    """The exit code of a job, or less the signal that ended it."""
    _, status = os.waitpid(job, 0)
    return os.waitstatus_to_exitcode(status)


def answer(job: Callable[[Path], object]) -> None:
    """Fork a job for every wish, struck where there is a blow, and tell how it ended; jobs write to `out`."""
    for wish in wishes():
        child = fork()
        if not child:
            if wish["blow"]:
                strike(wish["blow"])
            job(Path(wish["out"]))
            os._exit(0)
        tell(how_it_ended(child))


def strike(blow: Mapping[str, Any]) -> None:
    """Send a signal when the work has come to some point, so that no test needs to hit it in time.

    `step` is the point: 1 is before the first call that makes a file last, 2 after that call, and so on; 0 is now.
    With `after` the process is ended so many seconds later. Otherwise `signal` is sent, to the process `to`.
    """
    left = itertools.count(blow["step"], -1)

    def go_on() -> None:
        if next(left) != 1:
            return
        if blow.get("after") is not None:
            # SIGALRM is death on the spot, as SIGKILL is, and no other process has to be awake for it.
            signal.setitimer(signal.ITIMER_REAL, max(blow["after"], 1e-6))
        else:
            os.kill(blow.get("to") or os.getpid(), blow.get("signal", signal.SIGKILL))

    def striking(call: Any) -> Any:
        def stepping(*arguments: Any) -> Any:
            go_on()
            result = call(*arguments)
            go_on()
            return result

        return stepping

    if not blow["step"]:
        left = itertools.count(1)
        go_on()
    for name in LASTING:
        setattr(os, name, striking(getattr(os, name)))
