"""`bellm embed` to a folder, as a user meets it."""

import json
import os
import pty
import re
import signal
import subprocess
import termios
from pathlib import Path

import numpy as np
import pytest

from bellm import Encoder
from bellm.corpus import manifest, shards
from tests.cli.test_cli import _read, bellm, python
from tests.processes import LIMIT, run, started

TEXTS = [f"Heron number {number} waits." for number in range(30)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")


def test_a_folder_of_shards(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    result = bellm("embed", tiny_folder, "*.txt", "-o", "out", "--shard-rows=7", "--precision=float16", "--keep-text")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.match(r"out: 30 rows of 32 dimensions in 5 shards, 30 of them new, open layers 2-3 of 4, ", result.stdout)
    found = manifest.read_manifest(Path("out"))
    assert found.encoder["source"] == str(tiny_folder)
    tables = list(map(shards.read_shard, manifest.shard_paths(Path("out"), found)))
    assert [text for table in tables for text in table.column("text").to_pylist()] == TEXTS
    vectors = np.concatenate([shards.shard_vectors(table) for table in tables])
    np.testing.assert_allclose(vectors, tiny_encoder.encode(TEXTS), rtol=2e-3, atol=1e-4)


def test_json_and_a_second_run(tiny_folder: Path) -> None:
    assert bellm("embed", tiny_folder, "t.txt", "-o", "out/").exit_code == 0
    Path("t.txt").write_text(Path("t.txt").read_text() + "One more.\n")
    result = json.loads(bellm("embed", tiny_folder, "t.txt", "-o", "out", "--json").stdout)
    assert (result["rows"], result["new_rows"], result["unreadable"], result["shards"]) == (31, 1, 0, 2)
    assert result["encoder"]["bidirectional"] == "2-3"


def test_lines_from_a_pipe_are_skipped_where_they_are_done(tiny_folder: Path) -> None:
    lines = "".join(text + "\n" for text in TEXTS).encode()
    for given, new in ((lines[:110], 5), (lines, 25)):
        result = bellm("embed", tiny_folder, "-", "-o", "out", "--json", stdin=given)
        assert json.loads(result.stdout)["new_rows"] == new
    ids = [
        id
        for path in manifest.shard_paths(Path("out"), manifest.read_manifest(Path("out")))
        for id in shards.read_shard(path).column("id").to_pylist()
    ]
    assert ids == [f"-:{row}" for row in range(1, 31)]


def test_rows_that_cannot_be_read_are_a_note(tiny_folder: Path) -> None:
    Path("t.jsonl").write_text('"one"\n7\n"two"\n')
    result = bellm("embed", tiny_folder, "t.jsonl", "-o", "out")
    assert result.exit_code == 0
    assert result.stderr == "note: 1 of 3 rows cannot be read; out/rejected.jsonl lists them.\n"


def test_ids_and_columns_are_notes_and_a_file_that_is_rejected_whole_is_an_error(tiny_folder: Path) -> None:
    Path("a.csv").write_text("key;body;url\na;one;u\n;two;u\na;three;u\n")
    columns = "--columns=text=body,id=key"
    result = bellm("embed", tiny_folder, "a.csv", "-o", "out", columns)
    assert (result.exit_code, result.stderr.splitlines()) == (
        0,
        [
            "note: a.csv: not read: column 'url'.",
            "note: 1 of 3 rows have no id in the column 'key': it is FILE:ROW.",
            "note: 1 of 3 rows have the id of an earlier row, such as 'a'; a search cannot tell them apart.",
        ],
    )
    Path("b.jsonl").write_text('{"text": "one"}\n')
    result = bellm("embed", tiny_folder, "a.csv", "b.jsonl", "-o", "out", columns)
    last = "bellm: No row of b.jsonl can be read; out/rejected.jsonl lists them. The other files are embedded."
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, last)


def test_several_inputs_to_one_file(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    Path("u.txt").write_text("Snow.\n")
    assert bellm("embed", tiny_folder, "u.txt", "t.txt", "-o", "v.npy").exit_code == 0
    expected = tiny_encoder.encode(["Snow.", *TEXTS])
    np.testing.assert_allclose(np.load("v.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.txt -o out", "none.txt cannot be read: No such file or directory."),
        ("none -o out", "There is no file or folder none."),
        ("*.csv -o out", "*.csv matches no file."),
        ("t.jsonl -o out", "No row can be read. t.jsonl, line 1: no column 'text'. Columns: 'phrase'."),
        (
            "t.txt -o out.v2",
            "its suffix is '.v2', not one of .npy, .jsonl, .parquet; the name of a folder of shards ends",
        ),
        ("t.txt -o out --force", "out is a folder, which --force does not replace."),
        ("t.txt -o v.npy --keep-text", "v.npy is one file: options of a corpus folder do not fit."),
        ("t.txt -o out --devices cpu,cpu --engine ray", "--devices belongs to --engine local"),
        ("t.txt -o out --devices toaster", "device='toaster' is not known"),
        ("t.txt -o taken", "taken holds other files and is no corpus of bellm."),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny_folder: Path, arguments: str, message: str) -> None:
    Path("t.jsonl").write_text('{"phrase": "x"}\n')
    Path("taken").mkdir()
    Path("taken/letter").touch()
    before = sorted(os.listdir())
    result = bellm("embed", tiny_folder, *arguments.split())
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert message in line
    assert sorted(os.listdir()) == before
    assert os.listdir("taken") == ["letter"]


def test_ctrl_c_says_what_is_kept(tiny_folder: Path) -> None:
    Path("t.txt").write_text("a word and another\n" * 30_000, encoding="utf-8")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 150))
    command = python("embed", tiny_folder, "t.txt", "-o", "out", "--shard-rows=500", "--max-batch-tokens=400")
    with open(ours, "rb", buffering=0), started(command, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        assert b"rows" in _read(ours, until=b" tokens/s")
        process.send_signal(signal.SIGINT)
        shown = _read(ours)
        assert process.wait(timeout=LIMIT) == 130
    assert b"Traceback" not in shown
    assert b"bellm: interrupted; finished shards are kept in out, and the same command resumes there." in shown
    kept = list(Path("out/shards").iterdir())
    assert kept
    assert all(path.suffix == ".parquet" for path in kept)
    assert not Path("out/manifest.json").exists()


@pytest.mark.slow  # tests/corpus/ray_program.py runs the command in a cluster that is there already.
def test_ray_gives_the_same_corpus_from_a_cluster_of_its_own(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    command = python("embed", tiny_folder, "t.txt", "-o", "out", "--engine=ray", "--workers=1", "--json")
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == len(TEXTS)
    tables = map(shards.read_shard, manifest.shard_paths(Path("out"), manifest.read_manifest(Path("out"))))
    vectors = np.concatenate([shards.shard_vectors(table) for table in tables])
    np.testing.assert_allclose(vectors, tiny_encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_several_devices_give_the_same_vectors(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    expected = tiny_encoder.encode(TEXTS)
    done = run(python("embed", tiny_folder, "t.txt", "-o", "v.npy", "--devices=cpu,cpu"))
    assert (done.returncode, done.stderr) == (0, "")
    result = bellm("embed", tiny_folder, "t.txt", "-o", "out/", "--devices=cpu,cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_allclose(np.load("v.npy"), expected, rtol=1e-4, atol=1e-5)
    tables = map(shards.read_shard, manifest.shard_paths(Path("out"), manifest.read_manifest(Path("out"))))
    vectors = np.concatenate([shards.shard_vectors(table) for table in tables])
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
