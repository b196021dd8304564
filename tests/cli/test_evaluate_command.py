"""`bellm evaluate`, as a user meets it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bellm import Encoder
from tests.cli.test_cli import bellm
from tests.evaluate.sets import write_pairs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    write_pairs(tmp_path / "data")


def test_two_maps_of_one_model(tiny_folder: Path) -> None:
    causal = f"{tiny_folder}?bidirectional=none"
    command = (
        "evaluate",
        causal,
        str(tiny_folder),
        "--tasks=STSBenchmark",
        "--data=data",
        "-o",
        "out",
        "--pooling=mean",
    )
    result = bellm(*command)
    assert result.exit_code == 0, result.stderr
    assert "STSBenchmark" in result.stdout
    assert "report.html" in result.stdout
    found = json.loads(Path("out/results.json").read_text())
    assert found["model"] == causal
    assert set(found["scores"]) == {"STSBenchmark"}
    assert found["metadata"]["pooling"] == "mean"
    assert found["compared"][0]["metadata"]["open_layers"] == [2, 3]
    assert Path("out/report.html").read_text(encoding="utf-8").startswith("<!")
    assert "STSBenchmark" in Path("out/report.md").read_text(encoding="utf-8")
    again = json.loads(bellm(*command, "--json").stdout)
    del found["seconds"], again["seconds"]
    assert again == found


def test_compare_is_another_way_to_name_sources(tiny_folder: Path) -> None:
    command = ("--tasks=STSBenchmark", "--data=data", "--json", "-o")
    named = json.loads(bellm("evaluate", tiny_folder, f"{tiny_folder}?layer=2", *command, "one").stdout)
    compared = json.loads(bellm("evaluate", tiny_folder, f"--compare={tiny_folder}?layer=2", *command, "two").stdout)
    assert [run["model"] for run in compared["compared"]] == [f"{tiny_folder}?layer=2"]
    assert compared["scores"] == named["scores"]


def test_vectors_of_a_file(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    lines = Path("data/stsbenchmark/sts-test.csv").read_text().splitlines()
    Path("t.txt").write_text("".join(f"{text}\n" for line in lines for text in line.split("\t")[5:7]))
    assert bellm("embed", tiny_folder, "t.txt", "-o", "v.parquet").exit_code == 0
    command = ("--tasks=STSBenchmark", "--data=data", "--json", "-o")
    by_file = json.loads(bellm("evaluate", "vectors:v.parquet", *command, "one").stdout)
    by_model = json.loads(bellm("evaluate", tiny_folder, *command, "two").stdout)
    assert by_file["scores"]["STSBenchmark"]["value"] == pytest.approx(
        by_model["scores"]["STSBenchmark"]["value"], abs=0.1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("MODEL --tasks STS17 -o out", "'STS17' is no task."),
        ("MODEL --tasks STS12 --data data -o out", "STS12"),
        ("MODEL --tasks STSBenchmark --data nowhere -o out", "nowhere"),
        ("none/there --tasks STSBenchmark --data data -o out", "none/there"),
        (
            "MODEL vectors:none.parquet --tasks STSBenchmark --data data -o out",
            "vectors:none.parquet: there is no file none.parquet.",
        ),
        ("MODEL?pooling=sum --tasks STSBenchmark --data data -o out", "pooling='sum' is not one of"),
        ("MODEL --tasks STSBenchmark --data data -o taken", "taken is a file. Name a folder."),
        ("MODEL --tasks STSBenchmark --data data -o known", "known/results.json holds results of another, third."),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny_folder: Path, arguments: str, message: str) -> None:
    Path("taken").touch()
    Path("known").mkdir()
    Path("known/results.json").write_text('{"model": "another", "scores": {}, "compared": [{"model": "third"}]}')
    result = bellm("evaluate", *arguments.replace("MODEL", str(tiny_folder)).split())
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert message in line
    assert os.listdir("known") == ["results.json"]
    assert not Path("out/results.json").exists()


def test_force_replaces_results_of_others(tiny_folder: Path) -> None:
    Path("known").mkdir()
    Path("known/results.json").write_text("no results")
    command = ("evaluate", tiny_folder, "--tasks=STSBenchmark", "--data=data", "-o", "known")
    assert "something that bellm cannot read" in bellm(*command).stderr
    assert bellm(*command, "--force").exit_code == 0
    assert json.loads(Path("known/results.json").read_text())["model"] == str(tiny_folder)


def test_a_file_of_ones_own_beside_a_task(tiny_folder: Path) -> None:
    rows = "".join(f"Snow fell {n}.\tIt snowed {n % 4}.\t{n % 5}\n" for n in range(20))
    Path("my_pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    command = ("evaluate", tiny_folder, "--data=data", "--json", "--tasks=STSBenchmark,my_pairs.tsv", "-o", "out")
    result = bellm(*command)
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)["scores"]) == ["STSBenchmark", "my_pairs.tsv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1\tsentence2\tscore\na\tb\t1\n", "my.tsv: 1 items are too few for an interval. Give 3 or more."),
        ("premise\thypothesis\tlabel\n" + "a\tb\t0\na\tc\t1\na\td\t2\n", "the column 'label' holds classes (0, 1, 2)"),
        ("sentence1\tsentence2\tscore\n" + "a\tb\t1\n" * 4, "my.tsv: All 4 ratings are 1"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_before_a_model_is_loaded(content: str, message: str) -> None:
    Path("my.tsv").write_text(content)
    result = bellm("evaluate", "none/there", "--tasks=my.tsv", "-o", "out")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert message in line
    assert not Path("out/results.json").exists()


def test_a_model_whose_weights_are_no_numbers_ends_in_one_line(tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "broken", ignore=shutil.ignore_patterns("bellm*", "fingerprint*", "modules*"))
    weights = load_file("broken/model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    save_file({**weights, name: weights[name] * float("nan")}, "broken/model.safetensors", {"format": "pt"})
    command = ("--tasks=STSBenchmark", "--data=data", "-o", "out")
    result = bellm("evaluate", tiny_folder, "broken", *command)
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert "broken" in line
    assert "NaN" in line
    assert not Path("out/results.json").exists()


def test_a_model_that_gives_every_text_the_same_vector_is_said(tiny_folder: Path) -> None:
    source = f"{tiny_folder}?bidirectional=none&pooling=first&prompt=prompteol"
    result = bellm("evaluate", source, "--tasks=STSBenchmark", "--data=data", "-o", "out")
    assert result.exit_code == 0
    assert "gives every text of STSBenchmark the same vector" in result.stderr


def test_columns_of_a_file_of_your_own(tiny_folder: Path) -> None:
    rows = [line.split("\t")[4:7] for line in Path("data/stsbenchmark/sts-test.csv").read_text().splitlines()]
    Path("own.tsv").write_text("how\tleft\tright\n" + "".join("\t".join(row) + "\n" for row in rows))
    command = ("evaluate", tiny_folder, "--json")
    columns = "--columns=anchor=left,positive=right,score=how"
    own = json.loads(bellm(*command, "--tasks=own.tsv", columns, "-o", "one").stdout)
    known = json.loads(bellm(*command, "--tasks=STSBenchmark", "--data=data", "-o", "two").stdout)
    [score] = own["scores"].values()
    assert score["value"] == known["scores"]["STSBenchmark"]["value"]
