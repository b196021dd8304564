"""Where marks stand along an axis."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bellm.report.figures import make_axis

NUMBERS = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_an_axis_holds_its_values_and_a_few_round_ticks(values: list[float]) -> None:
    found = make_axis(values)
    assert all(0 < found.percent(value) < 100 for value in values)
    assert all(0 <= found.percent(tick) <= 100 for tick in found.ticks)
    assert 2 <= len(found.ticks) <= 6
    steps = np.diff(found.ticks)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_layers_are_counted_in_whole_numbers() -> None:
    assert make_axis([0, 1], least_step=1).ticks == (0, 1)
