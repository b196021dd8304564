import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.data import sts
from bellm.data.sources import DataSource
from bellm.data.sts import STS_PARTS, STSPairs, clean_text, read_sts
from bellm.errors import BellmError, SourceError

COUNTS = {
    "STS12": 3108,
    "STS13": 1500,
    "STS14": 3750,
    "STS15": 3000,
    "STS16": 1186,
    "STSBenchmark": 1379,
    "STSBenchmark-dev": 1500,
    "STSBenchmark-train": 5749,
    "SICK-R": 4927,
    "SICK-R-full": 9927,
}
HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n"


@pytest.fixture
def sts16(tmp_path: Path) -> Path:
    """A made-up STS16: in each part one rated pair and one that nobody rated."""
    folder = tmp_path / "sts" / "STS16-en-test"
    folder.mkdir(parents=True)
    for number, part in enumerate(STS_PARTS["STS16"]):
        text = f'Rain "fell on {part}.\tIt rained\u2028there.\tsource\tother source\nUnrated.\tPair.\t\t\n'
        (folder / f"STS.input.{part}.txt").write_bytes(text.encode())
        (folder / f"STS.gs.{part}.txt").write_bytes(f"{number}\n\n".encode())
    return tmp_path


def benchmark(folder: Path, text: bytes) -> Path:
    (folder / "stsbenchmark").mkdir(exist_ok=True)
    (folder / "stsbenchmark" / "sts-test.csv").write_bytes(text)
    return folder


def sick(folder: Path, **rows: str) -> Path:
    (folder / "sick").mkdir()
    for part, text in rows.items():
        (folder / "sick" / f"SICK_{part}.txt").write_bytes((HEADER + text).encode())
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_published_sets_have_the_published_number_of_pairs(name: str, data: Path) -> None:
    found = read_sts(name, data)
    assert {len(found.left), len(found.right), len(found.gold_N), len(found.parts)} == {COUNTS[name]}
    assert (found.gold_N.min(), found.gold_N.max()) == (1.0 if name.startswith("SICK") else 0.0, 5.0)
    assert all(text.strip() for text in (*found.left, *found.right))


def test_sets_are_those_that_the_csv_module_reads(data: Path) -> None:
    def table(path: str) -> list[list[str]]:
        with (data / path).open(encoding="utf-8", newline="") as lines:
            return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))

    rows = table("stsbenchmark/sts-test.csv")
    assert_same(read_sts("STSBenchmark", data), [(row[5], row[6], row[4]) for row in rows])
    parts = [table(f"sick/SICK_{part}.txt")[1:] for part in ("test_annotated", "train", "trial")]
    assert_same(read_sts("SICK-R-full", data), [tuple(row[1:4]) for part in parts for row in part])
    assert_same(read_sts("SICK-R", data), [tuple(row[1:4]) for row in parts[0]])
    rows = [
        (*pair[:2], gold)
        for part in STS_PARTS["STS15"]
        for pair, gold in zip(
            table(f"sts/STS15-en-test/STS.input.{part}.txt"),
            (data / f"sts/STS15-en-test/STS.gs.{part}.txt").read_text().split("\n"),
            strict=False,
        )
        if gold
    ]
    assert_same(read_sts("STS15", data), rows)


def assert_same(found: STSPairs, rows: list[tuple[str, ...]]) -> None:
    assert list(zip(found.left, found.right, found.gold_N, strict=True)) == [(*row[:2], float(row[2])) for row in rows]


def test_parts_come_one_after_the_other_without_unrated_pairs(sts16: Path) -> None:
    found = read_sts("STS16", sts16)
    assert found.left == tuple(f'Rain "fell on {part}.' for part in STS_PARTS["STS16"])
    assert found.right == ("It rained\u2028there.",) * 5
    assert found.gold_N.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.gold_N.dtype == np.float64
    assert found.parts == STS_PARTS["STS16"]


def test_the_two_sicks_are_two_sets(tmp_path: Path) -> None:
    row = "{}\tA cat {} sleeps\tA cat {} rests\t{}\tNEUTRAL\r\n"
    folder = sick(
        tmp_path,
        test_annotated=row.format(1, "gladly", "gladly", 4.5),
        train=row.format(2, "badly", "badly", 3.5),
        trial=row.format(3, "rarely", "rarely", 1),
    )
    full = read_sts("SICK-R-full", folder)
    assert full.left == ("A cat gladly sleeps", "A cat badly sleeps", "A cat rarely sleeps")
    assert full.gold_N.tolist() == [4.5, 3.5, 1.0]
    test = read_sts("SICK-R", folder)
    assert (test.name, test.right, test.gold_N.tolist()) == ("SICK-R", ("A cat gladly rests",), [4.5])
    assert set(full.parts) == {"SICK-R-full"}


def test_cleaning_is_asked_for(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, b"g\tf\ty\t1\t2.5\tWho is  there?\tNobody \textra\textra\r\n")
    plain, clean = read_sts("STSBenchmark", folder), read_sts("STSBenchmark", folder, clean=True)
    assert (plain.left, plain.right) == (("Who is  there?",), ("Nobody ",))
    assert (clean.left, clean.right) == (("Who is there.",), ("Nobody.",))


@given(st.text() | st.text(alphabet="a .?!\"'\t", max_size=6))
def test_cleaned_does_what_the_batcher_of_the_papers_does(text: str) -> None:
    expected = " ".join(text.split())
    if len(expected) > 0 and expected[-1] not in [".", "?", '"', "'"]:
        expected += "."
    if len(expected) > 0 and expected[-1] == "?":
        expected = expected[:-1] + "."
    assert clean_text(text) == expected
    assert clean_text(clean_text(text)) == clean_text(text)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"g\tf\ty\t1\t2.5\tonly one", "line 2: 6 cells between tabs, at least 7 are needed"),
        (b"g\tf\ty\t1\tgood\tone\ttwo", "line 2: 'good' is no rating from 0 to 5"),
        (b"g\tf\ty\t1\t5.1\tone\ttwo", "line 2: '5.1' is no rating"),
        (b"g\tf\ty\t1\tnan\tone\ttwo", "line 2: 'nan' is no rating"),
        (b"g\tf\ty\t1\t\tone\ttwo", "line 2: '' is no rating"),
        (b"g\tf\ty\t1\t2.5\tcaf\xe9\ttwo", "line 2: byte 0xe9 is not UTF-8"),
        (b"", "line 2: 1 cells between tabs"),
    ],
)
def test_a_bad_line_is_named(line: bytes, problem: str, tmp_path: Path) -> None:
    folder = benchmark(tmp_path, b"g\tf\ty\t1\t2.5\tone\ttwo\n" + line + b"\n")
    with pytest.raises(SourceError, match=rf"sts-test\.csv, {problem}"):
        read_sts("STSBenchmark", folder)


def test_what_cannot_be_a_set_is_refused(sts16: Path) -> None:
    gold = sts16 / "sts" / "STS16-en-test" / "STS.gs.headlines.txt"
    gold.write_text("1\n")
    with pytest.raises(SourceError, match=r"2 pairs in STS\.input\.headlines\.txt, 1 ratings"):
        read_sts("STS16", sts16)
    gold.write_text("1\n6\n")
    with pytest.raises(SourceError, match=r"STS\.gs\.headlines\.txt, line 2: '6' is no rating"):
        read_sts("STS16", sts16)
    with pytest.raises(SourceError, match="STSBenchmark holds no rated pairs"):
        read_sts("STSBenchmark", benchmark(sts16, b""))
    (sts16 / "sick").mkdir()
    (sts16 / "sick" / "SICK_test_annotated.txt").write_text("1\tA dog\tA cat\t3\tNEUTRAL\n")
    with pytest.raises(SourceError, match="line 1: expected the columns pair_ID, sentence_A"):
        read_sts("SICK-R", sts16)


def test_absent_and_unknown_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"STS12 is not in .*STS\.input\.MSRpar\.txt.*mteb/sts12-sts"):
        read_sts("STS12", tmp_path)
    with pytest.raises(BellmError, match=r"no set of pairs 'STS17'\. Choose from STS12, STS13"):
        read_sts("STS17", tmp_path)
    monkeypatch.delenv("BELLM_DATA", raising=False)
    with pytest.raises(SourceError, match=r"SICK-R needs a folder .*: it is not on the Hub"):
        read_sts("SICK-R")


def test_a_copy_on_the_hub_is_read_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("BELLM_DATA", raising=False)
    (tmp_path / "repository").mkdir()
    row = {"split": "dev", "score": 3.25, "sentence1": "A bus came.", "sentence2": "A coach came"}
    (tmp_path / "repository" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    local = DataSource("STSBenchmark-dev", "https://example.org", str(tmp_path / "repository"))
    monkeypatch.setitem(sts.STS_SOURCES, "STSBenchmark-dev", local)
    found = read_sts("STSBenchmark-dev", clean=True)
    assert (found.left, found.right, found.gold_N.tolist()) == (("A bus came.",), ("A coach came.",), [3.25])
    assert found.parts == ("STSBenchmark-dev",)


CSTS_COLUMNS = ("sentence1", "sentence2", "condition", "label")
CSTS_ROWS = [
    ["A man rows a boat.", "A boat is rowed, \nslowly.", "The speed of the boat.", "2"],
    ['A girl says "no".', "Two girls sing.", "The number of girls.", "1.0"],
]


def csts(folder: Path, rows: list[list[str]], header: tuple[str, ...] = CSTS_COLUMNS) -> Path:
    (folder / "csts").mkdir(exist_ok=True)
    with (folder / "csts" / "csts_validation.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder


def test_conditional_pairs_come_with_their_conditions(tmp_path: Path) -> None:
    found = read_sts("C-STS", csts(tmp_path, CSTS_ROWS), clean=True)
    assert found.left == ("A man rows a boat. The speed of the boat.", 'A girl says "no". The number of girls.')
    assert found.right == (
        "A boat is rowed, \nslowly. The speed of the boat.",
        "Two girls sing. The number of girls.",
    )
    assert found.gold_N.tolist() == [2.0, 1.0]


def test_columns_of_conditional_pairs_are_known_by_their_names(tmp_path: Path) -> None:
    rows = [[row[3], "7", row[2], row[1], row[0]] for row in CSTS_ROWS]
    found = read_sts("C-STS", csts(tmp_path, rows, ("label", "id", "condition", "sentence2", "sentence1")))
    assert found.left[0] == "A man rows a boat. The speed of the boat."
    assert found.gold_N.tolist() == [2.0, 1.0]
    with pytest.raises(SourceError, match=r"no column condition\. A C-STS file has sentence1, sentence2, condition"):
        read_sts("C-STS", csts(tmp_path, CSTS_ROWS, ("sentence1", "sentence2", "aspect", "label")))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (["one", "two", "three", "-1"], "line 4: '-1' is no rating from 1 to 5"),  # As in the hidden test part.
        (["one", "two", "three", ""], "line 4: '' is no rating"),
        (["one", "two", "three", "0"], "line 4: '0' is no rating from 1 to 5"),
        (["one", "two", "three", "high"], "line 4: 'high' is no rating"),
        (["one", "two", "three"], "line 4: 3 cells, but the header has 4"),
    ],
)
def test_a_bad_conditional_row_is_named(cells: list[str], problem: str, tmp_path: Path) -> None:
    csts(tmp_path, [CSTS_ROWS[0], cells])
    with pytest.raises(SourceError, match=rf"csts_validation\.csv, {problem}"):
        read_sts("C-STS", tmp_path)


def test_unreadable_and_absent_conditional_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="holds no rated pairs"):
        read_sts("C-STS", csts(tmp_path, []))
    file = csts(tmp_path, CSTS_ROWS) / "csts" / "csts_validation.csv"
    file.write_text(file.read_text() + 'one,two,"three,4\n')
    with pytest.raises(SourceError, match=r"csts_validation\.csv, line 5: unexpected end of data"):
        read_sts("C-STS", tmp_path)
    monkeypatch.delenv("BELLM_DATA", raising=False)
    with pytest.raises(SourceError, match=r"C-STS needs a folder of data sets \(--data, BELLM_DATA\).*c-sts"):
        read_sts("C-STS")
    with pytest.raises(SourceError, match=r"C-STS is not in .*: no file csts/csts_validation\.csv"):
        read_sts("C-STS", tmp_path / "csts")
