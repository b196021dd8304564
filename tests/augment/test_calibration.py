"""Temperature scaling, calibration error and reliability against planted truths, and the probe's honesty."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from bellm import BellmError
from bellm.augment.calibration import expected_calibration_error, fit_temperature, reliability, softmax
from bellm.augment.probe import fit_probe, read_predictions
from bellm.errors import SourceError


def planted(number: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, too large by a factor, and labels drawn with the chances that they should give."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(number, 3)) * 2
    chances = softmax(logits)
    labels = np.array([draw.choice(3, p=each) for each in chances])
    return logits * temperature, labels


def test_the_planted_temperature_is_found() -> None:
    logits, labels = planted(20_000, 4.0)
    assert fit_temperature(logits, labels) == pytest.approx(4.0, rel=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_a_general_optimizer(seed: int) -> None:
    logits, labels = planted(300, 0.6, seed)
    rows = np.arange(len(labels))
    best = minimize_scalar(
        lambda t: -np.log(softmax(logits, t)[rows, labels]).mean(), bounds=(0.05, 20), method="bounded"
    )
    assert fit_temperature(logits, labels) == pytest.approx(best.x, rel=1e-3)


def test_a_temperature_has_bounds_where_nothing_is_wrong_or_right() -> None:
    logits, labels = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(0.02)
    assert fit_temperature(logits, 1 - labels) == pytest.approx(50)
    with pytest.raises(BellmError, match="have no temperature"):
        fit_temperature(logits[:0], labels[:0])


def test_temperature_lowers_the_error_on_other_items() -> None:
    logits, labels = planted(4000, 5.0)
    temperature = fit_temperature(logits[:2000], labels[:2000])
    before, after = (
        expected_calibration_error(chances.max(1), chances.argmax(1) == labels[2000:])
        for chances in (softmax(logits[2000:]), softmax(logits[2000:], temperature))
    )
    assert before > 0.15
    assert after < 0.03


def test_bins_are_those_counted_by_hand() -> None:
    confidence = np.array([0.05, 0.1, 0.95, 0.93, 1.0, 0.5])
    right = np.array([True, False, True, True, False, True])
    found = reliability(confidence, right)
    assert [(each.n, each.accuracy) for each in found] == [(2, 0.5), (1, 1.0), (3, pytest.approx(2 / 3))]
    assert (found[0].low, found[0].high) == (0.0, pytest.approx(0.1))
    by_hand = (2 * abs(0.075 - 0.5) + abs(0.5 - 1) + 3 * abs(0.96 - 2 / 3)) / 6
    assert expected_calibration_error(confidence, right) == pytest.approx(by_hand)
    assert sum(each.n for each in reliability(confidence, right, lowest=0.5, bins=5)) == 6


# The probe


def blobs(number: int, seed: int, spread: float = 1.5, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(2, size=number)
    vectors = draw.normal(size=(number, width)) * spread
    vectors[:, 0] += 2 * labels - 1
    return vectors.astype(np.float32), labels


def test_the_probe_is_scikit_learns_regression_with_its_temperature() -> None:
    (train, labels), (test, gold) = blobs(300, 0), blobs(400, 1)
    probe = fit_probe(train, labels, test)
    reference = LogisticRegression(C=probe.C, tol=1e-10, max_iter=5000).fit(train, labels)
    np.testing.assert_allclose(probe.test_uncalibrated_MK, reference.predict_proba(test), atol=1e-3)
    logits = reference.decision_function(test)
    np.testing.assert_allclose(
        probe.test_probabilities_MK[:, 1], 1 / (1 + np.exp(-logits / probe.temperature)), atol=1e-3
    )
    assert (probe.test_probabilities_MK.argmax(1) == gold).mean() > 0.65


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_the_length_of_vectors_changes_no_receipt(scale: float) -> None:
    (train, labels), (test, _) = blobs(200, 0), blobs(100, 1)
    probe, scaled = fit_probe(train, labels, test), fit_probe(scale * train, labels, scale * test)
    assert scaled.C * scale**2 == pytest.approx(probe.C, rel=1e-3)
    np.testing.assert_allclose(scaled.test_probabilities_MK, probe.test_probabilities_MK, atol=1e-3)
    assert probe.edge == ""


def test_a_penalty_at_the_edge_of_those_tried_is_said() -> None:
    train, labels = blobs(200, 0, width=2)
    assert fit_probe(train, labels, train[:5]).edge == ""
    train[:, 1] *= 300  # Nearly all of the variance knows nothing of the labels.
    assert fit_probe(train, labels, train[:5]).edge == "weakest"


def test_a_receipt_of_a_training_item_does_not_know_its_label() -> None:
    """Labels drawn by chance: what a fit says of its own items is right, out of fold it is not."""
    train, _ = blobs(120, 0, width=100)
    labels = np.random.default_rng(5).integers(2, size=120)
    probe = fit_probe(train, labels, train)
    assert (probe.train_probabilities_NK.argmax(1) == labels).mean() < 0.65
    assert probe.train_probabilities_NK.max(1).mean() < 0.65  # And it says so.


def test_other_test_items_change_no_receipt() -> None:
    (train, labels), (test, _) = blobs(200, 0), blobs(100, 1)
    whole, few = fit_probe(train, labels, test), fit_probe(train, labels, test[:3] * 1)
    assert (whole.C, whole.temperature) == (few.C, pytest.approx(few.temperature, rel=1e-3))
    np.testing.assert_allclose(whole.test_probabilities_MK[:3], few.test_probabilities_MK, atol=1e-3)


def test_three_classes_and_too_few_items() -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    vectors = (draw.normal(size=(90, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
    probe = fit_probe(vectors, labels, vectors[:5])
    assert probe.test_probabilities_MK.shape == (5, 3)
    assert probe.num_parameters == 7 * 3
    np.testing.assert_allclose(probe.train_probabilities_NK.sum(1), 1)
    with pytest.raises(BellmError, match="4, 30 of each class"):
        fit_probe(vectors[26:60], labels[26:60], vectors[:5])


def test_predictions_of_another_classifier_are_read(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("text,label,confidence\nA  heron.,Good,0.9\nSnow.,bad,0.6\n")
    found = read_predictions(str(file), [("A heron.",), ("Snow.",)], ["bad", "good", "fair"])
    np.testing.assert_allclose(found, [[0.05, 0.9, 0.05], [0.6, 0.2, 0.2]])
    file.write_text("text,label,confidence\nA heron.,fair,0.33\nSnow.,good,0.3333333\n")
    ties = read_predictions(str(file), [("A heron.",), ("Snow.",)], ["bad", "good", "fair"])
    assert ties.argmax(1).tolist() == [2, 1]
    for rows, said in (
        ("A heron.,good,0.3", "with a confidence of 0.3 another of 2 classes is likelier than 'good'"),
        ("A heron.,good,0.9\nA  heron.,good,0.8", "'A  heron.' has another prediction in "),
        ("A heron.,good,2", "'2' is no confidence from 0 to 1"),
        ("A heron.,great,0.5", "'great' is not one of bad, good"),
        ("Ice.,good,0.5", r"lacks 1 of 1 items, as 'A heron\.'"),
    ):
        file.write_text(f"text,label,confidence\n{rows}\n")
        with pytest.raises(SourceError, match=said):
            read_predictions(str(file), [("A heron.",)], ["bad", "good"])
