"""Processes that are killed and disks that are full, for real."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellm.corpus import manifest, shards
from bellm.corpus.row_ranges import SHARD_FOLDER
from tests.processes import Runner, run, runner, single

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

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, out: Path, **blow: float) -> int:
        """Run the job, to be struck as `tests.jobs.strike` has it; how it ended."""
        return self._runner.ask(out=str(out), blow=blow)


@pytest.fixture(scope="module")
def jobs(tiny_folder: Path, corpus: Path) -> Iterator[Jobs]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    with runner("-m", "tests.corpus.killed", tiny_folder, corpus, SHARD_ROWS) as found:
        yield Jobs(found)


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


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_no_row_is_lost_and_none_comes_twice(
    jobs: Jobs, undisturbed: tuple[Path, float], tmp_path: Path, kills: int
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(0)
    deaths = []
    while len(deaths) < kills:
        # Some way on, which no machine is too slow for, and then any moment of about two shards.
        blow = {"step": moments.randint(0, 40), "after": moments.uniform(0, seconds / 15)}
        end = jobs.run(tmp_path / "out", **blow)
        if end == 0:
            assert_same_corpus(tmp_path / "out", expected)
            shutil.rmtree(tmp_path / "out")
        else:
            assert end == -signal.SIGALRM
            deaths.append(len(list((tmp_path / "out" / SHARD_FOLDER).glob("*.parquet"))))
    assert jobs.run(tmp_path / "out") == 0
    assert_same_corpus(tmp_path / "out", expected)
    assert len(set(deaths)) >= 3  # So many different numbers of shards were there when it died.


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


@pytest.mark.slow
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
    result = run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", *command, "--shard-rows", SHARD_ROWS, "--keep-text"],
        env=single(os.environ),
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
    assert (found.shards, found.config_digest) == (expected.shards, expected.config_digest)
    assert [
        shards.read_shard(path).column("text").to_pylist() for path in manifest.shard_paths(tmp_path / "out", found)
    ] == [shards.read_shard(path).column("text").to_pylist() for path in manifest.shard_paths(undisturbed[0], expected)]
