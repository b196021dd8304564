import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.errors import SourceError
from bellm.io import formats
from bellm.io.formats import FORMATS
from bellm.io.rows import TextColumns, TextFile

CHARACTERS = st.characters(blacklist_categories=["Cs"])
TEXTS = st.lists(st.text(CHARACTERS, max_size=20), max_size=8)


PHRASE = TextColumns("phrase")


class Cells(NamedTuple):
    location: str
    text: object = None
    id: object = None
    problem: str = ""


def read(suffix: str, data: bytes, columns: TextColumns = PHRASE) -> list[Cells]:
    found = []
    for row in FORMATS[suffix](io.BytesIO(data), columns.select):
        cells = row.cells if isinstance(row.cells, dict) else {columns.text: row.cells}
        found.append(Cells(row.location, cells.get(columns.text), cells.get(columns.id), row.problem))
    return found


def as_lines(texts: list[str]) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def as_json(texts: list[str]) -> bytes:
    return as_lines([json.dumps({"n": number, "phrase": text}) for number, text in enumerate(texts)])


def as_csv(texts: list[str], dialect: str = "excel") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, dialect).writerows([["n", "phrase"], *enumerate(texts)])
    return file.getvalue().encode()


def as_tsv(texts: list[str]) -> bytes:
    return as_csv(texts, "excel-tab")


def as_parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    columns = {"n": range(len(texts)), "phrase": pa.array(texts, pa.string())}
    pq.write_table(pa.table(columns), file, row_group_size=3)
    return file.getvalue()


@given(TEXTS)
def test_lines_come_back(texts: list[str]) -> None:
    texts = [text.replace("\n", " ").replace("\r", " ").replace("\ufeff", "") for text in texts]
    rows = read(".txt", as_lines(texts))
    assert rows == [Cells(f"line {number}", text) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("suffix", "write"), [(".jsonl", as_json), (".csv", as_csv), (".tsv", as_tsv), (".parquet", as_parquet)]
)
@given(texts=TEXTS)
def test_tables_come_back(suffix: str, write: Callable[[list[str]], bytes], texts: list[str]) -> None:
    rows = read(suffix, write(texts), TextColumns("phrase", "n"))
    assert [row.text for row in rows] == texts
    assert [int(str(row.id)) for row in rows] == list(range(len(texts)))
    assert not any(row.problem for row in rows)


@given(st.binary(max_size=200))
def test_any_bytes_are_so_many_lines(data: bytes) -> None:
    data += b"\n" * (b"\n" not in data)
    rows = read(".txt", data)
    assert len(rows) == len(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")) - (data[-1:] in (b"", b"\n"))
    assert len(read(".jsonl", data)) == len(rows)
    assert all((row.text is None) == bool(row.problem) for row in rows)


@given(st.lists(st.sampled_from(['"', ",", "\n", "\r", "a", "\xff", "1,x\n", '2,"y"\n', "\0"]), max_size=30))
def test_csv_never_stops_at_a_bad_row(pieces: list[str]) -> None:
    """Whatever came before, a good row behind a line that closes every quote is read."""
    data = b"n,phrase\n" + "".join(pieces).encode("latin1") + b'\n"x"x\n3,good\n'
    rows = read(".csv", data)
    assert rows[-1][1:] == ("good", None, "")


def test_a_stray_quote_costs_the_lines_it_swallows_and_no_more() -> None:
    rows = read(".csv", b'n,phrase\n1,a\n2,"b\n3,c\n4,"d" d\n5,e\n6,f,f\n7,"g\n')
    places = [(row.location, row.text) for row in rows]
    assert places == [("line 2", "a"), ("lines 3-5", None), ("line 6", "e"), ("line 7", None), ("line 8", None)]
    assert rows[1].problem.endswith("Put quotes around a cell that holds quotes, and double those.")
    assert "3 cells, but the header has 2" in rows[3].problem
    assert "unexpected end of data" in rows[4].problem


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_lines_too_long_are_passed_over(monkeypatch: pytest.MonkeyPatch, suffix: str, end: bytes) -> None:
    monkeypatch.setattr(formats, "LONGEST", 30)
    quote = b'"' if suffix == ".jsonl" else b""
    lines = [quote + word + quote for word in (b"short", b"x" * 100, b"y" * 28, b"z" * 31, b"after", b"w" * 1000)]
    head = b"phrase\n" if suffix == ".csv" else b""
    rows = read(suffix, head + b"\n".join(lines) + end)
    assert [row.text for row in rows] == ["short", None, "y" * 28, None, "after", None]
    assert all("longer than" in row.problem for row in rows if row.text is None)


def test_bytes_that_are_no_characters() -> None:
    problem = "byte 0xef is not UTF-8. Convert the file, for instance with: iconv -f latin1 -t utf-8."
    for suffix, head in ((".txt", b""), (".jsonl", b""), (".csv", b"phrase\n")):
        rows = read(suffix, head + b'"a"\n"na\xefve"\n"b"\n')
        assert [row.problem for row in rows] == ["", problem, ""]
    column = pa.array([b"a", b"na\xefve", b"b"]).cast(pa.binary()).view(pa.string())
    file = io.BytesIO()
    pq.write_table(pa.table({"phrase": column}), file)
    assert [(row.text if not row.problem else row.problem) for row in read(".parquet", file.getvalue())] == [
        *("a", "byte 0xef is not UTF-8.", "b")
    ]


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        (".csv", b"a,b\n1,2\n", r"^no column 'phrase'\. Columns: 'a', 'b'\. Choose with --column\.$"),
        (".tsv", b"phrase\tphrase\n", "^more than one column 'phrase'"),
        (".csv", b'"phrase"x\n', r"^line 1: .*expected after"),
        (".parquet", as_parquet([])[:-1], "^cannot be read as Parquet"),
    ],
)
def test_files_without_rows_to_read(suffix: str, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(suffix, data)


def test_rows_without_an_id_are_numbered(tmp_path: Path) -> None:
    assert [row.id for row in read(".csv", as_csv(["a"]), TextColumns("phrase", "key"))] == [None]
    file = str(tmp_path / "t.jsonl")
    empty = b'{"phrase": "x", "key": ""}\n{"phrase": "x", "key": " "}\n{"phrase": "x", "key": null}\n'
    (tmp_path / "t.jsonl").write_bytes(b'"bare"\n{"phrase": "x"}\n{"phrase": "x", "key": 3}\n' + empty)
    rows = list(TextFile(file, TextColumns("phrase", "key")).texts())
    assert [row.id for row in rows] == [f"{file}:1", f"{file}:2", "3", f"{file}:4", f"{file}:5", f"{file}:6"]
    assert [row.is_numbered for row in rows] == [True, True, False, True, True, True]
    assert not any(row.is_numbered for row in TextFile(file, TextColumns("phrase")).texts())


@pytest.mark.parametrize("cell", [None, 7, 1.5, ["a"], "half \ud83d", "x" * 100])
def test_cells_that_are_no_text(monkeypatch: pytest.MonkeyPatch, cell: Any) -> None:
    monkeypatch.setattr(formats, "LONGEST", 50)
    assert formats.text_problem(cell)
    assert not formats.text_problem("")


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert [row.text for row in read(".csv", as_csv(["a"]))] == ["a"]
    with pytest.raises(SourceError, match=r"need pyarrow: pip install 'bellm\[corpus\]'"):
        read(".parquet", as_parquet(["a"]))
