"""Every command reads the same rows of every format, plain or compressed, and refuses the same ones by their place."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bellm.corpus.row_ranges import missing_ranges
from bellm.errors import SourceError
from bellm.io.formats import FORMATS
from bellm.io.rows import RowFile, TextColumns, TextFile, check_columns, expand_inputs, read_texts
from bellm.layer_search.finder import read_dev_set
from bellm.train.dataset import Rejection, load_dataset, read_examples

Pairs = list[tuple[str, str, str]]

PAIRS: Pairs = [
    ("A heron waits.", "A bird stands still.", "4.0"),
    ('She said "no", twice.', "zwei\u2028Zeilen \N{SNOWMAN}", "2.5"),
    ("snow\tand rain", " spaces  stay ", "0.0"),
    ("the last row", "y" * 200_000, "1.0"),
]
LINES = [pair[0] for pair in PAIRS]
COLUMN = TextColumns("text1")
NAMES = ["text1", "text2", "score"]
TABLES = [suffix for suffix in FORMATS if suffix != ".txt"]
SUFFIXES = pytest.mark.parametrize("suffix", [name + gz for name in FORMATS for gz in ("", ".gz")])
TABLE_SUFFIXES = pytest.mark.parametrize("suffix", [name + gz for name in TABLES for gz in ("", ".gz")])


def as_text(pairs: Pairs) -> bytes:
    return "".join(f"{pair[0]}\n" for pair in pairs).encode()


def as_json(pairs: Pairs) -> bytes:
    return "".join(json.dumps(dict(zip(NAMES, pair, strict=True))) + "\n" for pair in pairs).encode()


def as_table(pairs: Pairs, dialect: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, dialect).writerows([NAMES, *pairs])
    return file.getvalue().encode()


def as_parquet(pairs: Pairs) -> bytes:
    file = io.BytesIO()
    columns = [
        pa.array([cell.encode("latin1") if cell == "na\xefve" else cell.encode() for cell in column])
        for column in zip(*pairs, strict=True)
    ]
    pq.write_table(pa.table([column.view(pa.string()) for column in columns], NAMES), file, row_group_size=2)
    return file.getvalue()


WRITERS: dict[str, Callable[[Pairs], bytes]] = {
    ".txt": as_text,
    ".jsonl": as_json,
    ".csv": lambda pairs: as_table(pairs, "excel"),
    ".tsv": lambda pairs: as_table(pairs, "excel-tab"),
    ".parquet": as_parquet,
}


def written(folder: Path, suffix: str, data: bytes) -> str:
    path = folder / f"rows{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return str(path)


def pairs_in(folder: Path, suffix: str, pairs: Pairs = PAIRS) -> str:
    return written(folder, suffix, WRITERS[suffix.removesuffix(".gz")](pairs))


@SUFFIXES
def test_texts_are_the_same_to_a_corpus_and_to_commands_that_hold_them(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    assert expand_inputs([str(tmp_path)]) == [file]
    check_columns([file], COLUMN)
    assert read_texts(file, "text1") == LINES
    row_ranges = list(missing_ranges([file], COLUMN, [], 3))
    assert [text for row_range in row_ranges for text in row_range.texts] == LINES
    assert [id for row_range in row_ranges for id in row_range.ids] == [f"{file}:{row}" for row in range(1, 5)]
    assert row_ranges[-1].read == 1


@TABLE_SUFFIXES
def test_pairs_are_the_same_to_training_and_to_the_choice_of_layers(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    dataset, dev = load_dataset(file), read_dev_set(file)
    assert [(*row.texts, str(row.score)) for row in dataset] == PAIRS
    assert list(zip(dev.left, dev.right, map(str, dev.gold_N), strict=True)) == PAIRS
    assert read_texts(file, "text2") == [pair[1] for pair in PAIRS]


BAD = PAIRS[:1] + [("na\xefve", "b", "1.0")] + PAIRS[:1] * 3
_QUOTED = b'text1,text2,score\na,b,1\nc,"d,2\ne,f" g,3\nh,i,0\nj,k,2\nl,m,3\n'
BAD_ROWS = [
    (".txt", as_text(BAD).replace("\xef".encode(), b"\xef"), "line 2", "byte 0xef is not UTF-8"),
    (".jsonl", as_text(BAD).replace("\xef".encode(), b"\xef"), "line 1", "not JSON"),
    (".jsonl", as_json(PAIRS) + b'{"text1": \n', "line 5", "not JSON"),
    (".jsonl", as_json(PAIRS) + b'{"text1": "na\xefve", "text2": "b", "score": 1}\n', "line 5", "byte 0xef is not"),
    (".jsonl", as_json(PAIRS) + b'{"text1": "\\ud83d", "text2": "b", "score": 1}\n', "line 5", "is half a character"),
    (".jsonl", as_json(PAIRS) + b'{"text2": "b", "score": 1}\n', "line 5", "no column"),
    (".jsonl", as_json(PAIRS) + b'{"text1": 7, "text2": "b", "score": 1}\n', "line 5", "7 is not a text"),
    (".csv", _QUOTED, "lines 3-4", "expected after.*Put quotes around a cell that holds quotes"),
    (".csv", as_table(PAIRS, "excel") + b"a,b\n", "line 6", "2 cells, but the header has 3"),
    (".csv", as_table(PAIRS, "excel") + b"na\xefve,b,1\n", "line 6", "byte 0xef is not UTF-8"),
    (".tsv", _QUOTED.replace(b",", b"\t"), "lines 3-4", "expected after"),
    (".tsv", as_table(PAIRS, "excel-tab") + b"a\tb\t1\tc\n", "line 6", "4 cells, but the header has 3"),
    (".tsv", as_table(PAIRS, "excel-tab") + b'a\tb\t"1', "line 6", "unexpected end of data"),
    (".parquet", as_parquet(BAD), "row 2", "byte 0xef is not UTF-8"),
]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(("suffix", "data", "place", "reason"), BAD_ROWS)
def test_a_row_that_cannot_be_read_is_refused_by_all_and_by_its_place(
    tmp_path: Path, suffix: str, data: bytes, place: str, reason: str, gz: str
) -> None:
    file = written(tmp_path, suffix + gz, data)
    rows = list(TextFile(file, COLUMN).texts())
    bad = next(row for row in rows if row.text is None)
    [unreadable] = [row_range.unreadable for row_range in missing_ranges([file], COLUMN, [], 100)]
    assert unreadable[0] == (bad.number, bad.reason)
    assert bad.reason.startswith(f"{place}: ")
    message = rf"rows{suffix}{gz}, {place}: .*{reason}"
    with pytest.raises(SourceError, match=message):
        read_texts(file, "text1")
    if suffix != ".txt" and len(unreadable) < len(rows):
        rejection = next(row for row in read_examples(file) if isinstance(row, Rejection))
        assert rejection.place == f"{file}, {place}"
        with pytest.raises(SourceError, match=message):
            read_dev_set(file)


@TABLE_SUFFIXES
def test_a_missing_column_is_named_by_all(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    message = r"no column 'text'.* Columns: text1, text2, score"
    with pytest.raises(SourceError, match=message):
        read_texts(file)
    with pytest.raises(SourceError, match=message):
        check_columns([file], TextColumns())
    with pytest.raises(SourceError, match=message):
        load_dataset(file, {"anchor": "text", "positive": "text2"})


@pytest.mark.parametrize("suffix", TABLES)
def test_a_compressed_file_that_ends_early_is_refused_by_all(tmp_path: Path, suffix: str) -> None:
    file = Path(pairs_in(tmp_path, f"{suffix}.gz"))
    file.write_bytes(file.read_bytes()[:-9])
    users: list[Callable[[str], object]] = [
        lambda file: read_texts(file, "text1"),
        load_dataset,
        read_dev_set,
        lambda file: list(missing_ranges([file], COLUMN, [], 10)),
    ]
    for read in users:
        with pytest.raises(SourceError, match=rf"rows{suffix}\.gz(:)? cannot be read.*Compressed file ended"):
            read(str(file))


def test_share_of_a_compressed_file_is_that_of_its_bytes_on_the_disk(tmp_path: Path) -> None:
    texts = "".join(f"{number * 7919 % 100_003} herons\n" for number in range(100_000))
    source = TextFile(written(tmp_path, ".txt.gz", texts.encode()))
    shares = [source.share for _ in source.texts()]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5 < shares[len(shares) * 3 // 4] <= 1
    assert source.share == 1


def test_strict_rows_stop_at_the_first_that_cannot_be_read(tmp_path: Path) -> None:
    file = written(tmp_path, ".csv", b"a,b\n1,2\n3\n4,5\n")
    rows = RowFile(file).rows(lambda _: ["b"], strict=True)
    assert next(rows).cells == {"b": "2"}
    with pytest.raises(SourceError, match=r"rows\.csv, line 3: 1 cells, but the header has 2"):
        next(rows)
    assert [row.place for row in RowFile(file).rows(lambda _: ["b"])] == ["line 2", "line 3", "line 4"]


def test_standard_input_is_lines_for_strict_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nna\xefve\n")))
    with pytest.raises(SourceError, match=r"^standard input, line 2: byte 0xef is not UTF-8"):
        read_texts("-")


def test_half_a_character_is_no_id(tmp_path: Path) -> None:
    file = written(tmp_path, ".jsonl", b'{"text": "x", "key": "\\ud83d"}\n{"text": "x", "key": "k"}\n')
    rows = list(TextFile(file, TextColumns("text", "key")).texts())
    assert rows[0].reason.startswith("line 1: '\\ud83d' is not an id")
    assert rows[1].id == "k"
