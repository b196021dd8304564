"""Every command reads the same rows of every format, plain or compressed, and refuses the same ones by their place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bellm.corpus.row_ranges import missing_ranges
from bellm.errors import BellmWarning, SourceError
from bellm.evaluate import read_dev_set
from bellm.io.formats import FORMATS
from bellm.io.rows import RowFile, TextColumns, TextFile, check_columns, expand_inputs, parse_columns, read_texts
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
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
SUFFIXES = pytest.mark.parametrize(
    "suffix", [*(name + gz for name in FORMATS for gz in ("", ".gz")), ".txt.bz2", ".csv.xz", ".jsonl.zst", ".json.zst"]
)
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
    ".ndjson": as_json,
    ".json": lambda pairs: json.dumps([dict(zip(NAMES, pair, strict=True)) for pair in pairs], indent=1).encode(),
    ".csv": lambda pairs: as_table(pairs, "excel"),
    ".tsv": lambda pairs: as_table(pairs, "excel-tab"),
    ".parquet": as_parquet,
}


def written(folder: Path, suffix: str, data: bytes) -> str:
    path = folder / f"rows{suffix}"
    path.write_bytes(COMPRESS[path.suffix](data) if path.suffix in COMPRESS else data)
    return str(path)


def pairs_in(folder: Path, suffix: str, pairs: Pairs = PAIRS) -> str:
    return written(folder, suffix, WRITERS[Path(f"rows{suffix}").suffixes[0]](pairs))


def told_of_unread(suffix: str) -> AbstractContextManager[object]:
    if suffix.startswith(".txt"):
        return nullcontext()
    return pytest.warns(BellmWarning, match=r"rows\S+: not read: columns 'text2', 'score'\.$")


@SUFFIXES
def test_texts_are_the_same_to_a_corpus_and_to_commands_that_hold_them(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    assert expand_inputs([str(tmp_path)]) == [file]
    with told_of_unread(suffix):
        check_columns([file], COLUMN)
    with told_of_unread(suffix):
        assert read_texts(file, "text1") == LINES
    row_ranges = list(missing_ranges([file], partial(TextFile, columns=COLUMN), [], 3))
    assert [text for row_range in row_ranges for text in row_range.texts] == LINES
    assert [id for row_range in row_ranges for id in row_range.ids] == [f"{file}:{row}" for row in range(1, 5)]
    assert row_ranges[-1].read == 1


@TABLE_SUFFIXES
def test_pairs_are_the_same_to_training_and_to_the_choice_of_layers(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    dataset, dev = load_dataset(file), read_dev_set(file)
    assert [(*row.texts, str(row.score)) for row in dataset] == PAIRS
    assert list(zip(dev.left, dev.right, map(str, dev.gold_N), strict=True)) == PAIRS
    with pytest.warns(BellmWarning, match="not read: columns 'text1', 'score'"):
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
    [unreadable] = [
        row_range.unreadable for row_range in missing_ranges([file], partial(TextFile, columns=COLUMN), [], 100)
    ]
    assert unreadable[0] == (bad.number, bad.reason)
    assert bad.reason.startswith(f"{place}: ")
    message = rf"rows{suffix}{gz}, {place}: .*{reason}"
    with pytest.raises(SourceError, match=message):
        read_texts(file, "text1")
    if suffix != ".txt" and len(unreadable) < len(rows):
        rejection = next(row for row in read_examples(file) if isinstance(row, Rejection))
        assert rejection.location == f"{file}, {place}"
        with pytest.raises(SourceError, match=message):
            read_dev_set(file)


@TABLE_SUFFIXES
def test_a_missing_column_is_named_by_all(tmp_path: Path, suffix: str) -> None:
    file = pairs_in(tmp_path, suffix)
    message = r"no column 'text'.* Columns: '?text1'?, '?text2'?, '?score'?"
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
        lambda file: list(missing_ranges([file], partial(TextFile, columns=COLUMN), [], 10)),
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
    assert [row.location for row in RowFile(file).rows(lambda _: ["b"])] == ["line 2", "line 3", "line 4"]


def test_standard_input_is_lines_for_strict_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nna\xefve\n")))
    with pytest.raises(SourceError, match=r"^standard input, line 2: byte 0xef is not UTF-8"):
        read_texts("-")


def test_half_a_character_is_no_id(tmp_path: Path) -> None:
    file = written(tmp_path, ".jsonl", b'{"text": "x", "key": "\\ud83d"}\n{"text": "x", "key": "k"}\n')
    rows = list(TextFile(file, TextColumns("text", "key")).texts())
    assert rows[0].reason.startswith("line 1: '\\ud83d' is not an id")
    assert rows[1].id == "k"


def test_a_part_of_a_compressed_file_of_any_kind_is_one_line(tmp_path: Path) -> None:
    for suffix in COMPRESS:
        file = Path(pairs_in(tmp_path, f".txt{suffix}"))
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(SourceError, match=rf"rows\.txt\{suffix} cannot be read: [^\n]+$"):
            read_texts(str(file))
        file.write_bytes(b"no such thing")
        with pytest.raises(SourceError, match=rf"rows\.txt\{suffix} cannot be read: [^\n]+$"):
            read_texts(str(file))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-16-be-mark"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".json", ".tsv.gz"])
def test_encodings_that_windows_writes(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = WRITERS[Path(f"rows{suffix}").suffixes[0]](PAIRS[:3]).decode()
    mark = "\ufeff" * encoding.endswith("-mark")
    file = written(tmp_path, suffix, (mark + text).encode(encoding.removesuffix("-mark")))
    with told_of_unread(suffix):
        assert read_texts(file, "text1") == LINES[:3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".json", ".txt.gz"])
@pytest.mark.parametrize(
    "text", ["\u0447\u0430\u0439", "\u0938\u0930\u0947", "\u4f60\u597d", "caf\xe9 \N{EN DASH} tea", "tea"]
)
def test_other_encodings_are_read_by_their_mark_and_never_as_garbage(
    tmp_path: Path, text: str, suffix: str, encoding: str
) -> None:
    """Without a mark Latin letters are known as UTF-16, and all else is refused."""
    pairs = [(f"{text} {number}" if number else text, text, "1") for number in range(3)]
    content = WRITERS[Path(f"rows{suffix}").suffixes[0]](pairs).decode()
    file = written(tmp_path, suffix, content.encode(encoding))
    known = encoding in ("utf-16", "utf-32") or ("utf-16" in encoding and content.isascii())
    message = rf"^{re.escape(file)}(, \w+ \d+)?: .*iconv -f [^\n]*$"
    with told_of_unread(suffix) if known else pytest.raises(SourceError, match=message):
        assert read_texts(file, "text1") == [pair[0] for pair in pairs]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text",
    [
        "\u0447\u0430\u0439",
        "\u0427\u0410\u0419",
        "\u0447\u0430\u0439 \u0438 \u043a\u043e\u0444\u0435",
        "\u03c4\u03c3\u03ac\u03b9\n",
        "\u05ea\u05d4\n" * 2000,
        "\u4f60\u597d\n",
        "\u4e0a\u4e0d\u4e09\u4e00 \u4f60\n" * 9,
        "a \N{EN DASH} b",
    ],
)
def test_the_encoding_of_text_without_a_mark_is_named(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(
        SourceError, match=rf"its bytes are those of {encoding} without a mark\. .*iconv -f {encoding} "
    ):
        read_texts(written(tmp_path, ".txt", text.encode(encoding)))


@pytest.mark.parametrize("text", ["tea", "caf\xe9 and tea", "a" * 9000 + "\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_one_line_of_utf_16_without_a_mark_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    assert read_texts(written(tmp_path, ".txt", text.encode(encoding))) == [text.strip()]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_streams_one_behind_the_other_are_read_and_what_is_no_stream_is_refused(tmp_path: Path, suffix: str) -> None:
    file = Path(written(tmp_path, f".txt{suffix}", b"one\n" * 30_000))
    twice = file.read_bytes() + COMPRESS[suffix](b"two\n")
    file.write_bytes(twice)
    assert read_texts(str(file)) == ["one"] * 30_000 + ["two"]
    for junk in (b"two\n", b"three\n" * 9000):
        file.write_bytes(twice + junk)
        with pytest.raises(SourceError, match=rf"rows\.txt\{suffix} cannot be read: [^\n]+$"):
            read_texts(str(file))
    if suffix in (".gz", ".xz", ".bz2"):  # As tapes and disks fill files up.
        file.write_bytes(twice + bytes(70_000))
        assert read_texts(str(file))[-1] == "two"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ".json", ".txt.gz"])
def test_a_file_without_rows_is_named(tmp_path: Path, suffix: str) -> None:
    empty = written(tmp_path, suffix, b"[]" if suffix == ".json" else b"text\n" if suffix == ".csv" else b"")
    (tmp_path / "full.txt").write_text("a heron\n")
    for read in (
        lambda: read_texts([empty, str(tmp_path / "full.txt")]),
        lambda: check_columns([empty, str(tmp_path / "full.txt")], TextColumns()),
    ):
        with pytest.warns(BellmWarning, match=rf"^There are no rows in '{re.escape(empty)}'\.$"):
            read()


def test_a_pattern_where_one_file_is_read_is_named(tmp_path: Path) -> None:
    written(tmp_path, ".csv", b"text1,text2,score\na,b,1\n")
    with pytest.raises(
        SourceError, match=r"\*\.csv cannot be read: .*, and patterns are not taken here: give one file"
    ):
        read_texts(str(tmp_path / "*.csv"), "text1")


def test_a_mark_decides_the_byte_order(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        file = written(tmp_path, ".txt", "\ufeff\u0447\u0430\u0439\n".encode(encoding))
        assert read_texts(file) == ["\u0447\u0430\u0439"]


@pytest.mark.parametrize("long", [b"", b"x" * 9000 + b"\r"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_lines_that_end_in_carriage_returns_alone_are_refused(tmp_path: Path, suffix: str, long: bytes) -> None:
    rows = WRITERS[suffix](PAIRS[:1]).replace(b"\r\n", b"\n").replace(b"\n", b"\r")
    file = written(tmp_path, suffix, long + rows + b"x\r")
    with pytest.raises(SourceError, match=r"rows\.\w+: its lines end in carriage returns alone\. Convert it"):
        read_texts(file, "text1")


def test_rows_that_a_quote_swallows_between_tabs_are_refused(tmp_path: Path) -> None:
    lines = b'text\tn\none\t1\n"two\t2\nthree\t3\nfour"\t4\n"five\nlines"\t5\n'
    rows = list(TextFile(written(tmp_path, ".tsv", lines)).texts())
    assert [row.text for row in rows] == ["one", None, "five\nlines"]
    assert rows[1].reason.startswith("lines 3-5: a cell holds several lines and tabs, as if a quote were not closed")


def test_a_zero_byte_costs_its_row(tmp_path: Path) -> None:
    for suffix, data in (
        (".txt", b"even\nod\0d\nfine"),
        (".txt", b"even\nodd\0\nfine"),
        (".txt", b"even\nodd \0\0\0\nfine\n"),
        (".txt", "even\nna\xefve\0\nfine\n".encode()),
        (".jsonl", b'"even"\n"od\\u0000d"\n"fine"\n'),
    ):
        file = written(tmp_path, suffix, data)
        assert [row.text for row in TextFile(file).texts()][:3] == ["even", None, "fine"]
        with pytest.raises(SourceError, match=r", line 2: it holds zero bytes, which no text does\. Take them out"):
            read_texts(file)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".csv", ".jsonl.bz2", ".json"])
@pytest.mark.parametrize(
    ("form", "pack"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress), ("zstd", COMPRESS[".zst"])],
)
def test_what_is_still_compressed_is_named(
    tmp_path: Path, suffix: str, form: str, pack: Callable[[bytes], bytes]
) -> None:
    file = written(tmp_path, suffix, pack(b"one\n"))
    with pytest.raises(
        SourceError, match=rf"rows{suffix}: there is {form} data in it where text should be\. Unpack it"
    ):
        read_texts(file)


def test_a_suffix_that_stands_twice_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, ".txt.gz.gz", gzip.compress(b"one\n"))
    with pytest.raises(SourceError, match=r"it is compressed twice, unpack it once; its suffix is '\.gz'"):
        expand_inputs([file])


DOUBLED = b'{"text1": "a", "text1": "b", "text2": "c", "score": 1}\n'


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_key_that_stands_twice_in_a_row_is_a_column_that_does(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path, suffix, DOUBLED)
    for read in (lambda file: read_texts(file, "text1"), load_dataset, read_dev_set):
        with pytest.raises(SourceError, match=r"more than one column .*'text1'"):
            read(file)
    with pytest.warns(BellmWarning, match="not read: columns 'text1', 'score'"):
        assert read_texts(file, "text2") == ["c"]
    file = written(tmp_path, suffix, b'{"text": "a", "metadata": {"x": 1, "x": 2}}')
    with pytest.warns(BellmWarning, match="not read: column 'metadata'"):
        assert read_texts(file) == ["a"]


@pytest.mark.parametrize("suffix", TABLES)
def test_names_of_columns_are_compared_in_one_way_by_all(tmp_path: Path, suffix: str) -> None:
    """Without regard to case and punctuation; the very name comes first."""
    file = Path(written(tmp_path, suffix, WRITERS[suffix](PAIRS[:3])))
    if suffix == ".parquet":
        pq.write_table(pq.read_table(file).rename_columns(["Text 1", "TEXT2", "Score"]), file)
    else:
        content = file.read_bytes()
        for name, other in ((b"text1", b"Text 1"), (b"text2", b"TEXT2"), (b"score", b"Score")):
            content = content.replace(name, other)
        file.write_bytes(content)
    with pytest.warns(BellmWarning, match="not read: columns 'TEXT2', 'Score'"):
        assert read_texts(str(file), "text1") == LINES[:3]
    rows = list(TextFile(str(file), TextColumns("text1", "Text2")).texts())
    assert [(row.text, row.id) for row in rows] == [pair[:2] for pair in PAIRS[:3]]
    told = {"anchor": "text1", "positive": "text2", "score": "score"}
    for dataset in (load_dataset(file), load_dataset(file, told)):  # type: ignore[arg-type]
        assert [(*row.texts, str(row.score)) for row in dataset] == PAIRS[:3]
    for dev in (read_dev_set(str(file)), read_dev_set(str(file), columns="anchor=text1,positive=text2,score=score")):
        assert list(dev.left) == LINES[:3]


def test_the_very_name_of_a_column_comes_first(tmp_path: Path) -> None:
    with pytest.warns(BellmWarning, match="not read: column 'Text'"):
        assert read_texts(written(tmp_path, ".csv", b"Text,text\na,b\n")) == ["b"]
    with pytest.raises(SourceError, match="more than one column 'text'"):
        read_texts(written(tmp_path, ".csv", b"Text,TEXT\na,b\n"))


def test_a_torn_character_of_utf_16_is_one_line(tmp_path: Path) -> None:
    file = written(tmp_path, ".txt", "A heron waits.\n".encode("utf-16")[:-1])
    with pytest.raises(SourceError, match=r"rows\.txt cannot be read: .*utf-16"):
        read_texts(file)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_found_by_the_columns_that_are_read(tmp_path: Path, separator: str) -> None:
    file = written(tmp_path, ".csv", f'n{separator}text\n1{separator}"one, two{separator}"\n'.encode())
    with pytest.warns(BellmWarning, match="not read: column 'n'"):
        assert read_texts(file) == [f"one, two{separator}"]
    [example] = load_dataset(written(tmp_path, ".csv", f"query{separator}positive\na, b{separator}c\n".encode()))
    assert example.texts == ("a, b", "c")


def test_a_list_of_texts_and_one_object_are_json(tmp_path: Path) -> None:
    assert read_texts(written(tmp_path, ".json", b'["one",\n "two"]')) == ["one", "two"]
    assert read_texts(written(tmp_path, ".json", b'{"text": "one"}\n{"text": "two"}\n')) == ["one", "two"]
    with pytest.raises(SourceError, match=r"rows\.json, row 1: no column 'text'\. Columns: 'data'"):
        read_texts(written(tmp_path, ".json", b'{"data": [{"text": "one"}]}'))


def test_columns_that_are_not_read_are_named_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(f"text,label,{name}\nx,1,2\n")
    with pytest.warns(BellmWarning) as told:
        assert read_texts(expand_inputs([str(tmp_path / "*.csv")])) == ["x"] * 3
    [note] = [str(each.message) for each in told]
    assert note.endswith("a.csv and 2 more: not read: columns 'label', 'a', 'b', 'c'.")


def test_columns_as_users_write_them(tmp_path: Path) -> None:
    file = written(tmp_path, ".jsonl", b'{"body": "x", "text": "y", "a=b": "z"}\n')
    for column, text in (("text=body", "x"), ("text", "y"), ("text=a=b", "z")):
        with pytest.warns(BellmWarning, match="not read"):
            assert read_texts(file, column) == [text]
    for column, message in (
        ("text=body,id=text", "only a corpus folder keeps ids"),
        ("text=a,text=b", "more than one"),
    ):
        with pytest.raises(SourceError, match=message):
            read_texts(file, column)
    assert TextColumns.parse("id=key", None) == TextColumns("text", "key")
    assert parse_columns("text=my text,id= key ", ("text", "id")) == {"text": ["my text"], "id": [" key "]}
    for wrong in ("body", "txt=body", "text=", "text=a,"):
        with pytest.raises(
            SourceError, match=r"names no column of a part: write text=COLUMN,id=COLUMN\. Parts: text, id"
        ):
            parse_columns(wrong, ("text", "id"))
