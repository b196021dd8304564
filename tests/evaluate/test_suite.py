import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm import Encoder
from bellm.data import LabeledTexts, STSPairs, sts
from bellm.data.task_names import STS, resolve_tasks
from bellm.errors import BellmError, NoOpWarning, SourceError
from bellm.evaluate.classification_task import ClassificationTask
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.models import load_models
from bellm.evaluate.report_page import write_report
from bellm.evaluate.results import Report, TaskResult
from bellm.evaluate.sts_task import STSTask
from bellm.evaluate.suite import DevEvaluator, evaluate, load_tasks
from bellm.evaluate.task import Task
from bellm.tensors import geometry
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import InputType, Vectors
from tests.evaluate.sets import write_pairs

TASKS = ("STSBenchmark", "STSBenchmark-dev")


@pytest.fixture
def report(tiny_encoder: Encoder, tmp_path: Path) -> Report:
    for split, count in (("test", 40), ("dev", 60)):
        write_pairs(tmp_path, split, count)
    models = [
        EvaluatedModel.of(tiny_encoder.replace(bidirectional=layers), layers, tmp_path / "cache")
        for layers in ("none", "all")
    ]
    return evaluate(models, TASKS, data=tmp_path, resamples=200)


def test_tasks_by_name_and_group() -> None:
    assert resolve_tasks(["sts"]) == STS
    assert resolve_tasks(["SciFact", "stsbenchmark", "sts"]) == ("SciFact", "STSBenchmark", *STS[:5], "SICK-R")
    with pytest.raises(BellmError, match="'STS17' is no task"):
        resolve_tasks(["STS17"])


def test_scores_are_spearman_with_an_interval_around(report: Report, tiny_encoder: Encoder) -> None:
    run = report.runs[0]
    assert list(run.scores) == list(TASKS)
    result = report.results[0]["STSBenchmark-dev"]
    vectors = [
        tiny_encoder.replace(bidirectional="none").encode(list(texts)) for texts in zip(*result.texts, strict=True)
    ]
    score = run.scores["STSBenchmark-dev"]
    assert score.value == pytest.approx(
        100 * spearmanr(paired_cosine_similarity(*vectors), result.gold_N).statistic, abs=0.5
    )
    assert score.low < score.value < score.high
    assert score.n == 60
    assert run.averages == {}
    assert run.differences == {}
    assert run.metadata["evaluation"]["resamples"] == 200
    assert run.metadata["evaluation"]["versions"]["bellm"]


def test_the_second_run_is_compared_with_the_first(report: Report) -> None:
    run = report.runs[1]
    for task, found in run.differences.items():
        assert found.value == pytest.approx(run.scores[task].value - report.runs[0].scores[task].value)
        assert found.low <= found.value <= found.high
    assert set(run.differences) == set(TASKS)


def test_all_seven_have_an_average(tiny_encoder: Encoder, data: Path) -> None:
    # The real sets, and vectors that cost nothing: counts of letters.
    class Letters:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[text.lower().count(letter) for letter in "etaoinshrdlu"] for text in texts], np.float32)

    found = evaluate([EvaluatedModel.of(Letters())], ["sts"], data=data, resamples=100).runs[0]
    assert {task: score.n for task, score in found.scores.items()} == dict(
        zip(STS, (3108, 1500, 3750, 3000, 1186, 1379, 4927), strict=True)
    )
    average = found.averages["STS average"]
    assert average.value == pytest.approx(np.mean([score.value for score in found.scores.values()]))
    assert average.low < average.value < average.high
    assert average.high - average.low < max(score.high - score.low for score in found.scores.values())


def test_progress_and_the_cache(tiny_encoder: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    told: list[tuple[str, str, int, int]] = []
    for _ in range(2):
        model = EvaluatedModel.of(tiny_encoder, "tiny", tmp_path / "cache")
        evaluate([model], ["STSBenchmark"], data=tmp_path, progress=lambda *now: told.append(now))
    texts = told[0][3]
    assert 40 < texts < 80
    assert told[:2] == [("tiny", "STS", 0, texts), ("tiny", "STS", texts, texts)]
    assert told[3] == ("tiny", "STS", texts, texts)


def test_sets_of_ones_own(tiny_encoder: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    own = STSTask("ours", data=sts.read_sts("STSBenchmark", tmp_path))
    [run] = evaluate([EvaluatedModel.of(tiny_encoder)], ["STSBenchmark", own], data=tmp_path, resamples=1).runs
    assert list(run.scores) == ["STSBenchmark", "ours"]
    assert run.scores["ours"] == run.scores["STSBenchmark"]


def test_a_set_that_is_not_there(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="STS12"):
        evaluate([EvaluatedModel.of(tiny_encoder)], ["STS12"], data=tmp_path)


def test_the_record(report: Report) -> None:
    found = report.to_json()
    assert found["model"] == "none"
    assert set(found["scores"]["STSBenchmark"]) >= {"metric", "value", "low", "high", "n"}
    assert found["scores"]["STSBenchmark"]["value"] == round(report.runs[0].scores["STSBenchmark"].value, 4)
    assert "differences" not in found
    [other] = found["compared"]
    assert other["model"] == "all"
    assert other["metadata"]["open_layers"] == [0, 1, 2, 3]
    assert set(other["differences"]["STSBenchmark"]) == {"value", "low", "high", "p_value"}


def test_geometry_is_that_of_the_texts_of_rated_pairs(report: Report, tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(bidirectional="none")
    pairs = [
        (*texts, gold) for it in report.results[0].values() for texts, gold in zip(it.texts, it.gold_N, strict=True)
    ]
    vectors = encoder.encode(list(dict.fromkeys(text for left, right, _ in pairs for text in (left, right))))
    close = [(left, right) for left, right, gold in pairs if gold >= 4]
    expected = {
        "num_texts": len(vectors),
        "anisotropy": geometry.anisotropy(vectors),
        "uniformity": geometry.uniformity(vectors),
        "effective_rank": geometry.effective_rank(vectors),
        "alignment": geometry.alignment(*(encoder.encode(side) for side in zip(*close, strict=True))),
    }
    assert dict(report.runs[0].geometry) == pytest.approx(expected, rel=1e-3)
    assert report.to_json()["geometry"]["anisotropy"] == pytest.approx(expected["anisotropy"], abs=1e-3)


class Questions(Task[list[str]]):
    """How many texts have a first number that is positive where they ask."""

    kind = "questions"

    def load(self, folder: Path | None, *, clean: bool = False) -> list[str]:
        return [f"Is it {number}?" if number % 3 else f"It is {number}." for number in range(30)]

    def texts(self, data: list[str]) -> dict[InputType, list[str]]:
        return {"query": data}

    def score(self, data: list[str], vectors: Mapping[InputType, Vectors]) -> TaskResult:
        right = (vectors["query"][:, 0] > 0) == np.array(["?" in text for text in data])
        return TaskResult(self.name, "accuracy", right.astype(np.float64))


def test_a_kind_of_task_of_ones_own_is_scored_reported_and_cached(tiny_encoder: Encoder, tmp_path: Path) -> None:
    tasks = [Questions("Q1", average="Q average"), Questions("Q2", average="Q average")]
    told: list[tuple[str, str, int, int]] = []
    reports = []
    for _ in range(2):
        model = EvaluatedModel.of(tiny_encoder, "tiny", tmp_path / "cache")
        reports.append(evaluate([model], tasks, resamples=200, progress=lambda *now: told.append(now)))
    texts = Questions("Q1").load(None)
    hits = (tiny_encoder.encode_query(texts)[:, 0] > 0) == np.array(["?" in text for text in texts])
    [run] = reports[0].runs
    assert run.scores["Q1"].value == pytest.approx(100 * hits.mean())
    assert run.averages["Q average"].value == pytest.approx(100 * hits.mean())
    assert (reports[0].results[0]["Q1"].num_texts, run.geometry) == (30, {})
    assert [now for now in told if now[1] == "questions"][-1] == ("tiny", "questions", 30, 30)
    assert told[0] == ("tiny", "questions", 0, 30)
    write_report(reports[1], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["Q2"]["metric"] == "accuracy"
    assert "Q average" in (tmp_path / "out" / "report.md").read_text()


def test_a_dev_score_is_that_of_an_evaluation(tiny_encoder: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path, "dev")
    score = DevEvaluator("stsbenchmark-dev", str(tmp_path))(tiny_encoder)
    [run] = evaluate([tiny_encoder], ["STSBenchmark-dev"], data=tmp_path).runs
    assert score == run.scores["STSBenchmark-dev"]


def test_dev_data_is_read_once(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text(OWN)
    dev = DevEvaluator(str(tmp_path / "own.tsv"))
    first = dev(tiny_encoder)
    (tmp_path / "own.tsv").unlink()
    assert dev(tiny_encoder) == first


def test_a_dev_set_is_one_task_that_is_there_and_no_test_set(tmp_path: Path) -> None:
    with pytest.raises(BellmError, match="sts stands for several tasks"):
        DevEvaluator("sts")
    with pytest.raises(BellmError, match="STSBenchmark is a test set"):
        DevEvaluator("STSBenchmark")
    with pytest.raises(BellmError, match=r"sts-dev"):
        DevEvaluator("STSBenchmark-dev", str(tmp_path))


OWN = "sentence1\tsentence2\tscore\n" + "".join(
    f"{left} {n}.\t{right} {n % 4}.\t{n % 5}\n" for n, (left, right) in enumerate([("Snow fell", "It snowed")] * 20)
)


def test_a_file_of_ones_own_is_a_task_wherever_a_task_has_a_name(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text(OWN)
    name = str(tmp_path / "own.tsv")
    [by_name] = evaluate([tiny_encoder], [name], resamples=200).runs
    [by_path] = evaluate([tiny_encoder], [tmp_path / "own.tsv"], resamples=200).runs
    pairs = STSPairs(
        "x",
        *zip(*(line.split("\t")[:2] for line in OWN.splitlines()[1:]), strict=True),
        np.arange(20.0) % 5,
        ("x",) * 20,
    )
    [direct] = evaluate([tiny_encoder], [STSTask("x", data=pairs)], resamples=200).runs
    assert by_name.scores == by_path.scores == {name: direct.scores["x"]}
    assert DevEvaluator(name)(tiny_encoder).value == by_name.scores[name].value


def test_texts_with_classes_of_ones_own_are_classified(tiny_encoder: Encoder, tmp_path: Path) -> None:
    rows = [("Snow fell", "cold"), ("Bread rises", "warm")] * 15
    (tmp_path / "own.csv").write_text(
        "text,label\n" + "".join(f"{text} {n}.,{kind}\n" for n, (text, kind) in enumerate(rows))
    )
    [run] = evaluate([tiny_encoder], [tmp_path / "own.csv"], resamples=200).runs
    [score] = run.scores.values()
    assert (score.metric, score.n) == ("accuracy", 30)
    assert score.value > 90


def test_what_cannot_be_scored_is_refused_before_a_text_is_embedded(tmp_path: Path) -> None:
    def embed(texts: list[str]) -> Vectors:
        raise AssertionError(texts)

    model = SimpleNamespace(encode=embed)
    lines = OWN.splitlines()
    for content, message in (
        ("\n".join(lines[:2]), "own.tsv: 1 items are too few"),
        ("\n".join([lines[0], *(lines[1] for _ in range(4))]), "own.tsv: All 4 ratings are 0"),
        ("text\tlabel\n" + "a\tgood\nb\tbad\n" * 2, "own.tsv has classes of 2, 2 rows"),
    ):
        (tmp_path / "own.tsv").write_text(content)
        with pytest.raises(BellmError, match=message):
            evaluate([model], [tmp_path / "own.tsv"])
    one = STSPairs("one", ("a",), ("b",), np.array([1.0]), ("one",))
    with pytest.raises(BellmError, match="one: 1 items are too few"):
        STSTask("one", data=one)
    with pytest.raises(BellmError, match="classes of 1, 1 rows"):
        ClassificationTask("two", data=LabeledTexts("two", (("a", "b"),), np.array([0, 1])))
    with pytest.raises(BellmError, match="No task is named"):
        load_tasks([])


def test_the_last_of_several_models_fails_before_the_first_is_scored(tiny_encoder: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    asked: list[str] = []

    def embed(texts: list[str]) -> Vectors:
        asked.extend(texts)
        return tiny_encoder.encode(texts)

    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "Another text.", "vector": [1.0, 2.0]}) + "\n")
    models = [SimpleNamespace(encode=embed), *load_models([f"vectors:{tmp_path / 'v.jsonl'}"])]
    with pytest.raises(SourceError, match="has no vector for"):
        evaluate(models, ["STSBenchmark"], data=tmp_path)
    assert len(asked) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_and_not_kept(
    tiny_encoder: Encoder, tmp_path: Path, bad: float
) -> None:
    write_pairs(tmp_path)

    class Broken:
        name = "broken"
        embedding_dim = 2
        number = 0.0

        def encode(self, texts: list[str], **_: object) -> Vectors:
            vectors = np.array([[len(text), 1] for text in texts], np.float32)
            vectors[-1, 0] = self.number if len(texts) > 1 else 1
            return vectors

        def fingerprint(self) -> Vectors:
            return np.ones((2, 2), np.float32)

        def describe(self) -> dict[str, object]:
            return {"dtype": "float32"}

    broken = Broken()
    broken.number = bad
    with pytest.raises(BellmError, match=r"^broken: 1 of \d+ vectors hold NaN or infinity. .*float32\.$"):
        evaluate([EvaluatedModel.of(broken, cache=tmp_path / "cache")], ["STSBenchmark"], data=tmp_path)
    broken.number = 1.0
    [run] = evaluate([EvaluatedModel.of(broken, cache=tmp_path / "cache")], ["STSBenchmark"], data=tmp_path).runs
    assert np.isfinite(run.scores["STSBenchmark"].value)


def test_constant_vectors_and_vectors_of_zeros_are_said(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    same = SimpleNamespace(name="same", encode=lambda texts: np.ones((len(texts), 3), np.float32))
    with pytest.warns(NoOpWarning, match="same gives every text of STSBenchmark the same vector"):
        [run] = evaluate([same], ["STSBenchmark"], data=tmp_path).runs
    score = run.scores["STSBenchmark"]
    assert (score.value, dict(score.extra_metrics)) == (0, {"Pearson": 0})

    def embed(texts: list[str]) -> Vectors:
        return np.array([[0, 0] if text.startswith("A heron") else [len(text), 1] for text in texts], np.float32)

    with pytest.warns(NoOpWarning, match="some gives some texts of STSBenchmark vectors of zeros"):
        evaluate([SimpleNamespace(name="some", encode=embed)], ["STSBenchmark"], data=tmp_path)
