"""Do measures put the same comparisons in the same order?

Shapes: C comparisons, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.analyse.comparison import ComparedPair
from bellm.analyse.measures import MEASURES

_FEWEST = 4  # Comparisons; three have six orders only.
_DECIMALS = 6  # What is beyond is rounding, and puts nothing in order.


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two measures' rankings of all comparisons, for every two measures."""

    measures: tuple[str, ...]
    """Those that tell the comparisons apart."""
    correlations_MM: NDArray[np.float64]
    num_comparisons: int

    @property
    def mean(self) -> float:
        """Over every two different measures."""
        return float(self.correlations_MM[np.triu_indices(len(self.measures), 1)].mean())

    def to_json(self) -> dict[str, Any]:
        """All fields, and the mean."""
        return {
            "measures": list(self.measures),
            "spearman": self.correlations_MM.round(4).tolist(),
            "mean": round(self.mean, 4),
            "comparisons": self.num_comparisons,
        }


def measure_agreement(compared: Sequence[ComparedPair]) -> Agreement | None:
    """Agreement of raw values, each turned so that more is closer; None for fewer than 4 comparisons or 2 measures."""
    if len(compared) < _FEWEST:
        return None
    closeness = {
        name: (-1 if MEASURES[name].is_distance else 1)
        * np.array([pair.measures[name].value for pair in compared]).round(_DECIMALS)
        for name in compared[0].measures
    }
    names = tuple(name for name, values_C in closeness.items() if np.ptp(values_C) > 0)
    if len(names) < 2:
        return None
    ranks_MC = np.stack([rankdata(closeness[name]) for name in names])
    return Agreement(names, np.corrcoef(ranks_MC), len(compared))
