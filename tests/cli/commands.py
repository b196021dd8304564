"""Command lines in a process of their own, one after the other: what they import, they import once."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bellm.__main__ import main
from tests.processes import started


class Done(NamedTuple):
    """How a command line ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def one_process(environment: Mapping[str, str]) -> Iterator[Callable[..., Done]]:
    """A process that runs `bellm ARGUMENT ...` each time it is called."""
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    paths = {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    with started([sys.executable, "-m", "tests.cli.commands"], env=paths, **streams) as process:
        asked, answered = process.stdin, process.stdout
        assert asked
        assert answered

        def ask(*arguments: object) -> Done:
            asked.write(json.dumps([str(argument) for argument in arguments]).encode() + b"\n")
            asked.flush()
            return Done(*json.loads(answered.readline()))

        yield ask


def answer(arguments: list[str]) -> Done:
    """Run a command line with its output and its errors in files."""
    sys.argv[1:] = arguments
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        for stream, file in ((1, out), (2, errors)):
            os.dup2(file.fileno(), stream)
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        for text in (sys.stdout, sys.stderr):
            text.flush()
        for file in (out, errors):
            file.seek(0)
        return Done(int(code), out.read().decode(), errors.read().decode())


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
