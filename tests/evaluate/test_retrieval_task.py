import math

import numpy as np
import pytest

from bellm.data.retrieval import RetrievalData
from bellm.evaluate import retrieval_task
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import TaskResult
from bellm.evaluate.retrieval_task import RetrievalTask
from bellm.evaluate.task import score_task
from bellm.types import Vectors

DOCUMENTS = tuple(f"document {number}" for number in range(30))
QUERIES = ("first", "second", "third")


class Planted:
    """Cosine of a query with document n is cos(n / 30 + shift): the ranking is known."""

    def encode(self, texts: list[str]) -> Vectors:
        raise AssertionError("searches have roles")

    def encode_query(self, texts: list[str]) -> Vectors:
        return np.array([[1, 0]] * len(texts), dtype=np.float32)

    def encode_document(self, texts: list[str]) -> Vectors:
        angles = np.array([int(text.split()[1]) / 30 for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


RELEVANT = {"q0": {"d0": 1, "d3": 1}, "q1": {"d2": 2, "d1": 1, "d20": 1}, "q2": {"d25": 1, "d4": 0}}
COLLECTION = RetrievalData(
    "planted", tuple(f"d{n}" for n in range(30)), DOCUMENTS, ("q0", "q1", "q2"), QUERIES, RELEVANT
)


def planted_result() -> TaskResult:
    return score_task(EvaluatedModel.of(Planted()), RetrievalTask("planted", data=COLLECTION))


def gain(places: dict[int, int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in places.items())


def test_scores_are_those_of_the_planted_ranking() -> None:
    result = planted_result()
    expected = [
        gain({0: 1, 3: 1}) / gain({0: 1, 1: 1}),
        gain({2: 2, 1: 1}) / gain({0: 2, 1: 1, 2: 1}),
        0.0,
    ]
    np.testing.assert_allclose(result.item_scores_N, expected, atol=1e-6)
    assert result.gold_N is None
    assert result.metric == "nDCG@10"
    assert result.extra_metrics["Recall@10"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert result.extra_metrics["Recall@100"] == pytest.approx(100)
    assert result.extra_metrics["MRR@10"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    precisions = ((1 + 2 / 4) / 2, (1 / 2 + 2 / 3 + 3 / 21) / 3, 1 / 26)
    assert result.extra_metrics["MAP@100"] == pytest.approx(100 * sum(precisions) / 3)
    assert result.num_texts == 33


def test_many_queries_are_ranked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planted_result()
    monkeypatch.setattr(retrieval_task, "_SCORES", 31)
    np.testing.assert_array_equal(planted_result().item_scores_N, whole.item_scores_N)
