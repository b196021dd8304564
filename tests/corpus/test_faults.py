"""Processes that are killed and disks that are full, for real."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellm.corpus import manifest, shards

SHARD_ROWS = 16
NUM_ROWS = 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [f'{{"text": "Snow fell on day {n}, {"and again, " * (n % 6)}until night."}}' for n in range(NUM_ROWS)]
    rows[100:300:50] = ["torn"] * 4
    (folder / "b.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "a.txt").write_text("".join(f"Line {n}.\n" for n in range(50)), encoding="utf-8")
    return folder


class Jobs:
    """Jobs on one corpus, each in a process of its own that can be killed."""

    def __init__(self, encoder: Path, corpus: Path) -> None:
        command = [sys.executable, "-m", "tests.corpus.killed", str(encoder), str(corpus), str(SHARD_ROWS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout
        self.process.stdout.readline()

    def run(self, out: Path, *, kill_after: float | None = None, step: int | None = None) -> int:
        """Run the job; how it ended, -9 where it was killed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{out} {step or ''}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            threading.Timer(kill_after, _kill, [child]).start()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


def _kill(process: int) -> None:
    # The job may have ended; until the next one is asked for, nobody else can have its number.
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def jobs(tiny_folder: Path, corpus: Path) -> Iterator[Jobs]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    jobs = Jobs(tiny_folder, corpus)
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder that nobody disturbed, and the seconds it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.perf_counter()
    assert jobs.run(out) == 0
    return out, time.perf_counter() - start


def assert_same_corpus(found: Path, expected: Path) -> None:
    """Compare row by row, and then byte by byte."""
    plan = manifest.read_manifest(expected)
    assert manifest.read_manifest(found) == plan
    rows = 0
    for ours, theirs in zip(manifest.shard_paths(found, plan), manifest.shard_paths(expected, plan), strict=True):
        assert shards.read_shard_info(ours) == shards.read_shard_info(theirs)
        assert shards.read_shard(ours).equals(shards.read_shard(theirs))
        rows += shards.read_shard(ours).num_rows
    assert rows == plan.rows == NUM_ROWS + 50 - 4
    names = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (found, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        assert not (found / name).is_file() or (found / name).read_bytes() == (expected / name).read_bytes()


def assert_promises_are_kept(out: Path) -> None:
    """Where there is a manifest, all that it names is there."""
    if (out / manifest.MANIFEST_FILE).exists():
        assert all(path.exists() for path in manifest.shard_paths(out, manifest.read_manifest(out)))
        assert (out / manifest.REJECTED_FILE).exists()


def test_killed_at_random_moments_no_row_is_lost_and_none_comes_twice(
    jobs: Jobs, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(0)
    kills, seen = 0, set()
    while kills < 20:
        end = jobs.run(tmp_path / "out", kill_after=moments.uniform(0, seconds))
        if end == 0:
            assert_same_corpus(tmp_path / "out", expected)
            shutil.rmtree(tmp_path / "out")
        else:
            assert end == -signal.SIGKILL
            kills += 1
            seen.add(len(list((tmp_path / "out" / shards.SHARD_FOLDER).glob("*.parquet"))))
    assert jobs.run(tmp_path / "out") == 0
    assert_same_corpus(tmp_path / "out", expected)
    assert len(seen) >= 3  # So many different numbers of shards were there when it died.


def test_killed_around_every_call_that_makes_files_last(
    jobs: Jobs, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    deaths = 0
    # What is left takes 12 steps in the end: two for each of three calls for each of two files.
    while (end := jobs.run(tmp_path / "out", step=1 + deaths % 17)) == -signal.SIGKILL:
        deaths += 1
        assert_promises_are_kept(tmp_path / "out")
    assert end == 0
    assert deaths > 20
    assert_same_corpus(tmp_path / "out", expected)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tiny_folder: Path, corpus: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    inside = (
        f"mount -t tmpfs -o size=160k none {mount} || exit 99\n"
        f'"$@"; echo "ended with $?"; ls -A {mount}/out {mount}/out/shards | grep part\n'
        f"mount -o remount,size=64m {mount}\n"
        f'"$@"; echo "ended with $?"; cp -r {mount}/out {tmp_path}/out\n'
    )
    command = [sys.executable, "-m", "bellm", "embed", str(tiny_folder), str(corpus), "-o", f"{mount}/out"]
    if not shutil.which("unshare"):
        pytest.skip("needs unshare to mount a small disk")
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", *command, "--shard-rows", str(SHARD_ROWS), "--keep-text"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if result.returncode in (1, 99) and "ended" not in result.stdout:
        pytest.skip(f"needs the right to mount a small disk: {result.stderr.strip()}")
    first, done, second = result.stdout.splitlines()
    assert first == "ended with 1"
    [full, note] = result.stderr.splitlines()
    assert full.startswith("bellm: ")
    assert full.endswith(
        "cannot be written: No space left on device. Whatever was written before is kept: mend this and give the same "
        "command again."
    )
    assert note == f"note: 4 of 450 rows cannot be read; {mount}/out/rejected.jsonl lists them."
    assert " new, " in done
    assert second == "ended with 0"
    found, expected = manifest.read_manifest(tmp_path / "out"), manifest.read_manifest(undisturbed[0])
    assert (found.shards, found.recipe_digest) == (expected.shards, expected.recipe_digest)
    assert [
        shards.read_shard(path).column("text").to_pylist() for path in manifest.shard_paths(tmp_path / "out", found)
    ] == [shards.read_shard(path).column("text").to_pylist() for path in manifest.shard_paths(undisturbed[0], expected)]
