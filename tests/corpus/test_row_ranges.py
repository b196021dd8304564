import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellm.corpus import row_ranges
from bellm.corpus.row_ranges import RowRange, Shard, digest_rows, in_order, missing_ranges, split_rows
from bellm.errors import SourceError
from bellm.io.rows import TextFile, TextRow

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
    assert (digest_rows(rows_of(some)) == digest_rows(rows_of(others))) == (some == others)


def test_the_digest_knows_where_texts_end_and_what_ids_are() -> None:
    assert digest_rows([TextRow(1, "a", "bc"), TextRow(2, "a", "d")]) != digest_rows(
        [TextRow(1, "a", "b"), TextRow(2, "a", "cd")]
    )
    assert digest_rows([TextRow(1, "a", "bc")]) != digest_rows([TextRow(1, "ab", "c")])
    assert digest_rows([TextRow(1, "a", "")]) != digest_rows([TextRow(1, "", None, "why")])


NUM_ROWS = 40


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'"text {row}"\n' if row % 7 else "7\n" for row in range(1, NUM_ROWS + 1)))
    return str(path)


def shard_of(row_range: RowRange) -> Shard:
    return Shard(
        file=row_range.file,
        first=row_range.first,
        stop=row_range.stop,
        num_rows=len(row_range.rows),
        num_tokens=0,
        num_truncated=0,
        num_missing_graphs=0,
        rows_digest=row_range.digest,
        config_digest="",
    )


def covered(file: str, edges: set[int], keep: set[int]) -> list[Shard]:
    """Shards between some edges, of which some are there."""
    rows = list(TextFile(file).texts())
    stops = [0, *sorted(edge for edge in edges if edge < len(rows)), len(rows)]
    row_ranges = [next(split_rows(file, rows[start:stop], 1000)) for start, stop in itertools.pairwise(stops)]
    return [shard_of(row_range) for number, row_range in enumerate(row_ranges) if number in keep]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(1, NUM_ROWS)), st.sets(st.integers(0, NUM_ROWS)), st.integers(1, NUM_ROWS + 1))
def test_what_is_missing_and_what_is_there_are_all_rows_once(
    file: str, edges: set[int], keep: set[int], max_rows: int
) -> None:
    done = covered(file, edges, keep)
    row_ranges = list(missing_ranges([file], TextFile, reversed(done), max_rows))
    taken = sorted((part.first, part.stop) for part in [*done, *row_ranges])
    assert [edge for part in taken for edge in range(*part)] == list(range(1, NUM_ROWS + 1))
    assert all(row_range.stop - row_range.first <= max_rows for row_range in row_ranges)
    assert [row_range.first for row_range in row_ranges] == sorted(row_range.first for row_range in row_ranges)
    assert all(
        text == f"text {row}"
        for row_range in row_ranges
        for row, text in zip(row_range.rows, row_range.texts, strict=True)
    )
    shares = [share for row_range in row_ranges for share in (row_range.begun, row_range.read)]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("change", [1, 6, 7, 8, 19])
def test_changed_rows_are_named(file: str, change: int) -> None:
    done = covered(file, {5, 10, 20}, {0, 1, 2})
    lines = Path(file).read_text().splitlines()
    lines[change - 1] = '"other"'
    Path(file).write_text("\n".join(lines) + "\n")
    [shard] = [shard for shard in done if shard.first <= change < shard.stop]
    with pytest.raises(SourceError, match=rf"a\.jsonl has changed in rows {shard.first} to {shard.stop - 1}, .*remove"):
        list(missing_ranges([file], TextFile, done, 10))


def test_rows_that_went_away_are_a_change(file: str) -> None:
    done = covered(file, {10}, {1})
    Path(file).write_text("".join(Path(file).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(SourceError, match="changed in rows 11 to 40"):
        list(missing_ranges([file], TextFile, done, 10))


def test_shards_are_ordered_as_their_files_were_named(file: str) -> None:
    shards = covered(file, {10, 20}, {0, 1, 2})
    others = [dataclasses.replace(shard, file=name) for name in ("c", "b") for shard in shards]
    found = in_order([file, "c"], [*others, *reversed(shards)])
    assert [(shard.file, shard.first) for shard in found] == [
        (name, n) for name in (file, "c", "b") for n in (1, 11, 21)
    ]
