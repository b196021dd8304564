import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellm.corpus.row_ranges import RowRange, split_rows
from bellm.corpus.shard_plan import in_order, missing_ranges
from bellm.corpus.shards import Shard
from bellm.errors import SourceError
from bellm.io.rows import TextColumns, TextFile

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
    row_ranges = list(missing_ranges([file], TextColumns(), reversed(done), max_rows))
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
        list(missing_ranges([file], TextColumns(), done, 10))


def test_rows_that_went_away_are_a_change(file: str) -> None:
    done = covered(file, {10}, {1})
    Path(file).write_text("".join(Path(file).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(SourceError, match="changed in rows 11 to 40"):
        list(missing_ranges([file], TextColumns(), done, 10))


def test_shards_are_ordered_as_their_files_were_named(file: str) -> None:
    shards = covered(file, {10, 20}, {0, 1, 2})
    others = [dataclasses.replace(shard, file=name) for name in ("c", "b") for shard in shards]
    found = in_order([file, "c"], [*others, *reversed(shards)])
    assert [(shard.file, shard.first) for shard in found] == [
        (name, n) for name in (file, "c", "b") for n in (1, 11, 21)
    ]
