"""`bellm layers`, as a user meets it."""

import json
import os
import re
from pathlib import Path

import pytest

from bellm.version import __version__
from tests.cli.test_cli import bellm
from tests.evaluate.sets import write_pairs
from tests.train.rows import write


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "data", "dev")


def test_help_teaches() -> None:
    result = bellm("layers", "--help")
    assert result.exit_code == 0
    assert result.stdout.count("Example: bellm layers smollm2") == 4


def test_tables_and_record(tiny_folder: Path) -> None:
    command = ("layers", tiny_folder, "--dev=stsbenchmark-DEV", "--data=data", "-o", "out")
    result = bellm(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(Path("out/layers.json").read_text())
    for words in ("dependency", "causal", "no-op", "layer 2", *found["summary"].split()[:5]):
        assert words in result.stdout
    assert "out/layers.html shows it, out/layers.json has it all." in result.stdout
    assert found["model"] == str(tiny_folder)
    assert found["metadata"]["open_layers"] == []
    assert found["seed"] == 0
    assert found["versions"]["bellm"] == __version__
    results = re.search('id="results">(.*)</script>', Path("out/layers.html").read_text(encoding="utf-8"))
    assert results is not None
    assert json.loads(results[1]) == found
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
    ("methods", "keys", "words"),
    [
        (["degradation"], ["degradation"], "No turning point"),
        (["profile"], ["layer_stats"], "a profile chooses nothing"),
        (["search", "profile"], ["layer_stats", "candidates"], "causal"),
    ],
    ids=str,
)
def test_only_what_is_asked_for(tiny_folder: Path, methods: list[str], keys: list[str], words: str) -> None:
    asked = [f"--method={method}" for method in methods]
    result = bellm("layers", tiny_folder, "--data=data", "-o", "out", *asked)
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("out/layers.json").read_text())
    assert {"degradation", "layer_stats", "candidates"} & set(found) == set(keys)
    assert words in found["summary"]
    assert words in " ".join(result.stdout.split())
    assert Path("out/layers.html").exists()


def test_a_file_of_rated_pairs_is_a_development_set(tiny_folder: Path) -> None:
    rows = [line.split("\t")[4:7] for line in Path("data/stsbenchmark/sts-dev.csv").read_text().splitlines()]
    Path("own.jsonl").write_text(
        "".join(json.dumps({"sentence1": one, "sentence2": other, "score": score}) + "\n" for score, one, other in rows)
    )
    command = ("layers", tiny_folder, "--method=degradation", "--json")
    known, own = (
        json.loads(bellm(*command, *more).stdout)
        for more in (("--data=data", "-o", "one"), ("--dev=own.jsonl", "-o", "other"))
    )
    assert own["dev"] == "own.jsonl"
    assert own["degradation"] == known["degradation"]
    Path("other.jsonl").write_text(Path("own.jsonl").read_text().replace("sentence1", "left").replace("score", "how"))
    columns = "--columns=anchor=left,positive=sentence2,score=how"
    other = json.loads(bellm(*command, "--dev=other.jsonl", columns, "-o", "third").stdout)
    assert other["degradation"] == known["degradation"]


TRAINED = ("--train=rows.jsonl", "--train-steps=2", "--train-batch-size=4")
TO_THE_END = "6 maps to step 1, 4 to 2 (causal and all open stay to the end): 10 steps of 4 rows."


@pytest.mark.slow
def test_with_training_it_goes_on_where_it_was_stopped(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "rows.jsonl", 10)
    command = ("layers", tiny_folder, "--data=data", "-o", "out")
    with monkeypatch.context() as stopped:
        stopped.setattr("bellm.layer_search.successive_halving.score_sts", _ctrl_c)
        result = bellm(*command, *TRAINED)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        TO_THE_END,
        "bellm: interrupted; what out/runs holds is kept; the same command resumes.",
    ]
    assert not Path("out/layers.json").exists()
    assert os.listdir("out/runs/causal").count("checkpoint.safetensors") == 1

    result = bellm(*command, *TRAINED)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines() == [TO_THE_END]
    found = json.loads(Path("out/layers.json").read_text())
    untrained, turning, trained = found["summary"].splitlines()
    assert (untrained, turning) == tuple(json.loads(bellm(*command, "--json").stdout)["summary"].splitlines())
    assert re.match("After 2 steps of 4 rows, (best on STSBenchmark-dev is|no map beats causal on) ", trained)
    for words in ("trained", "steps", *trained.split()[:5]):
        assert words in result.stdout
    assert f"{found['trained']['budget']}." == TO_THE_END
    assert found["trained"]["rounds"] == [{"num_candidates": 6, "steps": 1}, {"num_candidates": 4, "steps": 2}]
    ends = [one for one in found["trained"]["candidates"] if one["left"] is None]
    assert {"none", "all"} < {one["bidirectional"] for one in ends}
    assert all(len(one["rounds_done"]) == 2 for one in ends)
    for one in ends:
        assert (
            bellm("info", Path("out/runs") / one["name"].replace(":", "-").replace(" ", "-") / "model").exit_code == 0
        )

    again = json.loads(bellm(*command, *TRAINED, "--json").stdout)
    del found["seconds"], again["seconds"]
    assert again == found
    other = bellm(*command, *(option.replace("steps=2", "steps=4") for option in TRAINED))
    assert other.exit_code == 1
    assert "out/runs holds a search with other max_steps, rounds (max_steps was 2, is 4)." in other.stderr
    assert json.loads(Path("out/layers.json").read_text())["trained"] == found["trained"]


def _ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "MODEL --dev STSBenchmark --data data -o out",
            "'STSBenchmark' is neither a file of rated pairs nor a development set",
        ),
        (
            "MODEL --dev sts --data data -o out",
            "Choose by STSBenchmark-dev or STSBenchmark-train, or by a file of your own.",
        ),
        ("MODEL --dev few.jsonl -o out", "few.jsonl has 1 rows. Choices are judged by 3 pairs or more"),
        ("MODEL --dev unrated.jsonl -o out", "each with a score: columns sentence1, sentence2 and score."),
        ("MODEL --dev broken.jsonl -o out", "broken.jsonl, line 2: "),
        ("MODEL --data data -o out --method profile --train few.jsonl", "add --method search"),
        ("MODEL --data nowhere -o out", "nowhere"),
        ("none/there --data data -o out", "none/there"),
        ("MODEL --data data -o out --train-steps 8", "give it too"),
        ("MODEL --data data -o out --train-columns anchor=first", "give it too"),
        ("MODEL --data data -o out --train few.jsonl --train-columns anchor=first,positive=second", "first"),
        ("MODEL --data data -o out --bidirectional last:2", "leave out --bidirectional last:2"),
        ("MODEL --data data -o taken", "taken is a file. Name a folder."),
        ("MODEL --data data -o known", "known/layers.json is about another. Choose another folder."),
        ("MODEL --data data -o broken", "is about something that bellm cannot read"),
        ("MODEL --data data -o out --train nowhere.csv", "nowhere.csv cannot be read: No such file or directory."),
        ("MODEL --data data -o out --train bad.jsonl", "No row of bad.jsonl can be read. bad.jsonl, line 1: "),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny_folder: Path, arguments: str, message: str) -> None:
    Path("taken").touch()
    Path("bad.jsonl").write_text("{}\n")
    rated = '{"sentence1": "a", "sentence2": "b", "score": 1}\n'
    Path("few.jsonl").write_text(rated)
    Path("unrated.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n' * 4)
    Path("broken.jsonl").write_text(rated + "{}\n" + rated * 3)
    for folder, text in (("known", '{"model": "another", "summary": []}'), ("broken", "[]")):
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
    assert not Path("out/layers.html").exists()
