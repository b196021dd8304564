"""Where a figure's marks stand along its axes, in per cent of its box.

Per cent, so that a figure is as wide as the screen and its words keep their size. Templates draw.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MARGIN = 0.04  # Of the span, at both ends.


@dataclass(frozen=True)
class Axis:
    """A scale with a margin around its values and ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Where a value stands, in per cent from the low end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def make_axis(values: Iterable[float], *, least_step: float = 0) -> Axis:
    """A scale for values, with ticks at multiples of 1, 2 or 5 times a power of ten.

    >>> axis([0, 3.8]).ticks
    (0.0, 1.0, 2.0, 3.0)
    """
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    span = high - low
    low, high = low - _MARGIN * span, high + _MARGIN * span
    power = 10 ** math.floor(math.log10(span / 5))
    step = max(least_step, next(times * power for times in (1, 2, 5, 10) if times * power >= 0.999 * span / 5))
    ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Axis(low, high, tuple(round(tick * step, 10) for tick in ticks))
