"""Numbers as tables and pages write them."""

import pytest

from bellm.report.formatting import BETTER, WORSE, format_points, significance_mark
from bellm.report.statistics import Difference


@pytest.mark.parametrize(
    ("value", "p_value", "sign"), [(2, 0.049, BETTER), (-2, 0.049, WORSE), (2, 0.05, ""), (-2, 1, ""), (0, 0.0, "")]
)
def test_only_a_significant_difference_is_marked(value: float, p_value: float, sign: str) -> None:
    assert significance_mark(Difference(value, value - 1, value + 1, p_value)) == sign


def test_points_round_and_never_show_a_negative_zero() -> None:
    assert [format_points(value) for value in (82.03, -0.04, -0.06, 0)] == ["82.0", "0.0", "\N{MINUS SIGN}0.1", "0.0"]
    assert [format_points(value, signed=True) for value in (1.26, -3, 0.01)] == ["+1.3", "\N{MINUS SIGN}3.0", "0.0"]
