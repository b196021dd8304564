"""Numbers as tables and pages write them."""

import pytest

from bellm.report.formatting import (
    BETTER,
    WORSE,
    format_cell,
    format_p_value,
    format_points,
    shorten,
    significance_mark,
)
from bellm.report.statistics import Difference


@pytest.mark.parametrize(
    ("value", "p_value", "sign"), [(2, 0.049, BETTER), (-2, 0.049, WORSE), (2, 0.05, ""), (-2, 1, ""), (0, 0.0, "")]
)
def test_only_a_significant_difference_is_marked(value: float, p_value: float, sign: str) -> None:
    assert significance_mark(Difference(value, value - 1, value + 1, p_value)) == sign


def test_points_round_and_never_show_a_negative_zero() -> None:
    assert [format_points(value) for value in (82.03, -0.04, -0.06, 0)] == ["82.0", "0.0", "\N{MINUS SIGN}0.1", "0.0"]
    assert [format_points(value, signed=True) for value in (1.26, -3, 0.01)] == ["+1.3", "\N{MINUS SIGN}3.0", "0.0"]


def test_p_values_have_three_decimals() -> None:
    assert [format_p_value(value) for value in (0.0412, 0.0001)] == ["0.041", "< 0.001"]


def test_cells_round_and_never_show_a_negative_zero() -> None:
    assert [format_cell(value) for value in (-0.001, 0.125)] == ["0.00", "0.12"]


def test_a_long_label_ends_in_an_ellipsis() -> None:
    assert shorten("models/heron", 8) == "models/\N{HORIZONTAL ELLIPSIS}"
