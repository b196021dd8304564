import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellm.corpus import shards
from bellm.corpus.row_ranges import Precision, RowRange, Shard, shard_name, split_rows
from bellm.corpus.shards import DamagedError
from bellm.engine.embedding import EncodeResult
from bellm.errors import SourceError
from bellm.io.atomic import atomic_write
from bellm.io.rows import TextRow

VECTORS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def row_range() -> RowRange:
    texts = ["A heron.", "", None, "zwei\u2028Zeilen \N{SNOWMAN}", "x" * 1000]
    rows = [
        TextRow(number, f"id {number}", text, "" if text is not None else "why") for number, text in enumerate(texts, 7)
    ]
    [row_range] = split_rows("some/notes.txt", rows, 100)
    return row_range


def written(folder: Path, form: Precision = "float32", vectors: Any = VECTORS, *, keep_text: bool = True) -> Shard:
    return shards.write_shard(
        folder, row_range(), EncodeResult(vectors, 30, 1), precision=form, keep_text=keep_text, config_digest="abc"
    )


@pytest.mark.parametrize("keep_text", [True, False])
@pytest.mark.parametrize(("form", "kind"), [("float32", "float"), ("float16", "halffloat"), ("int8", "int8")])
def test_round_trip(tmp_path: Path, form: Precision, kind: str, keep_text: bool) -> None:
    shard = written(tmp_path, form, keep_text=keep_text)
    [path] = tmp_path.iterdir()
    assert (shard.name, shard.num_bytes) == (path.name, path.stat().st_size)
    assert shards.read_shard_info(path) == shard
    assert (shard.first, shard.stop, shard.num_rows, shard.num_unreadable) == (7, 12, 4, 1)
    assert shards.read_unreadable_rows(path) == [(9, "why")]
    columns = pq.ParquetFile(path).metadata.row_group(0)
    compression = {
        columns.column(at).path_in_schema: columns.column(at).compression for at in range(columns.num_columns)
    }
    assert {name for name, found in compression.items() if found == "UNCOMPRESSED"} == {"vector.list.element"}
    table = shards.read_shard(path)
    assert str(table.schema.field("vector").type) == f"fixed_size_list<element: {kind}>[6]"
    assert table.column("row").to_pylist() == [7, 8, 10, 11]
    assert table.column("id").to_pylist() == ["id 7", "id 8", "id 10", "id 11"]
    assert set(table.column("file").to_pylist()) == {"some/notes.txt"}
    assert ("text" in table.column_names) == keep_text
    assert not keep_text or table.column("text").to_pylist() == row_range().texts


@given(st.integers(0, 5), st.integers(1, 5), st.floats(1e-30, 1e4), st.integers(0, 2**32 - 1))
def test_bounds_of_the_smaller_forms(rows: int, width: int, size: float, seed: int) -> None:
    vectors = (np.random.default_rng(seed).normal(size=(rows, width)) * size).astype(np.float32)
    largest = np.abs(vectors).max(axis=1, initial=0)[:, None]
    assert vectors.shape == _kept(vectors, "int8").shape
    assert (np.abs(_kept(vectors, "int8") - vectors) <= largest / 254 * 1.001 + 1e-37).all()
    assert (np.abs(_kept(vectors, "float16") - vectors) <= np.abs(vectors) * 2**-11 + 2**-25).all()
    np.testing.assert_array_equal(_kept(vectors, "float32"), vectors)


def _kept(vectors: Any, form: Precision) -> Any:
    some = RowRange("f", 1, rows=list(range(1, len(vectors) + 1)), ids=[""] * len(vectors), texts=[""] * len(vectors))
    return shards.shard_vectors(shards._table(some, vectors, form, keep_text=False))


def test_a_vector_of_zeros_stays_one(tmp_path: Path) -> None:
    shard = written(tmp_path, "int8", np.zeros((4, 6), np.float32))
    np.testing.assert_array_equal(shards.shard_vectors(shards.read_shard(tmp_path / shard.name)), np.zeros((4, 6)))


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds 7e\\+04, and float16 ends at 65504"):
        written(tmp_path, "float16", VECTORS * 0 + 7e4)
    assert list(tmp_path.iterdir()) == []


def test_names_sort_as_rows_and_tell_files_apart() -> None:
    assert sorted(shard_name("a.txt", first) for first in (9, 10, 10**9)) == [
        shard_name("a.txt", n) for n in (9, 10, 10**9)
    ]
    assert shard_name("a/b.txt", 1) != shard_name("a-b.txt", 1)
    for file in ("-", "../../x.txt", "Größe \N{SNOWMAN}.txt", "d/" * 200 + "x.txt"):
        assert "/" not in shard_name(file, 1)
        assert len(shard_name(file, 1)) < 120
        assert not shard_name(file, 1).startswith(".")


def test_no_flipped_byte_passes_for_the_shard(tmp_path: Path) -> None:
    """Either the damage is seen, or it lies where it changes nothing that is read."""
    shard = written(tmp_path)
    path = tmp_path / shard.name
    whole, table = path.read_bytes(), shards.read_shard(path)
    seen = 0
    for position, flip in itertools.product(range(len(whole)), (0x08, 0x55)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        try:
            assert shards.read_shard(path).equals(table), position
            assert shards.read_shard_info(path) == shard, position
        except DamagedError:
            seen += 1
    assert seen > len(whole)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_shard_cut_short_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / written(tmp_path).name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedError, match="is damaged"):
        shards.read_shard_info(path)


def test_a_shard_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file") as caught:
        shards.read_shard(tmp_path / "none.parquet")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / f".{shard_name('some/notes.txt', 7)}-{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(SourceError, match="No space left on device"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20)
@given(st.binary(max_size=100))
def test_a_file_that_fails_keeps_the_old_one(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
            file.write(data)
            raise KeyboardInterrupt
        assert path.read_bytes() == b"old"
        with atomic_write(path) as file:
            file.write(data)
        assert path.read_bytes() == data
        assert os.listdir(folder) == ["f"]
