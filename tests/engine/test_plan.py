"""Batches cover every row once and keep within their budgets."""

from hypothesis import given
from hypothesis import strategies as st

from bellm.engine.plan import batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 120))
def test_every_row_comes_once_and_no_batch_is_over_its_budget(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget


@given(st.lists(st.integers(1, 50), min_size=1))
def test_the_longest_comes_first(lengths: list[int]) -> None:
    planned = [lengths[row] for group in batches(lengths, 100) for row in group]
    assert planned == sorted(lengths, reverse=True)


def test_no_text_is_no_batch() -> None:
    assert batches([], 100) == []
