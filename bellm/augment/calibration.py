"""How far confidences are to be trusted: temperature scaling, expected calibration error, reliability.

Shapes: N items, K classes, B bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError

Probabilities = NDArray[np.float64]
"""Of each class of each item, (N, K)."""

_BINS = 10
_LOWEST, _HIGHEST = 0.02, 50.0  # Temperatures; a classifier that is never wrong out of fold would have 0.


@dataclass(frozen=True)
class ConfidenceBin:
    """Items whose confidence is in a range."""

    low: float
    high: float
    n: int
    confidence: float
    """Their mean confidence, from 0 to 1."""
    accuracy: float
    """The share that is right, from 0 to 1."""


def softmax(logits_NK: NDArray[np.floating], temperature: float = 1.0) -> Probabilities:
    """Probabilities of logits that are divided by a temperature."""
    scaled_NK = np.asarray(logits_NK, dtype=np.float64) / temperature
    odds_NK = np.exp(scaled_NK - scaled_NK.max(1, keepdims=True))
    return np.asarray(odds_NK / odds_NK.sum(1, keepdims=True))


def fit_temperature(logits_NK: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """The temperature that makes logits most likely (temperature scaling, arXiv 1706.04599), from 0.02 to 50.

    The negative log-likelihood is convex in the inverse temperature, so that halving an interval finds the one minimum.
    The logits are those of items that the classifier was not fitted on.
    """
    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    if len(logits_NK) != len(labels_N) or not len(labels_N):
        raise BellmError(f"{len(logits_NK)} rows of logits and {len(labels_N)} labels have no temperature.")

    def slope(inverse: float) -> float:
        """Derivative of the log-likelihood by the inverse temperature."""
        expected_N = (softmax(logits_NK, 1 / inverse) * logits_NK).sum(1)
        return float((logits_NK[np.arange(len(labels_N)), labels_N] - expected_N).sum())

    low, high = np.log(1 / _HIGHEST), np.log(1 / _LOWEST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) >= 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def reliability(
    confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_], *, lowest: float = 0.0, bins: int = _BINS
) -> tuple[ConfidenceBin, ...]:
    """Confidence and accuracy of the items in each of several bins of equal width from `lowest` to 1; empty ones go."""
    edges = np.linspace(lowest, 1, bins + 1)
    index_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside_N = index_N == number
        if count := int(inside_N.sum()):
            confidence, accuracy = float(confidence_N[inside_N].mean()), float(right_N[inside_N].mean())
            found.append(ConfidenceBin(float(edges[number]), float(edges[number + 1]), count, confidence, accuracy))
    return tuple(found)


def expected_calibration_error(confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over ten bins, weighted by their items, from 0 to 1."""
    found = reliability(confidence_N, right_N)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in found) / max(len(right_N), 1)
