"""Processes that can be killed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.processes import Runner, run, runner


class Forks:
    """Commands of bellm, each in a process of its own, with a namespace for mounts where that is allowed."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._logs: dict[int, Path] = {}

    def start(
        self,
        *arguments: object,
        log: Path,
        blow: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Begin `bellm ARGUMENTS`, to be struck as `tests.jobs.strike` has it; its process id."""
        wish = {"start": list(map(str, arguments)), "log": str(log), "environment": dict(environment or {})}
        process = self._runner.ask(**wish, blow=blow)
        self._logs[process] = log
        return process

    def wait(self, process: int) -> int:
        """How a process ended: its exit code, or less a signal."""
        try:
            return self._runner.ask(wait=process)
        except AssertionError as error:
            error.add_note(self._logs[process].read_text(encoding="utf-8", errors="replace"))
            raise

    def shell(self, command: str) -> int:
        """How a shell command ended, inside the namespace."""
        return self._runner.ask(shell=command)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that can be killed."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    inside = ["unshare", "-rm"] if shutil.which("unshare") else []
    if inside and run([*inside, "true"]).returncode:
        inside = []
    with runner("-m", "tests.train.forks", inside=inside) as found:
        yield Forks(found)
