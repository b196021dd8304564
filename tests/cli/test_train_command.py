"""`bellm train`, as a user meets it."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import Encoder, MultiViewEncoder
from bellm.compress import center, quantize
from bellm.errors import BellmError, SourceError
from bellm.train import Recipe, load_dataset, train
from tests.cli.test_cli import bellm
from tests.evaluate.sets import write_pairs
from tests.train.rows import triplets

RECIPE = """
from bellm.train import InfoNCE, LoRA, Recipe

recipe = Recipe(
    model={model!r},
    encoder_options={{"bidirectional": "all", "pooling": "mean"}},
    tuning=LoRA(rank=2),
    objective=InfoNCE(temperature=0.1),
    batch_size=6,
    learning_rate=1e-3,
)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    with Path("t.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sent0", "sent1", "hard_neg"])
        table.writerows([one.anchor, one.positives[0], one.negatives[0]] for one in triplets(12))


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", [False, True])
def test_what_cannot_be_trained_is_refused_before_data_is_read(tiny_encoder: Encoder, recipe: bool) -> None:
    encoders = {
        "holds several views": MultiViewEncoder([tiny_encoder, tiny_encoder.replace(prompt="raw")]),
        "is quantized": quantize(tiny_encoder, 8),
        "centers its vectors": center(tiny_encoder, [f"{number} herons wait." for number in range(20)]),
    }
    Path("none.csv").write_text("not\none\n")
    for said, encoder in encoders.items():
        encoder.save_pretrained(folder := said.replace(" ", "-"))
        Path("recipe.py").write_text(RECIPE.format(model=folder))
        result = bellm("train", "recipe.py" if recipe else folder, "--data=none.csv", "-o", "out")
        assert said in result.stderr
    with pytest.raises(SourceError, match=r"none\.amr cannot be read"):
        train(
            Recipe(model=folder, graphs="none.amr", encoder_options={"centering": "none"}), load_dataset("t.csv"), "out"
        )
    with pytest.raises(BellmError, match="centers its vectors"):
        train(Recipe(model=folder, graphs="none.amr"), load_dataset("t.csv"), "out")
    assert "none.csv" in bellm("train", folder, "--data=none.csv", "-o", "out", "--centering=none").stderr
    assert "holds several views" in bellm("layers", "holds-several-views", "--train=none.csv", "-o", "layers").stderr
    assert not Path("out").exists()


def test_a_file_that_is_not_there_is_said_before_a_recipe_is_run() -> None:
    Path("recipe.py").write_text("raise SystemExit('it was run')\n")
    result = bellm("train", "recipe.py", "--data", "t.csv", "--data", "gone.csv*2", "-o", "out")
    assert result.stderr == "bellm: gone.csv cannot be read: No such file or directory.\n"


def test_a_model_and_a_file_make_an_encoder(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    command = ("train", tiny_folder, "--data=t.csv", "-o", "out", "--batch-size=4", "--seed=3", "--max-steps=2")
    result = bellm(*command, "--bidirectional=last:3", "--learning-rate=1e-2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "out/model is the encoder: bellm evaluate out/model -o report/\n"
    encoder = Encoder.from_pretrained("out/model")
    assert encoder.config.bidirectional == (1, 2, 3)
    assert encoder.config.prompt == tiny_encoder.config.prompt
    assert not np.allclose(encoder.encode(["Snow"]), tiny_encoder.replace(bidirectional="last:3").encode(["Snow"]))
    found = records("out")
    assert [record["step"] for record in found] == [1, 2]
    assert all(record["loss"] > 0 and record["tokens_per_second"] > 0 for record in found)
    assert [record["learning_rate"] for record in found] == pytest.approx([1e-2, 1e-2])
    card = Path("out/model/README.md").read_text(encoding="utf-8")
    assert "t.csv" in card
    assert f"| 2 | {found[1]['loss']:.4f} |" in card
    again = bellm(*command, "--bidirectional=last:3", "--learning-rate=1e-2")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert records("out") == found
    other = bellm(*command, "--bidirectional=last:2", "--learning-rate=1e-2")
    assert other.exit_code == 1
    assert other.stderr.startswith("bellm: out holds a run with other encoder_options (encoder_options")
    assert other.stderr.count("\n") == 1


def test_a_recipe_with_flags_before_it(tiny_folder: Path) -> None:
    Path("recipe.py").write_text(RECIPE.format(model=str(tiny_folder)), encoding="utf-8")
    result = bellm("train", "recipe.py", "--data=t.csv", "-o", "out", "--pooling=last", "--epochs=2", "--seed=9")
    assert (result.exit_code, result.stderr) == (0, "")
    described = json.loads(Path("out/run.json").read_text())
    assert described["encoder_options"].items() >= {"bidirectional": "all", "pooling": "last"}.items()
    assert (described["batch_size"], described["epochs"], described["seed"], described["steps"]) == (6, 2.0, 9, 4)
    assert described["learning_rate"] == 1e-3
    assert "temperature=0.1" in described["objective"]
    settings = Encoder.from_pretrained("out/model").config
    assert (settings.pooling, settings.bidirectional) == ("last", (0, 1, 2, 3))


def test_rows_that_cannot_be_read_are_told_with_their_lines(tiny_folder: Path) -> None:
    with Path("t.csv").open("a", encoding="utf-8") as file:
        file.write(",no anchor,here\nA heron waits.,It waits.,Snow fell.\nA baker,,\n")
    result = bellm("train", tiny_folder, "--data", "t.csv", "-o", "out", "--max-steps=1")
    assert result.exit_code == 0
    first, second, count = result.stderr.splitlines()
    assert first.startswith("note: t.csv")
    assert "14" in first
    assert "16" in second
    assert count == "note: 2 rows of t.csv are left out."


def test_hard_negatives_are_mined_first_and_once(tiny_folder: Path) -> None:
    command = ("train", tiny_folder, "--data=t.csv", "-o", "out", "--batch-size=2", "--mine=1", "--max-steps=2")
    result = bellm(*command)
    assert result.exit_code == 0
    (note,) = result.stderr.splitlines()
    assert re.match(r"note: mined \d+ hard negatives for 12 rows with the untrained encoder; \d+ near texts left", note)
    assert json.loads(Path("out/run.json").read_text())["mine"] == 1
    assert bellm(*command).stderr == ""


def test_several_files_with_weights(tiny_folder: Path) -> None:
    rows = [{"sentence1": one.anchor, "sentence2": one.positives[0]} for one in triplets(8)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ("--data", "t.csv", "--data", "p.jsonl*0.5", "-o", "out", "--batch-size=4")
    assert bellm("train", tiny_folder, *options).exit_code == 0
    sources = json.loads(Path("out/run.json").read_text())["data"]["sources"]
    assert [(source["name"], source["rows"], source["weight"]) for source in sources] == [
        ("t.csv", 12, 1.0),
        ("p.jsonl", 8, 0.5),
    ]
    assert len(records("out")) == 4


def test_patterns_and_columns_by_name(tiny_folder: Path) -> None:
    for part in (1, 2):
        rows = [{"left side": f"{one.anchor} {part}", "right": one.positives[0]} for one in triplets(4)]
        Path(f"part-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = bellm("train", tiny_folder, "--data=part-*.jsonl", "-o", "out", "--batch-size=2", "--max-steps=1")
    assert "no column for anchor or positive. Columns: 'left side', 'right'. Name those that count" in result.stderr
    options = ("--columns=anchor=left side,positive=right", "--batch-size=2", "--max-steps=1")
    result = bellm("train", tiny_folder, "--data=part-*.jsonl*2", "-o", "out", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    [source] = json.loads(Path("out/run.json").read_text())["data"]["sources"]
    assert (source["name"], source["rows"], source["weight"]) == ("part-*.jsonl", 8, 2.0)


def test_what_is_not_read_of_the_data_is_said(tiny_folder: Path) -> None:
    rows = [{"premise": f"{one.anchor}", "hypothesis": one.positives[0], "label": 0, "id": 3} for one in triplets(4)]
    rows += [{**row, "hypothesis": one.negatives[0], "label": 2} for row, one in zip(rows, triplets(4), strict=True)]
    Path("nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = bellm("train", tiny_folder, "--data=nli.jsonl", "-o", "out", "--batch-size=2", "--max-steps=1")
    assert result.exit_code == 0
    unread, joined = result.stderr.splitlines()
    assert unread.startswith("note: nli.jsonl: ")
    assert "'id'" in unread
    assert joined == "note: nli.jsonl: 8 rows of NLI make 4 triplets of premise, entailment and contradiction."
    assert json.loads(Path("out/run.json").read_text())["data"]["sources"][0]["rows"] == 4


def test_a_folder_of_something_else_is_refused(tiny_folder: Path) -> None:
    result = bellm("train", tiny_folder, "--data=t.csv", "-o", ".")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr == "bellm: . is no run directory: it holds 't.csv'. Choose another folder.\n"
    assert [path.name for path in Path().iterdir()] == ["t.csv"]


def test_scores_meanwhile_choose_the_weights(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(Path("data"), "dev")
    monkeypatch.setenv("BELLM_DATA", "data")
    options = ("--dev=STSBenchmark-dev", "--dev-every=2", "--batch-size=4", "--learning-rate=0.05")
    result = bellm("train", tiny_folder, "--data=t.csv", "-o", "out", *options)
    assert result.exit_code == 0, result.stderr
    scores = [record["dev"] for record in records("out")]
    assert scores[0] is None
    assert [line for line in result.stderr.splitlines() if line.startswith("note: step ")] == [
        f"note: step {record['step']}: loss {record['loss']:.4f}, dev {record['dev']:.4f}"
        for record in records("out")
        if record["dev"] is not None
    ]
    evaluated = bellm("evaluate", "out/model", "--tasks=STSBenchmark-dev", "--data=data", "--json", "-o", "report")
    best = max(score for score in scores if score is not None)
    found = json.loads(evaluated.stdout)["scores"]["STSBenchmark-dev"]
    assert found["value"] == pytest.approx(best, abs=0.1)
    card = Path("out/model/README.md").read_text(encoding="utf-8")
    low, high = map(float, re.findall(r"interval (\S+) to (\S+)\)", card)[0])
    assert (low, high) == pytest.approx((found["low"], found["high"]), abs=0.2)


def test_rated_pairs_of_your_own_choose_the_weights(tiny_folder: Path) -> None:
    with Path("dev.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["sentence1", "sentence2", "score"])
        table.writerows([one.anchor, one.positives[0], number % 5] for number, one in enumerate(triplets(12)))
    result = bellm("train", tiny_folder, "--data=t.csv", "-o", "out", "--dev=dev.csv", "--dev-every=1", "--max-steps=2")
    assert result.exit_code == 0, result.stderr
    assert [record["dev"] is not None for record in records("out")] == [True]
    assert "Best dev score" in Path("out/model/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("recipe.py", "--data=t.csv"), "There is no recipe recipe.py."),
        (("empty.py", "--data=t.csv"), "empty.py names no `recipe`. It should end with: recipe = Recipe(...)."),
        (("MODEL", "--data=none.csv"), "none.csv"),
        (("MODEL", "--data=t.csv*much"), "--data t.csv*much: 'much' is no weight."),
        (("MODEL", "--data=t.csv*0"), "weights above 0"),
        (("no/such/model", "--data=t.csv"), "no/such/model"),
        (("MODEL", "--data=t.csv", "--epochs=0"), "epochs=0.0 must be more than 0."),
        (("MODEL", "--data=t.csv", "--learning-rate=-1"), "learning_rate=-1.0 must be more than 0."),
        (("MODEL", "--data=t.csv", "--dev=nothing"), "'nothing' is no task."),
        (("MODEL", "--data=t.csv", "--dev=sts"), "sts stands for several tasks."),
        (("MODEL", "--data=t.csv", "--dev=STSBenchmark"), "STSBenchmark is a test set"),
        (("MODEL", "--data=t.csv", "--epochs=inf"), "epochs=inf must be finite"),
        (("MODEL", "--data="), "An empty name is no data"),
        (("MODEL", "--data=no-*.csv"), "no-*.csv matches no file."),
        (("typo.py", "--data=t.csv"), "typo.py, line 2: TypeError: "),
        (("MODEL", "--data=likely.csv"), "'my_score' may be the score, and would not be read."),
        (("MODEL", "--data=t.csv", "--columns=anchor=sent0,positive=nothing"), "no column 'nothing' for the positive"),
        (("MODEL", "--data=t.csv", "--columns=anker=sent0"), "'anker=sent0' names no column of a part"),
        (("MODEL", "--data=t.csv", "--bidirectional=last:9"), "last:9"),
        (("MODEL", "--data=t.csv", "--max-tokens=5"), "max_tokens=5 leaves no room"),
    ],
)
def test_a_mistake_is_one_line(tiny_folder: Path, arguments: tuple[str, ...], said: str) -> None:
    Path("empty.py").write_text("nothing = 0\n")
    Path("typo.py").write_text("from bellm.train import Recipe\nrecipe = Recipe(sed=3)\n")
    Path("likely.csv").write_text("sentence1,sentence2,my_score\na,b,3\n")
    given = [str(tiny_folder) if argument == "MODEL" else argument for argument in arguments]
    result = bellm("train", *given, "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("bellm: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("out/model").exists()


@pytest.mark.parametrize("option", ["--batch-size=0", "--max-steps=0", "--mine=0", "--seed=-1", "--pace=3"])
def test_a_flag_that_cannot_be(tiny_folder: Path, option: str) -> None:
    result = bellm("train", tiny_folder, "--data=t.csv", "-o", "out", option)
    assert result.exit_code == 2
    assert option.split("=")[0] in result.stderr
