import os
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bellm.errors import BellmWarning, SourceError
from bellm.io.rows import TextColumns, TextFile, TextRow, check_columns, expand_inputs, refuse_own_input


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(*names: str, content: bytes = b"a\nb\n") -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def test_folders_patterns_and_files_become_files() -> None:
    files("b.txt", "d/2.txt", "d/1.jsonl", "d/e/x.CSV", "d/notes.pdf", "d/.hidden.txt", "d/.git/y.txt", "[x].txt")
    assert expand_inputs(["b.txt"]) == ["b.txt"]
    assert (
        expand_inputs(["d"])
        == expand_inputs(["./d/"])
        == expand_inputs(["d/../d"])
        == ["d/1.jsonl", "d/2.txt", "d/e/x.CSV"]
    )
    assert expand_inputs(["d/*.txt", "*.txt"]) == ["d/2.txt", "[x].txt", "b.txt"]
    assert expand_inputs(["**/*.txt"]) == ["[x].txt", "b.txt", "d/2.txt"]
    assert expand_inputs(["[x].txt"]) == ["[x].txt"]
    assert expand_inputs(["-", "b.txt", "-"]) == ["-", "b.txt"]
    assert expand_inputs(["none.txt"]) == ["none.txt"]


def test_each_file_comes_once_and_where_it_was_named_first(tmp_path: Path) -> None:
    files("b.txt", "d/a.txt")
    os.symlink(tmp_path / "b.txt", "d/link.txt")
    assert expand_inputs(["b.txt", "d", str(tmp_path / "d/a.txt"), "./b.txt"]) == ["b.txt", "d/a.txt"]


def test_links_to_folders_are_followed_and_no_folder_comes_twice(tmp_path: Path) -> None:
    files("d/z.txt", "d/m/x.txt", "other/y.txt", "other/deep/er/w.txt")
    for name, target in (("d/again", "d"), ("d/a", "d/m"), ("d/far", "other"), ("other/back", "d"), ("d/m/up", ".")):
        os.symlink(tmp_path / target, name)
    below = ["d/far/deep/er/w.txt", "d/far/y.txt", "d/m/x.txt", "d/z.txt"]
    assert expand_inputs(["d"]) == expand_inputs(["d/**/*.txt"]) == expand_inputs(["d/**"]) == below
    assert expand_inputs(["d/**/er/*.txt"]) == expand_inputs(["d/**/deep/**/w.txt"]) == below[:1]
    assert expand_inputs([f"{tmp_path}/d/**/z.txt"]) == [f"{tmp_path}/d/z.txt"]
    assert expand_inputs(["**/d/z.txt"]) == ["d/z.txt"]
    assert expand_inputs(["d/far"]) == [f"d/far/{name}.txt" for name in ("back/m/x", "back/z", "deep/er/w", "y")]


def test_names_with_magic_are_found_below_a_pattern() -> None:
    files("d/[a]*/x.txt", "d/a/y.txt")
    assert expand_inputs(["d/**/*.txt"]) == ["d/[a]*/x.txt", "d/a/y.txt"]


def test_what_was_written_is_no_input(tmp_path: Path) -> None:
    files("a.txt", "out/shards/s.parquet", "out/rejected.jsonl")
    assert expand_inputs(["."], skip=Path("out")) == ["a.txt"]
    assert expand_inputs([str(tmp_path)], skip=Path("./out/")) == [str(tmp_path / "a.txt")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("*.csv", r"\*\.csv matches no file"),
        ("a.pdf", r"its suffix is '\.pdf', not one of \.txt"),
        ("empty", "empty holds no file that bellm can read"),
        ("*.pdf", "its suffix"),
    ],
)
def test_inputs_that_are_refused(entry: str, message: str) -> None:
    files("a.pdf")
    Path("empty").mkdir()
    with pytest.raises(SourceError, match=message):
        expand_inputs([entry])


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_file_name_that_is_no_text_is_refused() -> None:
    Path(os.fsdecode(b"na\xefve.txt")).touch()
    with pytest.raises(SourceError, match="is not UTF-8"):
        expand_inputs(["."])


def test_rows_are_counted_and_named() -> None:
    files("d/a.jsonl", content=b'"x"\n7\n{"text": "y", "key": "k"}\n{"text": "z", "key": null}\n')
    assert list(TextFile("d/a.jsonl").texts()) == [
        TextRow(1, "d/a.jsonl:1", "x"),
        TextRow(2, "", None, "line 2: 7 is not a text. Give a string, be it an empty one."),
        TextRow(3, "d/a.jsonl:3", "y"),
        TextRow(4, "d/a.jsonl:4", "z"),
    ]
    rows = list(TextFile("d/a.jsonl", TextColumns("text", "key")).texts())
    assert [(row.id, row.text) for row in rows] == [
        *(("d/a.jsonl:1", "x"), ("", None), ("k", "y"), ("d/a.jsonl:4", "z"))
    ]


def test_whole_numbers_are_ids_and_truth_is_not() -> None:
    files("a.jsonl", content=b'{"text": "x", "key": 12}\n{"text": "x", "key": true}\n{"text": "x", "key": 1.5}\n')
    assert [row.id for row in TextFile("a.jsonl", TextColumns("text", "key")).texts()] == ["12", "", ""]
    pq.write_table(pa.table({"text": ["x", "y"], "key": pa.array([1, None], pa.int64())}), "a.parquet")
    assert [row.id for row in TextFile("a.parquet", TextColumns("text", "key")).texts()] == ["1", "a.parquet:2"]


def test_share_grows_to_the_end() -> None:
    files("a.txt", content=b"some words\n" * 1000)
    texts = [f"{number} words" * 200 for number in range(5000)]
    pq.write_table(pa.table({"text": texts}), "a.parquet", row_group_size=500, compression="none")
    for file in ("a.txt", "a.parquet"):
        source = TextFile(file)
        assert source.share == 0
        shares = [source.share for _ in source.texts()]
        assert shares[0] < 0.5
        assert shares == sorted(shares)
        assert shares[-1] > 0.9
        assert source.share == 1


def test_standard_input_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"a\nna\xefve\n")))
    source = TextFile("-")
    assert [(row.id, row.text) for row in source.texts()] == [("-:1", "a"), ("", None)]
    assert source.share == 0


def test_check_sees_mistakes_before_the_work() -> None:
    files("good.txt", "empty.txt", content=b"a\n")
    files("no.csv", content=b"a,b\n1,2\n")
    files("no.jsonl", content=b'{"phrase": "x"}\n' * 3)
    check_columns(["good.txt", "no.jsonl", "-"], TextColumns())
    check_columns(["no.jsonl"], TextColumns("phrase"))
    with pytest.raises(SourceError, match=r"^No file has ids in a column 'key'\. Choose with --id-column\."):
        check_columns(["good.txt"], TextColumns("text", "key"))
    with pytest.raises(SourceError, match=r"no\.csv: no column 'text'\. Columns: 'a', 'b'\."):
        check_columns(["good.txt", "no.csv"], TextColumns())
    with pytest.raises(
        SourceError, match=r"^No row can be read\. no\.jsonl, line 1: no column 'text'\. Columns: 'phrase'"
    ):
        check_columns(["no.jsonl"], TextColumns())
    with pytest.raises(SourceError, match=r"none\.txt cannot be read: No such file"):
        check_columns(["none.txt"], TextColumns())


def test_columns_beside_those_of_texts_and_ids_are_named_once() -> None:
    files("a.csv", content=b"id,text,url\n1,x,u\n")
    files("b.jsonl", content=b'{"text": "y"}\n{"id": 7, "text": "z", "url": "u", "title": "t"}\n')
    with pytest.warns(BellmWarning) as told:
        check_columns(["a.csv", "b.jsonl"], TextColumns("text", "id"))
    assert [str(each.message) for each in told] == ["a.csv and 1 more: not read: columns 'url', 'title'."]
    with pytest.raises(SourceError, match=r"a column 'key'\. Columns: 'id', 'url', and that of the texts\. Choose"):
        check_columns(["a.csv"], TextColumns("text", "key"))


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path: Path) -> None:
    files("a.jsonl", "b.jsonl")
    os.symlink(tmp_path / "a.jsonl", "link.jsonl")
    for output in ("a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl"), "link.jsonl"):
        with pytest.raises(SourceError, match=r"a\.jsonl|link\.jsonl is one of the inputs, and would be replaced"):
            refuse_own_input(output, ["-", "b.jsonl", "a.jsonl"])
    refuse_own_input("new.jsonl", ["-", "a.jsonl"])
    refuse_own_input("b.jsonl", ["-", "a.jsonl"])
