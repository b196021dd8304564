import codecs
import csv
import json
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bellm.errors import BellmWarning, SourceError
from bellm.io.rows import read_texts
from bellm.io.vectors import new_vector_file, read_vectors

pytestmark = pytest.mark.filterwarnings("ignore:.*not read:bellm.errors.BellmWarning")

TEXTS = ["A heron.", "", "  two  spaces, and a comma ", 'She said "no".', "zwei\u2028Zeilen \N{SNOWMAN}"]
VECTORS = np.arange(20, dtype=np.float32).reshape(5, 4) / 7


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"\n", [""]),
        (b"a\nb", ["a", "b"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b" a \n\tb\n", [" a ", "\tb"]),
        (codecs.BOM_UTF8 + b"a\n", ["a"]),
        ("a\u2028b\x0cc\rd\n".encode(), ["a\u2028b\x0cc\rd"]),
    ],
)
def test_lines_of_a_text_file(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    assert read_texts(written(tmp_path / "t.txt", content)) == texts


def test_json_lines_hold_objects_or_strings(tmp_path: Path) -> None:
    rows = [{"text": TEXTS[0], "id": 1}, *TEXTS[1:]]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert read_texts(written(tmp_path / "t.jsonl", content)) == TEXTS


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_tables_as_python_writes_them(tmp_path: Path, suffix: str, delimiter: str) -> None:
    texts = [*TEXTS, "two\r\nlines\tand a tab", "x" * 200_000]
    path = tmp_path / f"t{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([["id", "phrase"], *([n, t] for n, t in enumerate(texts))])
    assert read_texts(str(path), "phrase") == texts


@pytest.mark.parametrize("content", ["", "id,text\n"])
def test_table_without_rows(tmp_path: Path, content: str) -> None:
    with pytest.warns(BellmWarning, match=r"There are no rows in '.*t\.csv'"):
        assert read_texts(written(tmp_path / "t.csv", content)) == []


def test_parquet_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(5), "phrase": TEXTS}), tmp_path / "t.parquet")
    assert read_texts(str(tmp_path / "t.parquet"), "phrase") == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"fine\nna\xefve\n", r"t\.txt, line 2: byte 0xef is not UTF-8.*iconv"),
        ("t.txt", codecs.BOM_UTF16_LE + b"a", "cannot be read: 'utf-16-le' codec can't decode byte 0x61"),
        ("t.jsonl", b'"a"\n{"text": \n', r"t\.jsonl, line 2: not JSON"),
        ("t.jsonl", b'"a"\n\n"b"\n', "line 2: not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("t.jsonl", b'{"a": "x", "b": "y"}\n', r"line 1: no column 'text'\. Columns: 'a', 'b'\. Choose with --column"),
        ("t.jsonl", b'"a"\n{"text": null}\n', "line 2: None is not a text"),
        ("t.jsonl", b'{"text": 7}\n', "line 1: 7 is not a text"),
        ("t.jsonl", b'"half \\ud83d"\n', r"line 1: .*ud83d. is half a character"),
        ("t.csv", b"a,b\n1,2\n", r"t\.csv: no column 'text'\. Columns: 'a', 'b'\."),
        ("t.csv", b"text,text\n1,2\n", "more than one column 'text'"),
        ("t.csv", b"id,text\n1,x\n2,y,z\n", "line 3: 3 cells, but the header has 2"),
        ("t.csv", b'id,text\n1,"x" y\n2,z\n', "line 2: .*expected after"),
        ("t.tsv", b'id\ttext\n1\t"open\n2\tz\n', "lines 2-3: unexpected end of data"),
        ("t.parquet", b"no parquet", "cannot be read as Parquet"),
        ("t.pdf", b"", r"cannot read .*t\.pdf: its suffix is '\.pdf', not one of \.txt, \.jsonl"),
        ("t", b"", "its suffix is ''"),
    ],
)
def test_input_that_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_texts(written(tmp_path / name, content))


def test_parquet_rows_that_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="row 2: None is not a text"):
        read_texts(str(tmp_path / "t.parquet"))
    with pytest.raises(SourceError, match=r"no column 'phrase'\. Columns: 'text'\."):
        read_texts(str(tmp_path / "t.parquet"), "phrase")


def test_input_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt cannot be read: No such file"):
        read_texts(str(tmp_path / "none.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(SourceError, match="Is a directory"):
        read_texts(str(tmp_path / "folder.txt"))


def test_npy_round_trip(tmp_path: Path) -> None:
    for vectors in (VECTORS, np.asfortranarray(VECTORS), VECTORS[:0]):
        with new_vector_file(str(tmp_path / "v.npy"), force=True) as write:
            write(TEXTS, vectors)
        found = np.load(tmp_path / "v.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors)


def test_jsonl_round_trip(tmp_path: Path) -> None:
    with new_vector_file(str(tmp_path / "v.jsonl")) as write:
        write(TEXTS, VECTORS)
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["text"] for row in rows] == TEXTS
    np.testing.assert_array_equal(np.array([row["vector"] for row in rows], np.float32), VECTORS)


@pytest.mark.parametrize("count", [5, 0])
def test_parquet_round_trip(tmp_path: Path, count: int) -> None:
    with new_vector_file(str(tmp_path / "v.parquet")) as write:
        write(TEXTS[:count], VECTORS[:count])
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert table.column("text").to_pylist() == TEXTS[:count]
    found = np.array(table.column("vector").to_pylist(), np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(found, VECTORS[:count])
    with nullcontext() if count else pytest.warns(BellmWarning, match="There are no rows"):
        assert read_texts(str(tmp_path / "v.parquet")) == TEXTS[:count]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v.csv", r"cannot write .*its suffix is '\.csv', not one of \.npy, \.jsonl, \.parquet"),
        ("taken.npy", "exists already.*--force"),
        ("folder.npy", "is a folder"),
        ("none/v.npy", "there is no folder"),
        ("x" * 250 + ".npy", "File name too long"),
        ("x" * 300 + ".npy", "File name too long"),
    ],
)
def test_output_that_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "taken.npy").touch()
    with pytest.raises(SourceError, match=message), new_vector_file(str(tmp_path / name)):
        pytest.fail("the work must not begin")
    assert sorted(os.listdir(tmp_path)) == ["folder.npy", "taken.npy"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError])
def test_failure_leaves_what_was_there(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "v.npy").write_text("old")
    with pytest.raises(stop), new_vector_file(str(tmp_path / "v.npy"), force=True):
        raise stop
    assert os.listdir(tmp_path) == ["v.npy"]
    assert (tmp_path / "v.npy").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_full_disk(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f".v{suffix}-{os.getpid()}.part").symlink_to("/dev/full")
    with (
        pytest.raises(SourceError, match=rf"v{suffix} cannot be written: .*No space left on device"),
        new_vector_file(str(tmp_path / f"v{suffix}")) as write,
    ):
        write(TEXTS, VECTORS)
    assert os.listdir(tmp_path) == []


def test_output_has_the_rights_that_files_have(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with new_vector_file(str(tmp_path / "v.npy")) as write:
        write(TEXTS, VECTORS)
    assert (tmp_path / "v.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("head", ["", "3 2\n"], ids=["GloVe", "word2vec"])
@pytest.mark.parametrize("suffix", [".txt", ".vec"])
def test_word_vectors_are_read(tmp_path: Path, head: str, suffix: str) -> None:
    file = tmp_path / f"words{suffix}"
    file.write_text(f"{head}heron 1 2.5\n, -1e-3 4 \nnew york 0 0.5\n", encoding="utf-8")
    words, vectors = read_vectors(file)
    assert words == ["heron", ",", "new york"]
    np.testing.assert_array_equal(vectors, np.float32([[1, 2.5], [-1e-3, 4], [0, 0.5]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("heron 1 2\nbank 1\n", "line 2: 1 numbers, but the first word has 2"),
        ("heron 1 2 3\nbank 1 2\n", "line 2: 2 numbers, but the first word has 3"),
        ("heron 1 2\nbank one 2\n", "line 2: 'bank' is not followed by numbers"),
        ("heron\n", "line 1: 0 numbers"),
        ("3 2\n", "holds no vectors"),
        ("", "holds no vectors"),
    ],
)
def test_lines_that_are_no_word_vectors(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(SourceError, match=message):
        read_vectors(tmp_path / "words.txt")
