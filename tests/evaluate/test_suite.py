from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm import Encoder
from bellm.data import sts
from bellm.errors import BellmError, SourceError
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.models import from_encoder
from bellm.evaluate.record import report_to_json
from bellm.evaluate.results import Report
from bellm.evaluate.suite import STS, evaluate, resolve_tasks
from bellm.tensors.similarity import paired_cosine_similarity
from tests.evaluate.sets import write_pairs

TASKS = ("STSBenchmark", "STSBenchmark-dev")


@pytest.fixture
def report(tiny_encoder: Encoder, tmp_path: Path) -> Report:
    for split, count in (("test", 40), ("dev", 60)):
        write_pairs(tmp_path, split, count)
    models = [
        from_encoder(tiny_encoder.replace(bidirectional=layers), layers, tmp_path / "cache")
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
    assert run.facts["evaluation"]["resamples"] == 200
    assert run.facts["evaluation"]["versions"]["bellm"]


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
        model = from_encoder(tiny_encoder, "tiny", tmp_path / "cache")
        evaluate([model], ["STSBenchmark"], data=tmp_path, progress=lambda *now: told.append(now))
    texts = told[0][3]
    assert 40 < texts < 80
    assert told[:2] == [("tiny", "STS", 0, texts), ("tiny", "STS", texts, texts)]
    assert told[3] == ("tiny", "STS", texts, texts)


def test_sets_of_ones_own(tiny_encoder: Encoder, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    own = replace(sts.read_sts("STSBenchmark", tmp_path), name="ours")
    [run] = evaluate([EvaluatedModel.of(tiny_encoder)], ["STSBenchmark", own], data=tmp_path).runs
    assert list(run.scores) == ["STSBenchmark", "ours"]
    assert run.scores["ours"] == run.scores["STSBenchmark"]


def test_a_set_that_is_not_there(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="STS12"):
        evaluate([EvaluatedModel.of(tiny_encoder)], ["STS12"], data=tmp_path)


def test_the_record(report: Report) -> None:
    found = report_to_json(report)
    assert found["model"] == "none"
    assert set(found["scores"]["STSBenchmark"]) >= {"metric", "value", "low", "high", "n"}
    assert found["scores"]["STSBenchmark"]["value"] == round(report.runs[0].scores["STSBenchmark"].value, 4)
    assert "differences" not in found
    [other] = found["compared"]
    assert other["model"] == "all"
    assert other["facts"]["open_layers"] == [0, 1, 2, 3]
    assert set(other["differences"]["STSBenchmark"]) == {"value", "low", "high", "p_value"}
