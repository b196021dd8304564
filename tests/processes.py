"""Processes that tests start: each heads a group of its own, and the group ends with the test, however that ends.

One that does not answer in time fails the test, with the stacks of all its threads.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

LIMIT = 240.0
"""Seconds that a test waits for a process: far more than one needs on a slow machine, less than a test has in all."""


@contextlib.contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process, killed in the end with all that it has started."""
    environment = {**options.pop("env", os.environ), "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, env=environment, **options)
    try:
        yield process
    finally:
        end(process)
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def run(command: Sequence[object], *, timeout: float = LIMIT, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` that leaves nothing behind; its own timeout waits for whoever else holds the pipes."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with started(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end(process, stacks=True)
            said = process.communicate(timeout=10)
            raise AssertionError(f"{command} had not ended after {timeout:.0f} s: {said}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def end(process: subprocess.Popen[Any], *, stacks: bool = False) -> None:
    """Kill a process that heads a group, its group, and what has left the group, as Ray and torchrun's workers do.

    With `stacks` every Python of the group first writes where it stands to its standard error.
    """
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(process.pid)
        family = head.children(recursive=True)
        if stacks:
            # One after the other, for they may write to the same file.
            for each in (head, *family):
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    if os.getpgid(each.pid) == process.pid:
                        each.send_signal(signal.SIGABRT)
                        each.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(timeout=60)
    psutil.wait_procs(family, timeout=10)


class Runner:
    """A Python with `tests.jobs` in it: it is asked by a line of JSON, and answers a number."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Any) -> None:
        self._process = process
        self._errors = errors
        self.limit = LIMIT
        self._unread = b""
        self._answer()

    def ask(self, **wish: object) -> int:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(wish).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        """The next number; where none comes in time, the stacks of runner and jobs instead."""
        assert self._process.stdout
        until = time.monotonic() + self.limit
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not chunk:
                end(self._process, stacks=True)
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace")
                raise AssertionError(
                    f"The runner {'ended' if ready else f'was silent for {self.limit:.0f} s'}:\n{said}"
                )
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return int(line)


@contextlib.contextmanager
def runner(*arguments: object, inside: Sequence[str] = ()) -> Iterator[Runner]:
    """Start a Python that runs jobs, `inside` another command if need be; it is killed in the end with its jobs."""
    with (
        tempfile.TemporaryFile() as errors,
        started(
            [*inside, sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=single(os.environ),
            cwd=Path(__file__).parents[1],
        ) as process,
    ):
        yield Runner(process, errors)


def single(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes without threads of libraries."""
    return {**environment, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
