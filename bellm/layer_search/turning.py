"""Find the turning point of a degradation curve: below how many layers a model's score breaks away.

BeLLM (arXiv 2311.05296) reads it from a plot. Here straight lines that meet in knees are fitted to the curve: joinpoint
regression (Kim, Fay, Feuer and Midthune 2000), by trying all places as Lerman (1980) does. An S has two knees; a third
takes what the very first or last layers do besides. `benchmarks/simulate_turning.py` plants curves and counts how often
this file errs.

Shapes: K depths of a curve, R curves, G ways to bend a line, M knees, C coefficients of a line.
"""

from dataclasses import astuple, dataclass
from itertools import combinations_with_replacement

import numpy as np

from bellm.report.statistics import Numbers

_KNEES = 3
_FEWEST = 10  # Depths; three knees and their lines leave next to nothing over in a shorter curve.
_LEVEL = 0.01  # Of flat curves scored on 400 pairs, 17 % have p-values below 0.05 and 3 % below this.
_CELLS = 2**22  # Numbers of a table of lines and curves at once.
_ROUNDING = 1e-6  # Squared points; a line as near as that goes through the curve.


@dataclass(frozen=True)
class TurningPoint:
    """Number of layers left where a curve turns, with its 95 % interval; or the reason why it does not turn."""

    depth: int | None
    low: int | None
    high: int | None
    p_value: float
    """How often noise makes as much of a turn in the best line that has none."""
    reason: str = ""


def find_turning_point(scores_K: Numbers, resamples_RK: Numbers, *, seed: int = 0) -> TurningPoint:
    """Find where a curve of scores turns, with its uncertainty.

    The turning point is the knee at which a rising line loses most of its slope: dropping layers from the top costs
    little down to there, and much from there on. Among all bent lines Schwarz's criterion chooses, with three numbers
    counted for a knee (Kim et al. 2022, doi 10.1080/02664763.2022.2063265).

    Whether the curve turns at all is tested by a parametric bootstrap: the criterion prefers the best line to the best
    one that does not turn by some margin; how often does it so when noise is added to the latter? Noise is that of the
    items, as resampling shows it, and that of the layers, drawn from what the best line leaves over. The interval holds
    95 % of the turning points that the curve has with more such noise.

    Scores, in points, are those with the first 1, 2, ..., K layers; resamples are the same on resampled items.
    """
    if len(scores_K) < _FEWEST:
        reason = f"{len(scores_K)} depths are too few to see one; {_FEWEST} are needed"
        return TurningPoint(None, None, None, 1.0, reason)
    lines = _Lines(len(scores_K))
    found = lines.fit(scores_K[None])
    if np.isnan(found.turning_R[0]):
        return TurningPoint(None, None, None, 1.0, "the curve nowhere rises and then levels off")
    left_RK = np.random.default_rng(seed).choice((scores_K - found.best_RK)[0], resamples_RK.shape)
    noise_RK = resamples_RK - scores_K + left_RK
    margin_R = lines.fit(found.straight_RK + noise_RK).margin_R
    p_value = float((1 + np.count_nonzero(margin_R >= found.margin_R)) / (1 + len(margin_R)))
    if p_value >= _LEVEL:
        reason = f"the curve turns no more than noise can make it (p = {p_value:.2f})"
        return TurningPoint(None, None, None, p_value, reason)
    turning_R = np.append(lines.fit(scores_K + noise_RK).turning_R, found.turning_R)
    low, high = np.nanquantile(turning_R, (0.025, 0.975), method="nearest")
    return TurningPoint(1 + int(found.turning_R[0]), 1 + int(low), 1 + int(high), p_value)


@dataclass(frozen=True)
class _Fits:
    """The best lines of some curves, the best that do not turn, and by what margin the criterion prefers the former."""

    best_RK: Numbers
    straight_RK: Numbers
    margin_R: Numbers
    turning_R: Numbers
    """Place among the depths, from 0, at which the best line turns; NaN where it does not."""


class _Lines:
    """All ways to bend a line."""

    def __init__(self, depths: int) -> None:
        """Bend lines between the first depth and the last; a knee at the last bends nothing."""
        depth_K = np.arange(depths, dtype=np.float64)
        places_GM = np.array(list(combinations_with_replacement(depth_K[1:], _KNEES)))
        bends_GM = places_GM < depths - 1
        once_G = ((np.diff(places_GM, axis=1) > 0) | ~bends_GM[:, 1:]).all(axis=1)
        self.places_GM = places_GM[once_G]
        self.penalty_G = (2 + 3 * bends_GM[once_G].sum(axis=1)) * np.log(depths)
        hinges_GKM = np.maximum(depth_K[:, None] - self.places_GM[:, None, :], 0)
        straight_GK2 = np.broadcast_to(np.stack([depth_K**0, depth_K], axis=1), (len(hinges_GKM), depths, 2))
        self.lines_GKC = np.concatenate([straight_GK2, hinges_GKM], axis=2)
        self.solve_GCK = np.linalg.pinv(self.lines_GKC)

    def fit(self, curves_RK: Numbers) -> _Fits:
        """Find the best lines of each curve."""
        parts = -(-len(curves_RK) * self.solve_GCK.shape[0] * self.solve_GCK.shape[1] // _CELLS)
        found = [self._fit(part_RK) for part_RK in np.array_split(curves_RK, parts)]
        return _Fits(*map(np.concatenate, zip(*map(astuple, found), strict=True)))

    def _fit(self, curves_RK: Numbers) -> _Fits:
        depths = curves_RK.shape[1]
        weights_GCR = self.solve_GCK @ curves_RK.T
        explained_GR = np.einsum("gcr,gcr->gr", weights_GCR, self.lines_GKC.transpose(0, 2, 1) @ curves_RK.T)
        squares_GR = np.maximum((curves_RK**2).sum(axis=1) - explained_GR, _ROUNDING)
        criterion_GR = depths * np.log(squares_GR / depths) + self.penalty_G[:, None]
        turns_GR = _lost(weights_GCR).max(axis=1) > _ROUNDING
        straight_GR = np.where(turns_GR, np.inf, criterion_GR)
        best_R, straight_R = criterion_GR.argmin(axis=0), straight_GR.argmin(axis=0)
        row_R = np.arange(len(curves_RK))
        best_RK, straight_RK = (
            np.einsum("rkc,rc->rk", self.lines_GKC[choice_R], weights_GCR[choice_R, :, row_R])
            for choice_R in (best_R, straight_R)
        )
        margin_R = straight_GR[straight_R, row_R] - criterion_GR[best_R, row_R]
        knee_R = _lost(weights_GCR[best_R, :, row_R]).argmax(axis=1)
        turning_R = np.where(turns_GR[best_R, row_R], self.places_GM[best_R, knee_R], np.nan)
        return _Fits(best_RK, straight_RK, margin_R, turning_R)


def _lost(weights: Numbers) -> Numbers:
    """How much slope a line loses at each knee at which it rises, else 0; coefficients stand along axis 1."""
    slopes = weights[:, 1:-1].cumsum(axis=1)
    return np.where(slopes > 0, -weights[:, 2:], 0)
