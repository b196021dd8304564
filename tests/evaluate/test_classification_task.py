"""SentEval's protocol against a plain loop, planted classes, and questions whose words tell their class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from bellm.data.classification import LabeledTexts, read_classification
from bellm.errors import BellmError
from bellm.evaluate import classification_task
from bellm.evaluate.classification_task import ClassificationTask
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.task import score_task
from bellm.types import Vectors

SPLITS: dict[str, dict[str, range]] = {
    "cross-validated": {},
    "train, test": {"train": range(300), "test": range(300, 400)},
    "train, dev, test": {"train": range(250), "dev": range(250, 300), "test": range(300, 400)},
}


def task(split: str = "cross-validated", classes: int = 2, columns: int = 1) -> LabeledTexts:
    """400 rows whose texts are their numbers and whose class is drawn."""
    labels_N = np.random.default_rng(0).integers(classes, size=400)
    texts = [tuple(f"{column} of {row}" for row in range(400)) for column in range(columns)]
    return LabeledTexts("Numbers", tuple(texts), labels_N, SPLITS[split])  # type: ignore[arg-type]


def planted(labels_N: np.ndarray, C: float = 1.0, width: int = 12) -> Vectors:
    """Vectors that tell the classes by a shift in some direction."""
    rng = np.random.default_rng(1)
    shifts = rng.normal(size=(labels_N.max() + 1, width)) * C
    return (shifts[labels_N] + rng.normal(size=(len(labels_N), width)) + 3).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("split", SPLITS)
def test_classes_that_are_planted_are_found(split: str, classes: int) -> None:
    sentences = task(split, classes)
    found = classification_task.classify(sentences, planted(sentences.labels_N, 20.0))
    assert len(found.item_scores_N) == (100 if sentences.split else 400)
    assert found.item_scores_N.mean() == 1
    assert found.extra_metrics["macro F1"] == found.extra_metrics["mean over folds"] == 100


@pytest.mark.parametrize("split", SPLITS)
def test_classes_that_are_shuffled_are_guessed(split: str) -> None:
    sentences = task(split)
    vectors = planted(np.random.default_rng(2).permutation(sentences.labels_N), 20.0)
    hits = classification_task.classify(sentences, vectors).item_scores_N
    low, high = binom.interval(0.999, len(hits), 0.5)
    assert low <= hits.sum() <= high


@pytest.mark.parametrize("classes", [2, 3])
def test_cross_validation_is_that_of_scikit_learn(classes: int) -> None:
    sentences = task(classes=classes)
    vectors = planted(sentences.labels_N, 0.5)
    inner, outer = (StratifiedKFold(5, shuffle=True, random_state=1111) for _ in range(2))
    grid = {"C": [0.25, 0.5, 1, 2, 4, 8]}
    hits, C_values, accuracies = np.zeros(400), [], []
    for fit, test in outer.split(vectors, sentences.labels_N):
        model = GridSearchCV(LogisticRegression(tol=1e-8, max_iter=1000), grid, cv=inner, scoring="accuracy")
        model.fit(vectors[fit], sentences.labels_N[fit])
        hits[test] = model.predict(vectors[test]) == sentences.labels_N[test]
        C_values.append(model.best_params_["C"])
        accuracies.append(100 * model.best_score_)
    found = classification_task.classify(sentences, vectors, folds=5)
    np.testing.assert_array_equal(found.item_scores_N, hits)
    assert found.extra_metrics["C"] == np.median(C_values)
    assert found.extra_metrics["development accuracy"] == pytest.approx(np.mean(accuracies), abs=0.01)
    assert found.extra_metrics["mean over folds"] == pytest.approx(100 * hits.mean(), abs=0.5)
    assert 40 < 100 * hits.mean() < 90


def test_the_training_part_chooses_where_there_is_no_development_part() -> None:
    sentences = task("train, test", classes=3)
    vectors = planted(sentences.labels_N, 0.8)  # One C is best, without a tie.
    draw = StratifiedKFold(10, shuffle=True, random_state=1111)
    model = GridSearchCV(
        LogisticRegression(tol=1e-8, max_iter=1000), {"C": [0.5, 1, 2, 4, 8, 16, 32]}, cv=draw, scoring="accuracy"
    )
    predicted = model.fit(vectors[:300], sentences.labels_N[:300]).predict(vectors[300:])
    found = classification_task.classify(sentences, vectors)
    np.testing.assert_array_equal(found.item_scores_N, predicted == sentences.labels_N[300:])
    assert found.extra_metrics["C"] == model.best_params_["C"]
    assert found.extra_metrics["macro F1"] == pytest.approx(
        100 * f1_score(sentences.labels_N[300:], predicted, average="macro")
    )


def test_pairs_are_classified_by_their_difference_and_product() -> None:
    sentences = task("train, test", columns=2)
    rng = np.random.default_rng(1)
    left, noise = rng.normal(size=(2, 400, 8)).astype(np.float32)
    right = np.where(sentences.labels_N[:, None] == 1, left + 0.7 * noise, noise)
    rows = np.hstack([np.abs(left - right), left * right])
    model = LogisticRegression(tol=1e-8, max_iter=1000)
    found = classification_task.classify(sentences, np.vstack([left, right]))
    predicted = (
        model.set_params(C=found.extra_metrics["C"]).fit(rows[:300], sentences.labels_N[:300]).predict(rows[300:])
    )
    np.testing.assert_array_equal(found.item_scores_N, predicted == sentences.labels_N[300:])
    assert found.extra_metrics["F1"] == pytest.approx(100 * f1_score(sentences.labels_N[300:], predicted))
    assert found.item_scores_N.mean() > 0.8


def test_texts_are_embedded_once_and_found_by_what_they_say() -> None:
    pairs = LabeledTexts("Pairs", (("b", "a", "b"), ("a", "c", "b")), np.array([0, 1, 0]))
    assert classification_task.distinct_texts(pairs) == ["b", "a", "c"]
    vectors = np.array([[1.0], [2.0], [5.0]], dtype=np.float32)
    np.testing.assert_array_equal(classification_task.pair_features(pairs, vectors), [[1, 2], [3, 10], [0, 1]])


@pytest.mark.parametrize("split", SPLITS)
def test_no_row_that_is_scored_is_learnt_from_or_chooses(split: str) -> None:
    sentences = task(split)
    searches = classification_task.make_grid_searches(sentences)
    scored = np.concatenate([one.final.test for one in searches])
    assert sorted(scored) == [*sentences.split.get("test", range(400))]
    for one in searches:
        for trial in (*one.trials, one.final):
            assert not set(trial.fit) & ({*trial.test} | {*one.final.test})
        assert not set(one.final.test) & {row for trial in one.trials for row in trial.test}


def test_a_seed_gives_the_same_hits_again_and_another_other_folds() -> None:
    sentences = task()
    vectors = planted(sentences.labels_N, 0.3)
    first, again, other = (
        classification_task.classify(sentences, vectors, seed=seed).item_scores_N for seed in (1111, 1111, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_anything_that_embeds_can_be_classified() -> None:
    sentences = task("train, test")
    vectors = dict(zip(classification_task.distinct_texts(sentences), planted(sentences.labels_N), strict=True))

    class Known:
        def encode(self, texts: list[str]) -> Vectors:
            return np.stack([vectors[text] for text in texts])

    found = score_task(EvaluatedModel.of(Known()), ClassificationTask("Numbers", data=sentences))
    direct = classification_task.classify(sentences, np.stack([*vectors.values()]))
    np.testing.assert_array_equal(found.item_scores_N, direct.item_scores_N)
    assert (found.task, found.metric, found.num_texts, found.num_truncated) == ("Numbers", "accuracy", 400, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda vectors: vectors[1:], r"400 texts.*\(399, 12\)"),
        (lambda vectors: vectors[:, 0], r"400 texts.*\(400,\)"),
        (lambda vectors: np.where(vectors > 6, np.nan, vectors), "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(spoil: Callable[[Vectors], Vectors], message: str) -> None:
    sentences = task()
    with pytest.raises(BellmError, match=message):
        classification_task.classify(sentences, spoil(planted(sentences.labels_N)))


def test_classes_too_small_to_be_divided_are_refused() -> None:
    few = LabeledTexts("Few", (tuple("abcdefghijkl"),), np.array([0] * 8 + [1] * 4))
    with pytest.raises(BellmError, match="Few has classes of 8, 4 rows"):
        classification_task.classify(few, np.zeros((12, 2), dtype=np.float32))


@pytest.mark.parametrize(("split", "fewest"), [({}, 12), ({"train": range(40), "test": range(40, 50)}, 10)])
def test_a_class_has_a_row_for_every_fold_and_every_fold_within_it(split: dict[str, range], fewest: int) -> None:
    for few in (fewest, fewest - 1):
        labels_N = np.array([1] * few + [0] * (40 - few) + [0, 1] * 5)[: 50 if split else 40]
        texts = tuple(f"row {row}" for row in range(len(labels_N)))
        sentences = LabeledTexts("Few", (texts,), labels_N, split)  # type: ignore[arg-type]
        if few < fewest:
            with pytest.raises(BellmError, match=f"two or more of {fewest} rows each are needed for 10 folds"):
                ClassificationTask("Few", data=sentences)
            continue
        ClassificationTask("Few", data=sentences)
        for search in classification_task.make_grid_searches(sentences):
            assert all({*labels_N[trial.test]} == {0, 1} for trial in search.trials)


def test_words_tell_what_a_question_asks_for(data: Path) -> None:
    whole = read_classification("TREC", data)
    kept = np.r_[np.random.default_rng(0).choice(5452, 1500, replace=False), 5452:5952]
    sentences = LabeledTexts(
        "TREC",
        (tuple(whole.columns[0][row] for row in kept),),
        whole.labels_N[kept],
        {"train": range(1500), "test": range(1500, 2000)},
    )
    words = HashingVectorizer(n_features=2**12, ngram_range=(1, 2)).transform(
        classification_task.distinct_texts(sentences)
    )
    vectors = TruncatedSVD(100, random_state=0).fit_transform(words).astype(np.float32)
    found = classification_task.classify(sentences, vectors)
    majority = np.bincount(sentences.labels_N[1500:]).max() / 500
    assert majority < 0.3
    assert found.item_scores_N.mean() > 0.7
