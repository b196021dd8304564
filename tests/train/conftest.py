"""Where the research data is, which is no part of this repository; and processes that can be killed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of research data, read only."""
    folder = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no research data in {folder}: set BELLM_DATA")
    return folder


class Forks:
    """Commands of bellm, each in a process of its own, with a namespace for mounts where that is allowed."""

    def __init__(self) -> None:
        inside = ["unshare", "-rm"] if shutil.which("unshare") else []
        if inside and subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
            inside = []
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.train.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            cwd=Path(__file__).parents[2],
        )
        self._answer()

    def start(
        self, *arguments: object, log: Path, die_at: int | None = None, environment: Mapping[str, str] | None = None
    ) -> int:
        """Begin `bellm ARGUMENTS`; its process id."""
        wish = {"start": list(map(str, arguments)), "log": str(log), "die_at": die_at}
        return self._ask({**wish, "environment": environment or {}})

    def wait(self, process: int) -> int:
        """How a process ended: its exit code, or less a signal."""
        return self._ask({"wait": process})

    def shell(self, command: str) -> int:
        """How a shell command ended, inside the namespace."""
        return self._ask({"shell": command})

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def _ask(self, wish: Mapping[str, object]) -> int:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that can be killed."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    forks = Forks()
    yield forks
    forks.close()
