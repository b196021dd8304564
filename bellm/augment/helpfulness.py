"""When does side information help? A linear regression of gains on features of texts and side information.

Shapes: N items, F features.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bellm.report.statistics import Difference, holm_correction

_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*")
_NEGATIONS = frozenset(
    ["no", "not", "never", "none", "nothing", "nobody", "nor", "neither", "cannot", "without", "hardly"]
)
_REDUNDANT = 1e-8  # Share of a feature's variance that the features before it do not explain.
_FEWEST_FOR_EACH = 5  # Items for each feature: fewer say nothing.

Features = Mapping[str, NDArray[np.float64]]
"""A number for each item, by the name of the feature."""


@dataclass(frozen=True)
class Helpfulness:
    """What goes together with the gain of side information."""

    effects: Mapping[str, Difference]
    """Points of gold probability by which an item gains more, for one standard deviation of a feature; p-values are
    Holm-corrected over the features."""
    explained: float
    """Share of the variance of the gain, R squared, from 0 to 1."""
    left_out: tuple[str, ...]
    """Features that are the same for nearly all items, or follow from others."""
    n: int

    @property
    def found(self) -> tuple[str, ...]:
        """Features whose effect is no chance, the strongest first."""
        known = [name for name, effect in self.effects.items() if effect.p_value < 0.05]
        return tuple(sorted(known, key=lambda name: -abs(self.effects[name].value)))


def text_features(columns: Sequence[Sequence[str]]) -> dict[str, NDArray[np.float64]]:
    """Features of texts, or of pairs of texts: lengths, negations, numbers, names, punctuation, overlap of a pair."""
    joined = [" ".join(texts) for texts in zip(*columns, strict=True)]
    words = [_WORD.findall(text) for text in joined]
    counts = [max(len(each), 1) for each in words]
    found = {
        "words (log)": [np.log(count) for count in counts],
        "letters a word": [sum(map(len, each)) / count for each, count in zip(words, counts, strict=True)],
        "negations": [
            float(sum(word.lower() in _NEGATIONS or word.lower().endswith("n't") for word in each)) for each in words
        ],
        "numbers": [float(sum(word[0].isdigit() for word in each)) for each in words],
        "capitalized words": [float(sum(word[0].isupper() for word in each[1:])) for each in words],
        "punctuation": [float(sum(not (char.isalnum() or char.isspace()) for char in text)) for text in joined],
        "question": [float("?" in text) for text in joined],
    }
    if len(columns) == 2:
        sides = [[set(map(str.lower, _WORD.findall(text))) for text in column] for column in columns]
        pairs = list(zip(*sides, strict=True))
        found["shared words"] = [len(left & right) / max(len(left | right), 1) for left, right in pairs]
        found["difference in words"] = [float(abs(len(left) - len(right))) for left, right in pairs]
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def explain_gains(gain_N: NDArray[np.float64], features: Features) -> Helpfulness:
    """Regress gains, in points, on standardized features, with intervals that hold where the noise differs by item.

    Ordinary least squares with White's covariance in the form HC3 (MacKinnon and White 1985), which holds its level in
    samples of a hundred. A feature that is constant, or follows from those before it, is left out, and so is one in
    which fewer than five items differ from the others: they would be fitted perfectly, and look sure. Where there are
    fewer than five items a feature, all are.
    """
    from scipy.stats import t as student

    count, kept, left_out = len(gain_N), list[str](), list[str]()
    design_NF = np.ones((count, 1))
    for name, values_N in features.items():
        spread = float(values_N.std())
        scaled_N = (values_N - values_N.mean()) / spread if spread > 1e-12 else np.zeros(count)
        rest_N = scaled_N - design_NF @ np.linalg.lstsq(design_NF, scaled_N, rcond=None)[0]
        num_different = count - int(np.unique(values_N, return_counts=True)[1].max(initial=0))
        too_few = num_different < _FEWEST_FOR_EACH or count < _FEWEST_FOR_EACH * (len(features) + 1)
        if too_few or float(rest_N @ rest_N) <= _REDUNDANT * count:
            left_out.append(name)
        else:
            kept.append(name)
            design_NF = np.column_stack([design_NF, scaled_N])
    if not kept:
        return Helpfulness({}, 0.0, tuple(left_out), count)
    inverse_FF = np.linalg.inv(design_NF.T @ design_NF)
    weights_F = inverse_FF @ design_NF.T @ gain_N
    error_N = gain_N - design_NF @ weights_F
    leverage_N = np.einsum("nf,fg,ng->n", design_NF, inverse_FF, design_NF)
    scaled_NF = design_NF * (error_N / np.maximum(1 - leverage_N, 1e-6))[:, None]
    errors_F = np.sqrt(np.diag(inverse_FF @ (scaled_NF.T @ scaled_NF) @ inverse_FF))
    freedom = count - design_NF.shape[1]
    reach = float(student.ppf(0.975, freedom))
    effects = {}
    for name, weight, error in zip(kept, weights_F[1:], errors_F[1:], strict=True):
        p_value = float(2 * student.sf(abs(weight) / error, freedom)) if error > 0 else float(weight == 0)
        effects[name] = Difference(float(weight), float(weight - reach * error), float(weight + reach * error), p_value)
    variance = float(((gain_N - gain_N.mean()) ** 2).sum())
    explained = 1 - float(error_N @ error_N) / variance if variance > 0 else 0.0
    return Helpfulness(holm_correction(effects), explained, tuple(left_out), count)
