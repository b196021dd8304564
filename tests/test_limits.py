"""What hangs fails, and is ended."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import run, runner

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

JOBS = """
import os, time
from tqdm import tqdm
from tests import jobs

jobs.prepare()
tqdm.get_lock()  # As a bar does while a model is loaded.
for wish in jobs.wishes():
    child = jobs.fork()
    if not child:
        with tqdm.get_lock():
            if wish["blow"]:
                jobs.strike(wish["blow"])
            time.sleep(wish["seconds"])
        os._exit(0)
    jobs.tell(jobs.how_it_ended(child))
"""


def test_a_job_killed_with_a_lock_in_hand_does_not_block_the_next() -> None:
    with runner("-c", JOBS) as jobs:
        assert jobs.ask(blow={"step": 0}, seconds=0) == -signal.SIGKILL
        assert jobs.ask(blow={"step": 0, "after": 0}, seconds=999) == -signal.SIGALRM
        assert jobs.ask(blow=None, seconds=0) == 0


def test_a_job_that_hangs_fails_with_its_stack() -> None:
    with runner("-c", JOBS) as jobs, pytest.raises(AssertionError, match="was silent for 3 s") as raised:
        jobs.limit = 3
        jobs.ask(blow=None, seconds=999)
    assert 'File "<string>", line 14 in <module>' in str(raised.value)


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(999)
"""


def test_a_process_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"had not ended after 5 s(?s:.*)line 5 in <module>"):
        run([sys.executable, "-c", FAMILY, tmp_path / "child"], timeout=5)
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


HANGING = """
import multiprocessing


def test_hanging():
    lock = multiprocessing.Lock()
    lock.acquire()
    lock.acquire()


def test_after_it():
    pass
"""


def test_a_test_that_hangs_fails_with_its_stack_and_the_next_runs(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGING, encoding="utf-8")
    ini = Path(__file__).parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", ini, "-p", "no:cacheprovider", "--timeout=5", tmp_path]
    done = run(command, cwd=tmp_path)
    assert "1 failed, 1 passed" in done.stdout
    assert "    lock.acquire()\n" in done.stdout
    assert "Timeout (>5.0s) from pytest-timeout" in done.stdout
