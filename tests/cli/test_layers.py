"""`bellm layers`, as a user meets it."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_cli import bellm
from tests.evaluate.sets import write_pairs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "data", "dev")


def test_help_teaches() -> None:
    result = bellm("layers", "--help")
    assert result.exit_code == 0
    assert result.stdout.count("Example: bellm layers smollm2") == 2


def test_tables_and_record(tiny_folder: Path) -> None:
    command = ("layers", tiny_folder, "--dev=stsbenchmark-DEV", "--data=data", "-o", "out")
    result = bellm(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(Path("out/layers.json").read_text())
    for words in ("dependency", "causal", "no-op", "layer 2", *found["verdict"].split()[:5]):
        assert words in result.stdout
    assert "out/layers.json has it all." in result.stdout
    assert found["model"] == str(tiny_folder)
    assert found["facts"]["open_layers"] == []
    assert found["dev"] == "STSBenchmark-dev"
    assert len(found["degradation"]["scores"]) == 4
    assert found["degradation"]["turning"]["depth"] is None
    [prepending] = [one for one in found["candidates"] if one["prepending"]]
    assert (prepending["bidirectional"], prepending["open_layers"], prepending["prepending"]) == ("none", [], 4)
    assert "prepending:4" in result.stdout
    maps = {one["bidirectional"]: one for one in found["candidates"] if not one["prepending"]}
    assert next(iter(maps)) in {"none", "all", "last:2", "first:1", "first:2", "1", "every:2", "2", "last:1"}
    assert maps["last:1"]["over_causal"]["value"] == 0.0
    assert maps["last:1"]["score"] == maps["none"]["score"]
    assert maps["all"]["over_all"]["value"] == 0.0
    again = json.loads(bellm(*command, "--json").stdout)
    del found["seconds"], again["seconds"]
    assert again == found


def test_scores_are_those_of_evaluate(tiny_folder: Path) -> None:
    options = ("--data=data", "--pooling=mean", "--prompt=raw", "--json")
    found = json.loads(bellm("layers", tiny_folder, "-o", "out", *options).stdout)
    scores = {one["bidirectional"]: one["score"]["value"] for one in found["candidates"] if not one["prepending"]}
    source = f"{tiny_folder}?bidirectional=first:2"
    evaluated = bellm("evaluate", source, "--tasks=STSBenchmark-dev", "-o", "report", *options)
    assert json.loads(evaluated.stdout)["scores"]["STSBenchmark-dev"]["value"] == pytest.approx(
        scores["first:2"], abs=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("MODEL --dev STSBenchmark --data data -o out", "'STSBenchmark' is not a development set"),
        ("MODEL --dev sts --data data -o out", "Choose by STSBenchmark-dev or STSBenchmark-train."),
        ("MODEL --data nowhere -o out", "nowhere"),
        ("none/there --data data -o out", "none/there"),
        ("MODEL --data data -o out --bidirectional last:2", "leave out --bidirectional last:2"),
        ("MODEL --data data -o taken", "taken is a file. Name a folder."),
        ("MODEL --data data -o known", "known/layers.json is about another. Choose another folder."),
        ("MODEL --data data -o broken", "is about something that bellm cannot read"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny_folder: Path, arguments: str, message: str) -> None:
    Path("taken").touch()
    for folder, text in (("known", '{"model": "another"}'), ("broken", "[]")):
        Path(folder).mkdir()
        Path(folder, "layers.json").write_text(text)
    result = bellm("layers", *arguments.replace("MODEL", str(tiny_folder)).split())
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert message in line
    assert os.listdir("known") == ["layers.json"]
    assert not Path("out/layers.json").exists()
