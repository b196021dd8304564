import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from bellm import Encoder
from bellm.data.sts import STSPairs
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.sts_task import measure_geometry, score_sts
from bellm.tensors.similarity import cosine_similarity

LEFT = (
    "A heron waits.",
    "Snow fell all night.",
    "The bread rises.",
    "A train is late.",
    "Snow fell all night.",
    "Why?",
)
RIGHT = ("A bird waits.", "It snowed.", "The invoice was paid.", "The train was late.", "Two herons.", "Because.")
PAIRS = STSPairs("six", LEFT, RIGHT, np.array([4.5, 4, 0.5, 4.8, 0, 2]), ("one", "one", "one", "two", "two", "two"))


def test_the_items_are_cosines_and_the_parts_are_scored_apart(tiny_encoder: Encoder) -> None:
    result = score_sts(EvaluatedModel.of(tiny_encoder), PAIRS)
    cosines = [
        float(cosine_similarity(*(tiny_encoder.encode([text]) for text in pair))[0, 0])
        for pair in zip(LEFT, RIGHT, strict=True)
    ]
    np.testing.assert_allclose(result.item_scores_N, cosines, atol=1e-5)
    assert result.item_scores_N.dtype == np.float64
    np.testing.assert_array_equal(result.gold_N, PAIRS.gold_N)
    assert result.texts[4] == ("Snow fell all night.", "Two herons.")
    assert (result.task, result.metric, result.num_texts, result.num_truncated) == (
        "six",
        "Spearman of cosine",
        11,
        0,
    )
    parts = [spearmanr(result.item_scores_N[part], PAIRS.gold_N[part]).statistic for part in (slice(3), slice(3, 6))]
    assert result.extra_metrics["mean of parts"] == pytest.approx(100 * np.mean(parts))
    assert result.extra_metrics["Pearson"] == pytest.approx(
        100 * pearsonr(result.item_scores_N, PAIRS.gold_N).statistic
    )


def test_parts_are_weighted_by_their_size(tiny_encoder: Encoder) -> None:
    pairs = STSPairs("six", LEFT, RIGHT, PAIRS.gold_N, ("one", "one", "two", "two", "two", "two"))
    result = score_sts(EvaluatedModel.of(tiny_encoder), pairs)
    first, second = (
        spearmanr(result.item_scores_N[part], pairs.gold_N[part]).statistic for part in (slice(2), slice(2, 6))
    )
    assert result.extra_metrics["weighted mean of parts"] == pytest.approx(100 * (2 * first + 4 * second) / 6)


def test_a_set_without_parts_has_no_mean_of_them(tiny_encoder: Encoder) -> None:
    pairs = STSPairs("six", LEFT, RIGHT, PAIRS.gold_N, ("six",) * 6)
    assert set(score_sts(EvaluatedModel.of(tiny_encoder), pairs).extra_metrics) == {"Pearson"}


def test_pairs_rated_4_or_more_are_aligned() -> None:
    pairs = STSPairs("two", ("Snow.", "Rain."), ("Ice.", "Hail."), np.array([4.0, 3.9]), ("two", "two"))
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
    assert measure_geometry([(pairs, vectors)])["alignment"] == 2


def test_two_vectors_have_a_geometry_and_one_has_none() -> None:
    pairs = STSPairs("one", ("Snow.",), ("Ice.",), np.array([5.0]), ("one",))
    found = measure_geometry([(pairs, np.array([[1, 0], [0, 1]], np.float32))])
    assert (found["num_texts"], found["anisotropy"], found["alignment"]) == (2, 0, 2)
    assert measure_geometry([(pairs, np.array([[1, 0], [0, 0]], np.float32))]) == {}
