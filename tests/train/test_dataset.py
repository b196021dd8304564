"""Rows go in and come out."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.errors import SourceError
from bellm.train.dataset import Dataset, Rejection
from bellm.train.examples import Example, text_key

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=9)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
EXAMPLES = st.builds(Example, TEXT, TEXTS, TEXTS, st.none() | st.floats(allow_nan=False), st.booleans())
BAD = Rejection("f.csv, line 3", "no anchors.")


@given(st.lists(EXAMPLES, min_size=1, max_size=8))
def test_rows_come_back(rows: list[Example]) -> None:
    dataset = Dataset("some", rows)
    assert list(dataset) == rows
    assert [dataset[-at] for at in range(1, len(rows) + 1)] == rows[::-1]
    assert dataset.rated == (rows[0].score is not None)
    with pytest.raises(IndexError):
        dataset[len(rows)]


@given(st.lists(EXAMPLES, min_size=1, max_size=8))
def test_keys_are_those_of_the_texts(rows: list[Example]) -> None:
    dataset = Dataset("some", rows)
    starts = [0, *dataset.key_ends_R]
    for number, row in enumerate(rows):
        assert dataset.keys_T[starts[number] : starts[number + 1]].tolist() == [text_key(text) for text in row.texts]
    assert starts[-1] == len(dataset.keys_T)


@given(st.lists(EXAMPLES, min_size=1, max_size=4), st.lists(EXAMPLES, min_size=1, max_size=4))
def test_digests_are_equal_if_and_only_if_rows_are(left: list[Example], right: list[Example]) -> None:
    same = list(map(repr, left)) == list(map(repr, right))  # 0.0 and -0.0 are two scores.
    assert (Dataset("l", left).digest == Dataset("r", right).digest) == same
    assert Dataset("l", left).digest == Dataset("r", [BAD, *left]).digest


def test_rejections_are_counted_and_the_first_kept() -> None:
    rows = [Example("a", ("b",)), *(Rejection(f"line {number}", "why") for number in range(250))]
    dataset = Dataset("some", rows)
    assert (len(dataset), dataset.num_rejected) == (1, 250)
    assert [rejection.location for rejection in dataset.rejections] == [f"line {number}" for number in range(100)]


def test_a_source_without_a_good_row_is_an_error_at_once() -> None:
    def rows() -> Iterator[Rejection]:
        yield from [BAD] * 100
        pytest.fail("it read on")

    with pytest.raises(SourceError, match=r"^No row of f can be read\. f\.csv, line 3: no anchors\.$"):
        Dataset("f", rows())
    with pytest.raises(SourceError, match=r"^No row of f can be read"):
        Dataset("f", [BAD])
    with pytest.raises(SourceError, match=r"^f holds no rows\.$"):
        Dataset("f", [])
    assert len(Dataset("f", [*[BAD] * 99, Example("a", ("b",))])) == 1
