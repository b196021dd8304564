"""A probe: logistic regression on an encoder's vectors, with calibrated confidences (SuperContext's small model).

What it says of its own training items, as demonstrations show it, comes from fits on the other folds, so that no
receipt knows its label. The penalty and the temperature are chosen by the same out-of-fold logits, and the test items
play no part.

Shapes: N training items, M test items, T all of them, D width, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bellm.augment.calibration import Probabilities, fit_temperature, softmax
from bellm.errors import BellmError, SourceError
from bellm.evaluate import fit_logits
from bellm.io.formats import find_column, is_blank, parse_number, text_problem
from bellm.io.rows import RowFile
from bellm.types import Vectors

PROBE_FOLDS = 5
_ROUNDED = 0.99  # Confidence over that of chance: with two decimals that of chance itself may be a little less.
_GRID = 4.0 ** np.arange(-5, 7)
"""Inverse strengths of the penalty for vectors of mean square length 1; those of others are divided by theirs."""


@dataclass(frozen=True)
class Probe:
    """What the probe says of training and test items."""

    train_probabilities_NK: Probabilities
    """Each from a fit that did not see the item."""
    test_probabilities_MK: Probabilities
    train_uncalibrated_NK: Probabilities
    """Without the temperature."""
    test_uncalibrated_MK: Probabilities
    temperature: float
    C: float
    """Inverse strength of the penalty."""
    edge: Literal["", "strongest", "weakest"]
    """Whether the penalty is the last one that was tried on a side."""
    num_parameters: int


def fit_probe(train_ND: Vectors, labels_N: NDArray[np.int64], test_MD: Vectors, *, seed: int = 0) -> Probe:
    """Fit a probe on training items and ask it about test items.

    Raises:
        BellmError: A class has fewer training items than there are folds.
    """
    counts = np.bincount(labels_N)
    if len(counts) < 2 or counts.min() < PROBE_FOLDS:
        raise BellmError(
            f"The training items are {', '.join(map(str, counts))} of each class: a probe needs two classes or more, "
            f"and {PROBE_FOLDS} items of each."
        )
    fold_N = _folds(labels_N, seed)
    rows_N = np.arange(len(labels_N))
    fits = [rows_N, *(rows_N[fold_N != fold] for fold in range(PROBE_FOLDS))]
    spread_ND = train_ND.astype(np.float64) - train_ND.mean(0, dtype=np.float64)
    C_values = (_GRID / max(float(np.square(spread_ND).sum(1).mean()), 1e-12)).tolist()
    all_TD = np.concatenate([train_ND, test_MD])
    padded_T = np.concatenate([labels_N, np.zeros(len(test_MD), dtype=np.int64)])  # No fit has the test rows.
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for C, logits_TFK in zip(C_values, fit_logits(all_TD, padded_T, fits, C_values), strict=True):
        if logits_TFK.shape[2] == 1:  # Of two classes only the second has a logit.
            logits_TFK = np.concatenate([np.zeros_like(logits_TFK), logits_TFK], 2)
        logits = logits_TFK.astype(np.float64)
        held_out_NK = logits[rows_N, fold_N + 1]
        chances_NK = softmax(held_out_NK, fit_temperature(held_out_NK, labels_N))
        loss = -float(np.log(chances_NK[rows_N, labels_N] + 1e-300).mean())
        if best is None or loss < best[0]:
            best = loss, C, held_out_NK, logits[len(labels_N) :, 0]
    assert best
    _, C, held_out_NK, test_MK = best
    temperature = fit_temperature(held_out_NK, labels_N)
    outputs = len(counts) if len(counts) > 2 else 1
    return Probe(
        softmax(held_out_NK, temperature),
        softmax(test_MK, temperature),
        softmax(held_out_NK),
        softmax(test_MK),
        temperature,
        C,
        "strongest" if C_values[0] == C else "weakest" if C_values[-1] == C else "",
        (train_ND.shape[1] + 1) * outputs,
    )


def read_predictions(path: str, texts: Sequence[tuple[str, ...]], classes: Sequence[str]) -> Probabilities:
    """Read what another classifier says of some items: the columns text, label and confidence, and text_b for pairs.

    The rest of the confidence is shared by the other classes, none of which may be likelier.

    Args:
        path: A table, or JSON Lines.
        texts: Of each item, one or two.
        classes: Names of the classes, in their order.

    Raises:
        SourceError: It cannot be read, a label is no class, a confidence is not from that of chance to 1, or an item is
            missing or there twice with other predictions.
    """
    pair = bool(texts) and len(texts[0]) > 1
    names: list[str] = []

    def select(columns: Sequence[str]) -> list[str]:
        parts = ("text", *(("text_b",) if pair else ()), "label", "confidence")
        names[:] = [find_column(columns, part, part) for part in parts]
        return names

    known = {name.casefold(): number for number, name in enumerate(classes)}
    found: dict[tuple[str, ...], tuple[str, NDArray[np.float64]]] = {}
    for row in RowFile(path).rows(select, strict=True, skip_blank=True):
        location = f"{path}, {row.location}"
        if not isinstance(row.cells, dict):
            raise SourceError(f"{location}: it has no columns. Give the columns text, label and confidence.")
        *sides, label, confidence = (row.cells[name] for name in names)
        if problem := next(filter(None, map(text_problem, sides)), ""):
            raise SourceError(f"{location}: {problem}")
        number, chance = known.get(str(label).strip().casefold()), parse_number(confidence)
        if number is None or is_blank(str(label)):
            raise SourceError(f"{location}: {label!r} is not one of {', '.join(classes)}.")
        if chance is None or not 0 <= chance <= 1:
            raise SourceError(f"{location}: {confidence!r} is no confidence from 0 to 1.")
        if chance * len(classes) < _ROUNDED:
            raise SourceError(
                f"{location}: with a confidence of {confidence} another of {len(classes)} classes is likelier than "
                f"{label!r}. Give the likeliest one."
            )
        chances_K = np.full(len(classes), (1 - chance) / (len(classes) - 1))
        chances_K[number] = max(chance, chances_K.max() + 1e-9)  # The label that is given wins a tie.
        key = tuple(" ".join(side.split()) for side in sides)
        first, known_K = found.setdefault(key, (location, chances_K / chances_K.sum()))
        if not np.allclose(known_K, chances_K / chances_K.sum()):
            raise SourceError(f"{location}: {sides[0][:60]!r} has another prediction in {first}. Remove one of them.")
    keys = [tuple(" ".join(side.split()) for side in sides) for sides in texts]
    if lost := [sides for sides in keys if sides not in found]:
        raise SourceError(
            f"{path} lacks {len(lost)} of {len(keys)} items, as {lost[0][0][:60]!r}. Give a row for each."
        )
    return np.array([found[sides][1] for sides in keys])


def _folds(labels_N: NDArray[np.int64], seed: int) -> NDArray[np.intp]:
    """A fold for each item, each class evenly over all folds."""
    draw = np.random.default_rng(seed)
    fold_N = np.empty(len(labels_N), dtype=np.intp)
    for label in np.unique(labels_N):
        rows = draw.permutation(np.flatnonzero(labels_N == label))
        fold_N[rows] = np.arange(len(rows)) % PROBE_FOLDS
    return fold_N
