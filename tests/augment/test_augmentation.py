"""`augment` and `bellm augment` end to end on a tiny encoder: files, pages, resumption, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bellm import BellmError, Encoder
from bellm.augment import LabelScorer, augment, read_task, write_augmentation
from bellm.augment.augmentation import _features
from bellm.augment.parses import write_parses
from bellm.augment.tasks import LabeledTask
from bellm.cli import app
from bellm.corpus import build_index, embed_corpus
from bellm.errors import SourceError
from bellm.evaluate import EvaluatedModel
from bellm.prompts import SENSE_HINT
from bellm.report import statistics

BIRDS = ("A heron waits in the water", "The bird sings at noon")
WEATHER = ("Snow fell all night", "It rained in the street")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    lines = [
        f"{text} on day {day}.,{label}"
        for day in range(10)
        for label, texts in (("bird", BIRDS), ("weather", WEATHER))
        for text in texts
    ]
    (folder / "items.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    graphs = [
        f"# ::snt {line.partition(',')[0]}\n(s / say-01 :ARG1 (d / day :quant {number}))\n"
        for number, line in enumerate(lines)
        if number % 5
    ]
    (folder / "graphs.amr").write_text("\n".join(graphs))
    (folder / "said.csv").write_text(
        "text,label,confidence\n" + "".join(f"{line},{0.5 + number / 100}\n" for number, line in enumerate(lines))
    )
    return folder


def run(encoder: Encoder, folder: Path, output: Path, **options: Any) -> Any:
    settings = {"graphs": str(folder / "graphs.amr"), "cache": folder / "cache", "resamples": 200, "limit": 12}
    return augment(encoder, str(folder / "items.csv"), output, **{**settings, **options})


ALL = ("hint", "sp-input", "sp-output", "amr", "receipt", "retrieval")


def test_every_arm_on_the_same_items_with_a_page(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    found = run(encoder, folder, tmp_path, arms=ALL, ablation=True)
    record = write_augmentation(found, "tiny", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(record))
    assert list(record["arms"]) == ["plain", "probe", *ALL]
    for name, arm in record["arms"].items():
        assert {"metric", "value", "low", "high", "difference", "p", "n"} <= set(arm), name
        assert (arm["metric"], arm["n"]) == ("accuracy", 12)
        assert arm["low"] <= arm["value"] <= arm["high"]
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [item["texts"][0] for item in items] == list(found.items.columns[0])
    for name, arm in record["arms"].items():
        right = [item["answers"][name] == item["label"] for item in items]
        assert 100 * np.mean(right) == pytest.approx(arm["value"])
        assert all(item["probabilities"][name] >= 0.5 for item, is_right in zip(items, right, strict=True) if is_right)
    assert record["arms"]["plain"]["difference"] == 0
    assert len(record["ablation"]) == 10
    assert record["probe"]["temperature"] > 0
    page = (tmp_path / "augment.html").read_text()
    for words in ("confidence be trusted?", "By confidence of the receipt", "With fewer words", "When does"):
        assert words in page
    markdown = (tmp_path / "augment.md").read_text()
    assert markdown.startswith("# Side information for items.csv\n\n- 12 items of items.csv: ")
    assert "| receipt |" in markdown


def test_numbers_are_those_of_a_scorer_and_paired_statistics(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    found = run(encoder, folder, tmp_path, arms="hint", length_normalized=True, graphs=None)
    task = read_task(str(folder / "items.csv"), limit=12)
    instruction = "Choose the label of the text from: bird, weather."
    hint = f" {SENSE_HINT}"
    estimates = []
    for given in (instruction, instruction + hint):
        prompts = [f"{given}\nText: {text}\nLabel:" for text in task.test.columns[0]]
        scores = LabelScorer(encoder, length_normalized=True).score(prompts, ["bird", "weather"])
        right = (scores.argmax(1) == task.test.labels_N).astype(float)
        estimates.append(statistics.bootstrap_estimate(right, resamples=200))
    arms = found.comparison.arms
    assert (arms["plain"].score.value, arms["hint"].score.value) == tuple(each.value for each in estimates)
    apart = statistics.paired_difference(estimates[1], estimates[0])
    assert (arms["hint"].to_plain.low, arms["hint"].to_plain.high) == (apart.low, apart.high)


def test_a_stopped_run_goes_on_and_scores_nothing_twice(
    encoder: Encoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = LabelScorer.score_with_stats

    def counted(self: LabelScorer, prompts: Sequence[Any], labels: Sequence[str], **options: Any) -> Any:
        scored.append(len(prompts))
        if len(scored) == 2 and sum(scored) < 30:
            raise KeyboardInterrupt
        return score(self, prompts, labels, **options)

    monkeypatch.setattr(LabelScorer, "score_with_stats", counted)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, folder, tmp_path, arms="hint,receipt", graphs=None)
    assert scored == [12, 12]
    whole = run(encoder, folder, tmp_path, arms="hint,receipt", graphs=None)
    assert scored == [12, 12, 12, 12]
    again = run(encoder, folder, tmp_path, arms="hint,receipt", graphs=None)
    assert len(scored) == 4
    assert again.to_json()["arms"] == whole.to_json()["arms"]
    run(encoder, folder, tmp_path, arms="hint", length_normalized=True, graphs=None)  # Other settings are scored anew.
    assert len(scored) == 6
    kept = tmp_path / "scores.jsonl"
    for value in ("null", "[1.0]", "[1.0, NaN]", '"ab"', "5"):
        lines = (json.loads(line)["key"] for line in kept.read_text().splitlines())
        kept.write_text("".join(f'{{"key": "{key}", "value": {value}}}\n' for key in lines))
        again = run(encoder, folder, tmp_path, arms="hint,receipt", graphs=None)
        assert again.to_json()["arms"] == whole.to_json()["arms"]


def test_receipts_of_a_file_take_the_place_of_the_probe(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    said = {"arms": "receipt", "graphs": None, "shots": 2}
    found = run(encoder, folder, tmp_path, predictions=str(folder / "said.csv"), **said)
    assert found.comparison.arms["probe"].score.value == 100
    assert found.probe["receipts_from"] == str(folder / "said.csv")
    assert found.probe["ece_before"] is None
    (folder / "few.csv").write_text("text,label,confidence\nNothing.,bird,0.5\n")
    with pytest.raises(SourceError, match=r"few.csv lacks 12 of 12 items"):
        run(encoder, folder, tmp_path, predictions=str(folder / "few.csv"), **said)


def test_passages_come_from_a_corpus(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Herons are birds.\nSnow is weather.\nTrains are late.\n")
    encoder.save_pretrained(tmp_path / "encoder")
    saved = Encoder.from_pretrained(tmp_path / "encoder")
    notes, source = [tmp_path / "notes.txt"], str(tmp_path / "encoder")
    embed_corpus(saved, notes, tmp_path / "kept", source=source, keep_text=True)
    build_index(tmp_path / "kept")
    shown = {"graphs": None, "corpus": tmp_path / "kept"}
    found = run(saved, folder, tmp_path / "out", arms="retrieval", neighbors=2, **shown)
    assert "cosine of the nearest" in {
        *found.comparison.helpfulness["retrieval"].effects,
        *found.comparison.helpfulness["retrieval"].left_out,
    }
    with pytest.raises(BellmError, match="belong to the arm retrieval"):
        run(saved, folder, tmp_path / "out", arms="hint", **shown)


def test_features_of_pairs_are_those_of_senteval(encoder: Encoder) -> None:
    from bellm.data import LabeledTexts

    pairs = LabeledTexts("pairs", (("Snow fell.", "A heron."), ("It snowed.", "A bird.")), np.array([0, 1]))
    features, near = _features(pairs, EvaluatedModel.of(encoder), lambda *_: None)
    left, right = encoder.encode(list(pairs.columns[0])), encoder.encode(list(pairs.columns[1]))
    np.testing.assert_allclose(features, np.hstack([abs(left - right), left * right]), atol=1e-5)
    assert near.shape == (2, 2 * encoder.embedding_dim)


def test_written_parses_are_those_of_the_model_alone(encoder: Encoder) -> None:
    texts = ["Snow fell.", "A heron stands in the shallow water and waits."]
    together = write_parses(encoder, texts)
    assert together == [write_parses(encoder, [text])[0] for text in texts]
    assert all("\n" not in each for each in together)
    with pytest.raises(BellmError, match="max_tokens=60 leaves no room for parses: sp-output needs at least 80"):
        write_parses(encoder.replace(max_tokens=60), texts)


def test_graphs_that_are_missing_are_said(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.amr").write_text("# ::snt Nothing.\n(n / nothing)\n")
    with pytest.raises(BellmError, match="None of the test texts has an AMR graph"):
        run(encoder, folder, tmp_path, arms="amr", graphs=str(tmp_path / "other.amr"))
    with pytest.raises(BellmError, match=r"There are no AMR graphs of items.csv: give --graphs FILE"):
        run(encoder, folder, tmp_path, arms="amr", graphs=None)


def test_what_belongs_to_another_arm_or_is_out_of_range_is_refused(
    encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    for options, said in (
        ({"arms": "hint", "ablation": True, "graphs": None}, "The ablation is one of the arm amr"),
        ({"arms": "hint"}, "AMR graphs belong to the arms amr and sp-input"),
        ({"arms": "amr", "limit": 2}, "limit=2 is too small: give at least 3"),
        ({"arms": "amr", "limit": -1}, "limit=-1 is too small"),
        ({"arms": "amr", "train_limit": 0}, "train_limit=0 is too small"),
        ({"arms": "amr", "seed": -1}, "seed=-1 is too small"),
        ({"arms": "amr", "neighbors": 0}, "neighbors=0 is too small"),
        ({"arms": "amr", "shots": -1}, "shots=-1 is too small"),
        ({"arms": "amr", "resamples": 0}, "resamples=0 is too small"),
        ({"arms": "amr,retrieval", "neighbors": 21}, "neighbors=21 is more than the 20 training items"),
    ):
        with pytest.raises(BellmError, match=said):
            run(encoder, folder, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_shows_a_test_item_solved(folder: Path, tmp_path: Path) -> None:
    items = (folder / "items.csv").read_text()
    task = read_task(str(folder / "items.csv"), train=str(folder / "items.csv"), limit=10)
    assert len(task.train.labels_N) == 30
    assert not {*task.train.columns[0]} & {*task.test.columns[0]}
    with pytest.raises(SourceError, match="those with the texts of test items do not count"):
        read_task(str(folder / "items.csv"), train=str(folder / "items.csv"))
    (tmp_path / "again.csv").write_text(items.replace(" waits", "  WAITS"))
    with pytest.raises(SourceError, match="do not count"):
        read_task(str(folder / "items.csv"), train=str(tmp_path / "again.csv"))
    with pytest.raises(BellmError, match="10 training items have the texts of test items"):
        LabeledTask(task.name, task.prompt, task.test, task.test)


def test_the_probe_is_said_in_and_out_of_its_distribution(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    found = run(encoder, folder, tmp_path, arms="receipt", calibration="batch", graphs=None)
    learned = found.probe["out_of_fold"]
    assert learned["n"] == 20
    assert sum(each.n for each in found.reliability_out_of_fold) == 20
    assert 0 <= learned["ece_after"] <= 1
    assert f"it is right for {learned['accuracy']:.1f} %" in " ".join(found.summary)
    reach = found.comparison.arms["receipt"].to_plain.reach
    assert reach > 0
    assert f"one arm alone must differ by {reach:.1f} points to be told from chance" in " ".join(found.summary)


# The command


def bellm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["augment", *map(str, arguments)])


def test_the_command_writes_its_folder_and_says_what_it_found(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "tiny")
    task = ("--task", folder / "items.csv", "--with", "hint,receipt", "--limit", 10)
    common = (tmp_path / "tiny", *task, "-o", tmp_path / "out")
    result = bellm(*common, "--cache", tmp_path / "cache", "--calibration", "batch")
    assert result.exit_code == 0, result.output
    assert "10 items of items.csv" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "augment.html",
        "augment.md",
        "items.jsonl",
        "results.json",
        "scores.jsonl",
    ]
    again = bellm(*common, "--cache", tmp_path / "cache", "--calibration", "batch", "--json")
    assert json.loads(again.stdout)["arms"].keys() == {"plain", "probe", "hint", "receipt"}
    other = bellm("smollm2", *common[1:])
    assert "is about" in other.stderr


def test_help_teaches() -> None:
    assert bellm("--help").stdout.count("Example: bellm augment smollm2") == 3


# Tasks by name


def test_tasks_by_name(data: Path) -> None:
    sizes = {"SST2-MR": 10_662, "SST2-CR": 3775, "MRPC": 1725, "MRPC-QQP": 10_000, "TREC": 500, "SICK-E": 4927}
    for name, number in {**sizes, "SciFact": 188, "SST2": 1821}.items():
        task = read_task(name, data, train_limit=300)
        assert len(task.test.labels_N) == number, name
        assert len(task.train.labels_N) == 300
        assert task.out_of_distribution == ("-" in name and name != "SICK-E")


def test_graphs_of_mrpc_are_at_hand(data: Path) -> None:
    from bellm.augment.tasks import task_graphs

    task = read_task("MRPC", data, limit=20, train_limit=20)
    graphs = task_graphs(task, data)
    assert graphs
    texts = [text for column in task.test.columns for text in column]
    assert graphs.num_missing(texts) < 4
