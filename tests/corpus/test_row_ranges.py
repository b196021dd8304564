import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.corpus import row_ranges
from bellm.corpus.row_ranges import RowsDigest, split_rows
from bellm.io.rows import TextRow

TEXTS = st.lists(st.none() | st.text("ab ", max_size=5), max_size=30)


def rows_of(texts: list[str | None], first: int = 1) -> list[TextRow]:
    return [TextRow(number, f"f:{number}", text, "" if text else "why") for number, text in enumerate(texts, first)]


@given(TEXTS, st.integers(1, 40), st.integers(1, 1000))
def test_spans_hold_every_row_once_and_in_order(texts: list[str | None], max_rows: int, first: int) -> None:
    found = list(split_rows("f", rows_of(texts, first), max_rows))
    edges = [first, *(row_range.stop for row_range in found)]
    assert edges == [*(row_range.first for row_range in found), first + len(texts)]
    assert all(row_range.stop - row_range.first == max_rows for row_range in found[:-1])
    kept = [(row, text) for row_range in found for row, text in zip(row_range.rows, row_range.texts, strict=True)]
    assert kept == [(row, text) for row, text in enumerate(texts, first) if text is not None]
    lost = [(row, reason) for row_range in found for row, reason in row_range.unreadable]
    assert lost == [(row, "why") for row, text in enumerate(texts, first) if text is None]
    assert all(id == f"f:{row}" for row_range in found for row, id in zip(row_range.rows, row_range.ids, strict=True))


def test_long_texts_make_short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "MAX_RANGE_CHARACTERS", 10)
    texts = ["x" * 9, "y", "z" * 30, "a", "b"]
    assert [row_range.texts for row_range in split_rows("f", rows_of(list(texts)), 100)] == [
        texts[:2],
        texts[2:3],
        texts[3:],
    ]


@given(TEXTS, TEXTS)
def test_the_digest_tells_rows_apart(some: list[str | None], others: list[str | None]) -> None:
    assert (_digest(rows_of(some)) == _digest(rows_of(others))) == (some == others)


def test_the_digest_knows_where_texts_end_and_what_ids_are() -> None:
    assert _digest([TextRow(1, "a", "bc"), TextRow(2, "a", "d")]) != _digest(
        [TextRow(1, "a", "b"), TextRow(2, "a", "cd")]
    )
    assert _digest([TextRow(1, "a", "bc")]) != _digest([TextRow(1, "ab", "c")])
    assert _digest([TextRow(1, "a", "")]) != _digest([TextRow(1, "", None, "why")])


def _digest(rows: list[TextRow]) -> str:
    digest = RowsDigest()
    for row in rows:
        digest.add(row)
    return digest.hexdigest()
