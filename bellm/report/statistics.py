"""Bootstrap intervals over items, paired tests, Holm's correction, and means over tasks and over seeds.

Everything is in points. `benchmarks/simulate_statistics.py` plants the truth and counts how often this file misses it.

Shapes: N items of a task, F numbers of each, R resamples, S seeds, G groups of equal values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError

Numbers = NDArray[np.float64]

_FEWEST = 3  # Items; two have only three resamples.
_CELLS = 2**18  # Numbers of a matrix at once: a few such matrices stay in the CPU's cache.
_ROUNDING = 1e-9  # Points by which replicates that are equal on paper may differ.


@dataclass(frozen=True)
class Score:
    """A task's score with its 95 % bootstrap interval over items, in points."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    num_truncated: int = 0
    extra_metrics: Mapping[str, float] = field(default_factory=dict)

    def __float__(self) -> float:
        """The value alone."""
        return self.value


@dataclass(frozen=True)
class Difference:
    """A score minus the baseline's on the same items, in points."""

    value: float
    low: float
    high: float
    p_value: float
    """Of a paired, two-sided test; corrected for the number of tasks compared."""

    @property
    def reach(self) -> float:
        """Half the width of the interval: what the items do not tell from chance."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class BootstrapEstimate:
    """A score with its bootstrap replicates, both in points.

    The interval is the percentile one (Efron and Tibshirani 1993, chapter 13). In the simulation it covers the truth as
    often as BCa does, from 100 pairs on, at a fraction of the cost, and it needs nothing but the replicates, so that
    averages over tasks and seeds have it too.
    """

    value: float
    resamples_R: Numbers

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return float(np.quantile(self.resamples_R, 0.025, method="weibull"))

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return float(np.quantile(self.resamples_R, 0.975, method="weibull"))


def bootstrap_estimate(
    item_scores_N: Numbers, gold_N: Numbers | None = None, *, resamples: int = 1000, seed: int = 0
) -> BootstrapEstimate:
    """A task's score and its replicates on resampled items.

    The score is Spearman's correlation of items and gold times 100, ties at their average rank; without gold it is the
    items' mean times 100. Tasks with as many items and the same seed draw the same items, which is what pairs the
    estimates of two systems. Items that are all equal put nothing in order: their correlation counts as 0, and so does
    that of a resample whose items or ratings are all equal. The mean of equal items is an interval without width.

    Args:
        item_scores_N: A cosine, a hit (0 or 1) or an nDCG each.
        gold_N: Ratings; None for a mean.
        resamples: Replicates; 1000 put the interval's ends within a tenth of a standard error.
        seed: Of the draw.
    """
    check_items(len(item_scores_N), gold_N)
    if missing := np.count_nonzero(~np.isfinite(item_scores_N)):
        raise BellmError(f"{missing} of {len(item_scores_N)} items are not finite numbers. Leave these items out.")
    value = _scores(np.ones((1, len(item_scores_N))), item_scores_N, gold_N)[0]
    replicates = [
        _scores(counts_RN, item_scores_N, gold_N) for counts_RN in _draws(len(item_scores_N), resamples, seed)
    ]
    return BootstrapEstimate(float(value), np.concatenate(replicates))


def bootstrap_means(items_NF: Numbers, *, resamples: int = 1000, seed: int = 0) -> Numbers:
    """Means of several numbers of each item on the items that `bootstrap_estimate` draws, (resamples, F)."""
    draws = _draws(len(items_NF), resamples, seed)
    return np.concatenate([counts_RN @ items_NF / len(items_NF) for counts_RN in draws])


def average_estimates(estimates: Sequence[BootstrapEstimate]) -> BootstrapEstimate:
    """Mean over tasks whose items have nothing to do with each other.

    Replicates of one task meet those of the next in shuffled order, because tasks of one size draw the same item
    numbers. The order depends only on a task's position, so that two systems' averages over the same tasks stay paired.
    """
    _check_together(estimates)
    orders = [np.random.default_rng(index).permutation(len(one.resamples_R)) for index, one in enumerate(estimates)]
    replicates = [one.resamples_R[order_R] for one, order_R in zip(estimates, orders, strict=True)]
    return BootstrapEstimate(float(np.mean([one.value for one in estimates])), np.mean(replicates, axis=0))


def average_over_seeds(estimates: Sequence[BootstrapEstimate]) -> BootstrapEstimate:
    """Mean over trainings of one setting that were scored on the same items, for what another training may give.

    Replicates vary with the items, which all trainings share, and by Student's t with S - 1 degrees of freedom times
    the standard error of the mean over trainings: three trainings hardly show their own spread, and a normal would
    claim to know it. The noise is seeded by the scores themselves, so that two settings never share it and
    `paired_difference` takes their trainings as independent. A training that is lucky in one task may be so in the
    next: take `average_estimates` over tasks first, and then this over trainings.
    """
    if len(estimates) < 2:
        raise BellmError("One training says nothing of the spread between trainings. Give two or more; five are good.")
    _check_together(estimates)
    values_S = np.array([one.value for one in estimates])
    items_R = np.mean([one.resamples_R for one in estimates], axis=0)
    noise_R = np.random.default_rng(values_S.view(np.uint32)).standard_t(len(values_S) - 1, len(items_R))
    return BootstrapEstimate(float(values_S.mean()), items_R + noise_R * values_S.std(ddof=1) / np.sqrt(len(values_S)))


def paired_difference(one: BootstrapEstimate, other: BootstrapEstimate) -> Difference:
    """A score minus another's, whose replicates come from the same resampled items; the p-value is uncorrected.

    The bootstrap test of Efron and Tibshirani (1993, chapter 16; for language Dror et al. 2018): how often do
    replicates stray from the difference by at least the difference itself, counted as (1 + times) / (1 + R)? The
    interval is the difference give or take what 95 % of the replicates keep to, and leaves out zero where p is below
    0.05. Only ranks enter a correlation, so that cosines of any scale compare.
    """
    _check_together([one, other])
    value = one.value - other.value
    strays_R = np.abs(one.resamples_R - other.resamples_R - value)
    reach = float(np.quantile(strays_R, 0.95, method="higher"))
    p_value = (1 + np.count_nonzero(strays_R >= abs(value) - _ROUNDING)) / (1 + len(strays_R))
    return Difference(value, value - reach, value + reach, float(p_value))


def holm_correction(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences with p-values after Holm (1979): the chance of one false alarm in all of them stays 5 %."""
    p_values: dict[str, float] = {}
    corrected = 0.0
    for position, task in enumerate(sorted(differences, key=lambda task: differences[task].p_value)):
        # Each counts for as many tests as are left, and is no smaller than those before it.
        corrected = min(1.0, max(corrected, differences[task].p_value * (len(differences) - position)))
        p_values[task] = corrected
    return {task: replace(one, p_value=p_values[task]) for task, one in differences.items()}


def _draws(n: int, resamples: int, seed: int) -> Iterator[Numbers]:
    """How often each of n items is in each resample, some resamples at a time, shape (R, N)."""
    draw = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        cells = draw.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _scores(counts_RN: Numbers, item_scores_N: Numbers, gold_N: Numbers | None) -> Numbers:
    """The score of each resample in points, shape (R,)."""
    if gold_N is None:
        return np.asarray(100 * (counts_RN @ item_scores_N) / len(item_scores_N))
    items_RN, gold_RN = _ranks(counts_RN, item_scores_N), _ranks(counts_RN, gold_N)
    together_R = np.einsum("rn,rn,rn->r", counts_RN, items_RN, gold_RN)
    alone_R = np.einsum("rn,rn,rn->r", counts_RN, items_RN, items_RN)
    alone_R *= np.einsum("rn,rn,rn->r", counts_RN, gold_RN, gold_RN)
    cosine_R: Numbers = np.divide(together_R, np.sqrt(alone_R), out=np.zeros_like(alone_R), where=alone_R > 0)
    return 100 * cosine_R


def _ranks(counts_RN: Numbers, values_N: Numbers) -> Numbers:
    """Average rank of each item among those of its resample, less the mean rank. No resample has to be sorted."""
    _, group_N, size_G = np.unique(values_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(group_N, kind="stable")
    drawn_RG = np.add.reduceat(counts_RN[:, order_N], np.cumsum(size_G) - size_G, axis=1)
    rank_RG = drawn_RG.cumsum(axis=1) - (drawn_RG + len(values_N)) / 2
    return np.asarray(rank_RG[:, group_N])


def check_items(num_items: int, gold_N: Numbers | None = None, name: str = "") -> None:
    """Refuse items of which no score can be made, whatever they turn out to be; `name` is whose they are."""
    said = f"{name}: " if name else ""
    if num_items < _FEWEST:
        raise BellmError(f"{said}{num_items} items are too few for an interval. Give {_FEWEST} or more.")
    if gold_N is None:
        return
    if len(gold_N) != num_items:
        raise BellmError(f"{said}{num_items} items, but {len(gold_N)} ratings. Each item needs one.")
    if missing := np.count_nonzero(~np.isfinite(gold_N)):
        raise BellmError(f"{said}{missing} of {num_items} ratings are not finite numbers. Leave these items out.")
    if np.ptp(gold_N) == 0:
        raise BellmError(f"{said}All {num_items} ratings are {gold_N[0]:g}: there is no order to agree with.")


def _check_together(estimates: Sequence[BootstrapEstimate]) -> None:
    if len({len(one.resamples_R) for one in estimates}) != 1:
        sizes = ", ".join(str(len(one.resamples_R)) for one in estimates)
        raise BellmError(f"Estimates of {sizes or 'no'} resamples do not go together. Give one or more, all alike.")
