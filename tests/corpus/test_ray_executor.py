import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from bellm import Encoder
from bellm.corpus import manifest, ray_executor, shards
from bellm.corpus.job import embed_corpus
from bellm.errors import SourceError
from tests.processes import run

PROGRAM = Path(__file__).with_name("ray_program.py")
SHARD_ROWS = 30
TEXTS = [f"Heron number {number} waits for {number % 7} fish, {'and waits ' * (number % 11)}." for number in range(600)]


@pytest.fixture(scope="module")
def options(tiny_folder: Path) -> dict[str, Any]:
    return {"source": str(tiny_folder), "keep_text": True, "shard_rows": SHARD_ROWS}


@pytest.fixture(scope="module")
def ran(
    tiny_folder: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder where this process began a corpus and the program went on, and what it said."""
    place = tmp_path_factory.mktemp("ray")
    for name, texts in (("a.txt", TEXTS), ("b.txt", TEXTS[::-1])):
        (place / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    with contextlib.chdir(place):
        embed_corpus(Encoder.from_pretrained(tiny_folder), ["a.txt"], "out", **options)
    done = run(
        [sys.executable, PROGRAM, tiny_folder, SHARD_ROWS],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads((place / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(ran: tuple[Path, dict[str, Any]], tiny_folder: Path, options: dict[str, Any]) -> manifest.Manifest:
    """The same corpus, embedded by this process."""
    with contextlib.chdir(ran[0]):
        return embed_corpus(Encoder.from_pretrained(tiny_folder), ["a.txt", "b.txt"], "local", **options).manifest


def rows_of(out: Path) -> Any:
    return pa.concat_tables(
        [shards.read_shard(path) for path in manifest.shard_paths(out, manifest.read_manifest(out))]
    )


def test_same_rows_and_vectors_as_one_machine(ran: tuple[Path, dict[str, Any]], expected: manifest.Manifest) -> None:
    place, _ = ran
    found = manifest.read_manifest(place / "out")
    assert vars(found) == vars(expected) | {"shards": found.shards}
    assert [shard["name"] for shard in found.shards] == [shard["name"] for shard in expected.shards]
    ray_rows, local_rows = rows_of(place / "out"), rows_of(place / "local")
    columns = ["id", "file", "row", "text"]
    assert ray_rows.select(columns).to_pylist() == local_rows.select(columns).to_pylist()
    np.testing.assert_allclose(shards.shard_vectors(ray_rows), shards.shard_vectors(local_rows), rtol=0, atol=1e-5)


def test_the_command_gives_the_same_corpus(ran: tuple[Path, dict[str, Any]], expected: manifest.Manifest) -> None:
    place, _ = ran
    found, wanted = rows_of(place / "by-command"), rows_of(place / "local").slice(0, len(TEXTS))
    assert found.column("text").to_pylist() == wanted.column("text").to_pylist() == TEXTS
    np.testing.assert_allclose(shards.shard_vectors(found), shards.shard_vectors(wanted), rtol=0, atol=1e-5)


def test_a_worker_was_killed_half_way(ran: tuple[Path, dict[str, Any]]) -> None:
    place, found = ran
    assert len(found["killed"]) == 1
    assert 26 <= found["shards"] < 40
    rows = [row for row, _, _ in found["progress"]]
    assert rows == list(range(SHARD_ROWS, len(TEXTS) + 1, SHARD_ROWS))
    assert not list(place.rglob("*.part"))


def test_ray_goes_on_where_one_machine_was_stopped(ran: tuple[Path, dict[str, Any]]) -> None:
    _, found = ran
    assert found["new_rows"] == found["progress"][-1][0] == len(TEXTS)


def test_what_is_refused_is_one_line(ran: tuple[Path, dict[str, Any]]) -> None:
    pipe, many, gone = ran[1]["errors"]
    assert pipe.startswith("BellmError: Other machines cannot read this one's standard input")
    assert many == "BellmError: 3 workers are too many for a cluster of 2 cores: give at most as many."
    assert "none/there" in gone
    assert not any("\n" in error for error in ran[1]["errors"])


def test_why_a_worker_died_is_said() -> None:
    death = ray.exceptions.RayError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: _Worker\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits: the process is killed by SIGKILL by OOM killer.\nMore advice of Ray."
    )
    message = r"^A worker failed: Worker unexpectedly exits: .* by OOM killer\. Finished shards are kept: [^\n]+$"
    with pytest.raises(SourceError, match=message), ray_executor._one_line():
        raise death
