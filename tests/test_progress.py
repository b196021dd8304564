"""Progress bars, and that no fork is held up by one."""

import os
import sys
import threading
from pathlib import Path

import pytest

from bellm import Encoder
from bellm.progress import _bar_class, progress_bar
from tests.processes import run, single

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("bar", ["hidden", "shown"])
def test_a_fork_killed_in_its_encode_holds_nobody_up(bar: str, tiny_folder: Path) -> None:
    done = run(
        [sys.executable, "-m", "tests.killed_forks", tiny_folder, bar],
        timeout=120,
        cwd=ROOT,
        env=single({**os.environ, "PYTHONPATH": str(ROOT)}),  # A fork has none of the threads that OpenMP left.
    )
    assert (done.returncode, done.stdout) == (0, "." * 50), done.stderr


def test_where_no_bar_is_shown_there_is_none(tiny_folder: Path) -> None:
    program = (
        "import sys, threading, tqdm.std; from bellm import Encoder\nencoder = Encoder.from_pretrained(sys.argv[1]); "
        "tqdm.std.tqdm.__new__ = None; threads = threading.active_count()\nencoder.encode(['Snow fell.'] * 600); "
        "encoder.fingerprint(); assert threading.active_count() == threads"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-c", program, tiny_folder], timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_bar_counts_and_starts_no_thread(capsys: pytest.CaptureFixture[str], tiny_encoder: Encoder) -> None:
    threads = threading.active_count()
    with progress_bar(3, unit="text", shown=True) as done:
        done(1)
        done(2)
        assert done.__self__.n == 3  # type: ignore[attr-defined]
        assert threading.active_count() == threads
    assert "0/3" in capsys.readouterr().err
    assert isinstance(_bar_class().get_lock(), type(threading.RLock()))
    tiny_encoder.encode(["Snow fell."] * 3, progress=True)
    assert "0/3" in capsys.readouterr().err
