import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bellm import Encoder
from bellm.corpus import manifest, shards
from bellm.corpus.job import embed_corpus

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are found in /proc")

PROGRAM = Path(__file__).with_name("ray_program.py")
TEXTS = [
    f"Heron number {number} waits for {number % 7} fish, {'and waits ' * (number % 11)}." for number in range(2000)
]


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder where the program has run, and what it said."""
    place = tmp_path_factory.mktemp("ray")
    for name, texts in (("a.txt", TEXTS), ("b.txt", TEXTS[::-1])):
        (place / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tiny_folder)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads((place / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(run: tuple[Path, dict[str, Any]], tiny_folder: Path) -> manifest.Manifest:
    """The same corpus, embedded by this process."""
    place, _ = run
    here = os.getcwd()
    os.chdir(place)
    try:
        options: dict[str, Any] = {"source": str(tiny_folder), "keep_text": True, "shard_rows": 100}
        return embed_corpus(Encoder.from_pretrained(tiny_folder), ["a.txt", "b.txt"], "local", **options).manifest
    finally:
        os.chdir(here)


def rows_of(out: Path) -> Any:
    return pa.concat_tables(
        [shards.read_shard(path) for path in manifest.shard_paths(out, manifest.read_manifest(out))]
    )


def test_same_rows_and_vectors_as_one_machine(run: tuple[Path, dict[str, Any]], expected: manifest.Manifest) -> None:
    place, _ = run
    found = manifest.read_manifest(place / "out")
    assert vars(found) == vars(expected) | {"shards": found.shards}
    assert [shard["name"] for shard in found.shards] == [shard["name"] for shard in expected.shards]
    ray_rows, local_rows = rows_of(place / "out"), rows_of(place / "local")
    columns = ["id", "file", "row", "text"]
    assert ray_rows.select(columns).to_pylist() == local_rows.select(columns).to_pylist()
    np.testing.assert_allclose(shards.shard_vectors(ray_rows), shards.shard_vectors(local_rows), rtol=0, atol=1e-5)


def test_a_worker_was_killed_half_way(run: tuple[Path, dict[str, Any]]) -> None:
    place, found = run
    assert len(found["killed"]) == 1
    assert 26 <= found["shards"] < 40
    rows = [row for row, _, _ in found["progress"]]
    assert rows == list(range(100, 2001, 100))
    assert not list(place.rglob("*.part"))


def test_ray_goes_on_where_one_machine_was_stopped(run: tuple[Path, dict[str, Any]]) -> None:
    _, found = run
    assert found["new_rows"] == found["progress"][-1][0] == 2000


def test_what_is_refused_is_one_line(run: tuple[Path, dict[str, Any]]) -> None:
    pipe, many, gone = run[1]["errors"]
    assert pipe.startswith("BellmError: Other machines cannot read this one's standard input")
    assert many == "BellmError: 3 workers are too many for a cluster of 2 cores: give at most as many."
    assert "none/there" in gone
    assert not any("\n" in error for error in run[1]["errors"])
