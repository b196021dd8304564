import csv
from pathlib import Path

import pytest

from bellm.data.csts import COLUMNS, read_csts, read_csts_file
from bellm.errors import BellmError, SourceError

ROWS = [
    ["A man rows a boat.", "A boat is rowed, \nslowly.", "The speed of the boat.", "2"],
    ['A girl says "no".', "Two girls sing.", "The number of girls.", "1.0"],
]


def written(folder: Path, rows: list[list[str]], header: tuple[str, ...] = COLUMNS) -> Path:
    file = folder / "csts_validation.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def test_pairs_come_back_with_their_conditions(tmp_path: Path) -> None:
    found = read_csts_file(written(tmp_path, ROWS))
    assert found.left == ("A man rows a boat.", 'A girl says "no".')
    assert found.right == ("A boat is rowed, \nslowly.", "Two girls sing.")
    assert found.conditions == ("The speed of the boat.", "The number of girls.")
    assert found.gold_N.tolist() == [2.0, 1.0]
    left, right = found.texts()
    assert left == ["A man rows a boat. The speed of the boat.", 'A girl says "no". The number of girls.']
    assert right[1] == "Two girls sing. The number of girls."


def test_columns_are_known_by_their_names(tmp_path: Path) -> None:
    rows = [[row[3], "7", row[2], row[1], row[0]] for row in ROWS]
    found = read_csts_file(written(tmp_path, rows, ("label", "id", "condition", "sentence2", "sentence1")))
    assert found.left[0] == ROWS[0][0]
    assert found.gold_N.tolist() == [2.0, 1.0]
    with pytest.raises(SourceError, match=r"no column condition\. A C-STS file has sentence1, sentence2, condition"):
        read_csts_file(written(tmp_path, ROWS, ("sentence1", "sentence2", "aspect", "label")))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (["one", "two", "three", "-1"], "line 4: no label. Labels of the test part are hidden"),
        (["one", "two", "three", ""], "line 4: no label"),
        (["one", "two", "three", "0"], "line 4: '0' is no label from 1 to 5"),
        (["one", "two", "three", "high"], "line 4: 'high' is no label"),
        (["one", "two", "three"], "line 4: 3 cells, but the header has 4"),
    ],
)
def test_a_bad_row_is_named(cells: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"csts_validation\.csv, {problem}"):
        read_csts_file(written(tmp_path, [ROWS[0], cells]))


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read_csts_file(tmp_path / "csts_validation.csv")
    with pytest.raises(SourceError, match="holds no pairs"):
        read_csts_file(written(tmp_path, []))
    file = written(tmp_path, ROWS)
    file.write_text(file.read_text() + 'one,two,"three,4\n')
    with pytest.raises(SourceError, match=r"csts_validation\.csv, line 5: unexpected end of data"):
        read_csts_file(file)


def test_the_validation_part_comes_from_a_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csts").mkdir()
    written(tmp_path / "csts", ROWS)
    assert read_csts(folder=tmp_path).left == read_csts_file(tmp_path / "csts" / "csts_validation.csv").left
    monkeypatch.delenv("BELLM_DATA", raising=False)
    with pytest.raises(
        SourceError, match=r"C-STS needs a folder of data sets \(--data, BELLM_DATA\).*princeton-nlp/c-sts"
    ):
        read_csts()
    with pytest.raises(SourceError, match=r"C-STS is not in .*: no file csts/csts_validation\.csv"):
        read_csts(folder=tmp_path / "csts")
    with pytest.raises(BellmError, match=r"'D-STS'\. Choose from C-STS"):
        read_csts("D-STS", tmp_path)
