"""C-STS as a task: sentences are joined with their condition, and cosines rank pairs as labels do."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from bellm import Encoder
from bellm.errors import SourceError
from bellm.evaluate import evaluate
from bellm.tensors.similarity import paired_cosine_similarity
from tests.evaluate.sets import SUBJECTS, VERBS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        [f"{SUBJECTS[n % 6]} {VERBS[n % 4]}.", f"{SUBJECTS[n % 5]} {VERBS[n % 3]}.", "Who it is.", str(1 + n % 5)]
        for n in range(30)
    ]
    (tmp_path / "csts").mkdir()
    with (tmp_path / "csts" / "csts_validation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["sentence1", "sentence2", "condition", "label"], *rows])
    return tmp_path


def test_pairs_are_scored_under_their_condition(tiny_encoder: Encoder, folder: Path) -> None:
    report = evaluate([tiny_encoder], ["C-STS"], data=folder, resamples=200)
    result, score = report.results[0]["C-STS"], report.runs[0].scores["C-STS"]
    assert result.texts[1] == ("The baker sleeps until noon. Who it is.", "The baker sleeps until noon. Who it is.")
    vectors = (tiny_encoder.encode(list(side)) for side in zip(*result.texts, strict=True))
    cosine_N = paired_cosine_similarity(*vectors)
    gold_N = np.array([1 + n % 5 for n in range(30)])
    assert score.metric == "Spearman of cosine"
    assert score.value == pytest.approx(100 * spearmanr(cosine_N, gold_N).statistic, abs=1)
    assert score.extra_metrics["Pearson"] == pytest.approx(100 * pearsonr(cosine_N, gold_N).statistic, abs=0.1)
    assert score.low < score.value < score.high
    assert not report.runs[0].averages


def test_a_missing_copy_is_said_with_where_to_get_it(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=r"no file csts/csts_validation\.csv. Get it from .*princeton-nlp/c-sts"):
        evaluate([tiny_encoder], ["c-sts"], data=tmp_path)
    monkeypatch.delenv("BELLM_DATA", raising=False)
    with pytest.raises(SourceError, match=r"C-STS needs a folder of data sets \(--data, BELLM_DATA\)"):
        evaluate([tiny_encoder], ["C-STS"])
