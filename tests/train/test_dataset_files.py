"""Rows of every format, the bad ones with their lines."""

import csv
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bellm.errors import BellmWarning, SourceError
from bellm.evaluate import read_dev_set
from bellm.io.rows import read_texts
from bellm.train.dataset import Dataset, Rejection, load_dataset, read_examples
from bellm.train.examples import Example

ROWS = [
    {"query": "When does the bakery open?", "pos": "The bakery opens at six.", "neg": "The library opens at ten."},
    {"query": 'She said "no"', "pos": "She,\nrefused", "neg": "Sie sagte „ja“"},
    {"query": "x", "pos": "y", "neg": ""},
]
EXAMPLES = [Example(row["query"], (row["pos"],), (row["neg"],) if row["neg"] else ()) for row in ROWS]


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_csv(path: Path, rows: list[dict[str, Any]], dialect: str = "excel") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)


def as_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    as_csv(path, rows, "excel-tab")


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {".jsonl": as_json, ".csv": as_csv, ".tsv": as_tsv, ".parquet": as_parquet}
FORMATS = pytest.mark.parametrize(("suffix", "write"), WRITERS.items())


def zipped(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def problems(rows: list[Example | Rejection]) -> dict[str, str]:
    return {row.location: row.reason for row in rows if isinstance(row, Rejection)}


@FORMATS
def test_rows_of_every_format(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, ROWS)
    assert list(read_examples(path)) == EXAMPLES
    assert list(read_examples(zipped(path))) == EXAMPLES
    swapped = read_examples(str(path), {"anchor": "pos", "positive": "query"})
    assert list(swapped) == [Example(row["pos"], (row["query"],)) for row in ROWS]
    assert load_dataset(path).name == path.name
    assert load_dataset(path).digest == load_dataset(zipped(path)).digest == Dataset("", EXAMPLES).digest


@FORMATS
def test_bad_rows_are_named(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    rows = [{"text1": f"left {number}", "text2": f"right {number}", "score": float(number)} for number in range(6)]
    rows[1]["text1"], rows[2]["score"], rows[4]["text2"] = "", float("inf"), " "
    path = tmp_path / f"rows{suffix}"
    write(path, rows)
    found = list(read_examples(path))
    word, first = {".jsonl": ("line", 1), ".parquet": ("row", 1)}.get(suffix, ("line", 2))
    infinity = "'inf'" if suffix in (".csv", ".tsv") else "inf"
    assert problems(found) == {
        f"{path}, {word} {first + 1}": "no anchors. A row has one.",
        f"{path}, {word} {first + 2}": f"The score {infinity} is not a finite number, as in 0.5.",
        f"{path}, {word} {first + 4}": "A text is empty.",
    }
    assert [row.score for row in found if isinstance(row, Example)] == [0, 3, 5]


@FORMATS
def test_columns_that_are_missing_are_named(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, [{"left": "a", "right": "b"}])
    with pytest.raises(SourceError, match=r"no column for anchor or positive\. Columns: 'left', 'right'\. Name"):
        load_dataset(path)
    assert load_dataset(path, {"anchor": "left", "positive": "right"})[0] == Example("a", ("b",))


def test_a_line_of_json_that_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = b'{"anchor": "a", "positive": "b"}\n'
    lines = [
        b"\xef\xbb\xbf" + good,
        b"{broken\n",
        b'"bare"\n',
        b"\n",
        b'["c", "d"]\r\n',
        b'["e"]\n',
        b"[" * 99999 + b"\n",
    ]
    lines += [b'{"anchor": "na\xefve", "positive": "b"}\n', b'{"anchor": "a"}\n', b'{"anchor": "a", "pos": NaN}\n']
    path.write_bytes(b"".join(lines) + good.strip())
    found = list(read_examples(path))
    pair = Example("a", ("b",))
    assert [row for row in found if isinstance(row, Example)] == [pair, Example("c", ("d",), symmetric=True), pair]
    wanted = {
        2: "not JSON",
        3: "'bare' is neither",
        6: "Fewer than two",
        7: "not JSON",
        8: "byte 0xef is not UTF-8",
        9: "no column for positive. Columns: 'anchor'.",
        10: "nan is not a text",
    }
    named = problems(found)
    assert list(named) == [f"{path}, line {number}" for number in wanted]
    assert all(reason.startswith(start) for reason, start in zip(named.values(), wanted.values(), strict=True))


def test_a_row_of_csv_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = ["anchor,positive,n", "a,b,1", 'c,"d,2', "e,f,3", 'g,"h" h,4', "", "i,j", "\xef,k,5", "l,m,\xef", 'n,"o,p']
    path.write_bytes("\r\n".join(lines).encode("latin1"))
    with pytest.warns(BellmWarning, match="not read: column 'n'"):
        found = list(read_examples(path))
    assert [row.texts for row in found if isinstance(row, Example)] == [("a", "b"), ("l", "m")]
    named = {place.removeprefix(f"{path}, "): reason for place, reason in problems(found).items()}
    assert list(named) == ["lines 3-5", "line 7", "line 8", "line 10"]
    assert named["lines 3-5"].endswith("Put quotes around a cell that holds quotes, and double those.")
    assert named["line 7"].startswith("2 cells, but the header has 3.")
    assert named["line 8"].startswith("byte 0xef is not UTF-8")
    assert "unexpected end of data" in named["line 10"]


LISTS = [
    ('["p, q", "r"]', ("p, q", "r")),
    ('["p"]', ("p",)),
    ('["p", null]', "None is not a text"),
    *(
        (cell, 'is a list, and not as JSON has it: write ["one", "two"].')
        for cell in (
            "['p', 'q']",
            "['p' 'q']",
            "['p', nan]",
            "('p', 'q')",
            "('p',)",
            '("p, q", "r")',
            "{'p', 'q'}",
            "()",
        )
    ),
    ("array(['p', 'q'], dtype=object)", "is a list, and not as JSON has it"),
    *((cell, (cell,)) for cell in ("('p')", '("Yes!")', "(p, q)", "{p}", "[1] p", '["p!" she said]', "[p]")),
]


@pytest.mark.parametrize(("cell", "texts"), LISTS)
def test_a_list_in_a_cell_is_written_as_json_and_a_string_of_json_is_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, texts: tuple[str, ...] | str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row = {"query": "a", "pos": cell}
    for suffix, write in WRITERS.items():
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        write(folder / f"rows{suffix}", [row])
        for source in [folder / f"rows{suffix}", folder][: 1 + (suffix != ".tsv")]:
            found = list(read_examples(source))
            if "sv" not in suffix:
                assert found == [Example("a", (cell,))]
            elif isinstance(texts, str):
                assert texts in next(iter(problems(found).values()))
            else:
                assert found == [Example("a", texts)]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "null", "N/A", "NA", "<NA>"])
def test_words_that_tables_have_for_an_empty_cell_are_one(tmp_path: Path, word: str) -> None:
    rows = [{"query": "a", "pos": "b", "neg": word}, {"query": "c", "pos": word, "neg": "d"}]
    path = tmp_path / "rows.csv"
    as_csv(path, rows)
    message = rf"rows\.csv: read as empty cells: {re.escape(repr(word))}\. In JSON Lines a string is a text\.$"
    with pytest.warns(BellmWarning, match=message) as told:
        found = list(read_examples(path))
    assert len(told) == 1
    assert found[0] == Example("a", ("b",))
    assert problems(found) == {f"{path}, line 3": "no positive. A row has one or more."}
    as_json(tmp_path / "rows.jsonl", rows)
    assert list(read_examples(tmp_path / "rows.jsonl")) == [
        Example("a", ("b",), (word,)),
        Example("c", (word,), ("d",)),
    ]
    as_csv(path, [{"sentence1": "a", "sentence2": word if at == 3 else "b", "score": at} for at in range(9)])
    with pytest.raises(SourceError, match=rf"rows\.csv, line 5: {re.escape(repr(word))} is an empty cell"):
        read_dev_set(str(path))
    as_csv(path, [{"query": "none", "pos": "nothing"}])
    assert list(read_examples(path)) == [Example("none", ("nothing",))]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_header_that_comes_again_is_no_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, [{"query": "a", "pos": "b"}])
    once = path.read_bytes()
    path.write_bytes(once + b"\xef\xbb\xbf" + once + once)
    found = list(read_examples(path))
    assert [row for row in found if isinstance(row, Example)] == [Example("a", ("b",))] * 3
    message = "the header again, as where files were joined. Take the line out."
    assert problems(found) == {f"{path}, line {line}": message for line in (3, 5)}
    with pytest.raises(SourceError, match=rf"rows\{suffix}, line 3: the header again"):
        read_texts(str(path), "query")


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    anchors = pa.array([b"a", b"na\xefve", b"c"]).view(pa.string())
    pq.write_table(pa.table({"anchor": anchors, "positive": ["b", "b", "b"]}), path)
    assert problems(list(read_examples(path))) == {f"{path}, row 2": "byte 0xef is not UTF-8."}


def test_rated_rows_and_others_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rated, other = {"text1": "a", "text2": "b", "score": 1}, {"text1": "c", "text2": "d"}
    as_json(path, [rated, other, rated])
    assert list(problems(list(read_examples(path)))) == [f"{path}, line 2"]
    as_json(path, [other, rated, other])
    assert "Put rated rows in a file of their own" in problems(list(read_examples(path)))[f"{path}, line 2"]
    assert not load_dataset(path).rated


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, r"none\.csv cannot be read: No such file or directory\.$"),
        ("none/of/these", None, r"these: there is no such file or folder\.$"),
        ("rows.txt", b"a\n", r"its suffix is none of \.jsonl, .*\.csv, \.tsv, \.parquet, nor one of these and \.gz"),
        ("rows.csv.gz", b"no gzip", r"rows\.csv\.gz cannot be read: Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b'["a", "b"]\n' * 9, mtime=0)[:-9], r"cannot be read: Compressed file ended"),
        ("rows.parquet", b"PAR1", "cannot be read as Parquet"),
        ("rows.csv", b"", "no column for anchor or positive. Columns: none"),
        ("rows.csv", b'"anchor"x,positive\n', r"rows\.csv: line 1: .*expected after"),
        ("rows.csv", b"anchor,positive\n", r"^rows\.csv holds no rows\.$"),
        ("rows.jsonl", b"{}\n" * 9, r"^No row of rows\.jsonl can be read\. .*rows\.jsonl, line 1: no column"),
    ],
)
def test_files_without_rows(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        load_dataset(tmp_path / name)
    assert "\n" not in str(caught.value)


@FORMATS
def test_columns_that_are_not_read_are_named_once(tmp_path: Path, suffix: str, write: Callable[..., None]) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, [{"id": number, "query": f"a {number}", "pos": f"b {number}", "genre": "x"} for number in range(3)])
    with pytest.warns(BellmWarning) as caught:
        rows = load_dataset(path)
    assert [str(warning.message) for warning in caught] == [f"{path}: not read: columns 'id', 'genre'."]
    assert list(rows) == [Example(f"a {number}", (f"b {number}",)) for number in range(3)]
    assert list(load_dataset(path, {"anchor": "query", "positive": "pos"})) == list(rows)  # As asked, without a word.


NLI = [
    ("A man plays a lute.", "Somebody makes music.", "entailment"),
    ("A man plays a lute.", "He is on a stage.", "neutral"),
    ("Two cats sleep.", "The cats run.", "contradiction"),
    ("A man plays a lute.", "Nobody makes a sound.", "contradiction"),
    ("Two cats sleep.", "Animals rest.", "entailment"),
    ("Two cats sleep.", "Cats are asleep.", "entailment"),
    ("A door is open.", "It is not shut.", "entailment"),
    ("A door is open.", "Somebody left.", "-"),
]
TRIPLETS = [
    Example("A man plays a lute.", ("Somebody makes music.",), ("Nobody makes a sound.",)),
    Example("Two cats sleep.", ("Animals rest.",), ("The cats run.",)),
]


@FORMATS
@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("sentence1", "sentence2", "gold_label"), {}),
        (("premise", "hypothesis", "label"), {"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}),
    ],
)
def test_rows_of_nli_become_triplets(
    tmp_path: Path, suffix: str, write: Callable[..., None], names: tuple[str, ...], classes: dict[str, int]
) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = [(left, right, classes.get(word, word)) for left, right, word in NLI]
    write(path, [dict(zip(names, row, strict=True)) for row in rows])
    with pytest.warns(BellmWarning, match="8 rows of NLI make 2 triplets of premise, entailment and contradiction"):
        assert list(load_dataset(path)) == TRIPLETS
    write(path, [dict(zip(names, row, strict=True)) for row in rows if row[2] not in ("contradiction", 2)])
    expected = "classes or ratings" if classes else None
    with pytest.raises(SourceError, match=expected) if expected else pytest.warns(BellmWarning, match="make 4 pairs"):
        found = load_dataset(path)
        assert [row.texts for row in found] == [
            ("A man plays a lute.", "Somebody makes music."),
            ("Two cats sleep.", "Animals rest."),
            ("Two cats sleep.", "Cats are asleep."),
            ("A door is open.", "It is not shut."),
        ]


def test_classes_are_no_ratings(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    as_csv(path, [{"sentence1": f"a {at}", "sentence2": f"b {at}", "label": at % 3} for at in range(9)])
    with pytest.raises(SourceError, match=r"'label' holds 0, 1, 2: are these classes or ratings\?") as caught:
        load_dataset(path)
    assert "--columns anchor=NAME,positive=NAME,score=label" in str(caught.value)
    told = load_dataset(path, "anchor=sentence1,positive=sentence2,score=label")
    assert [row.score for row in told] == [0, 1, 2] * 3
    as_csv(path, [{"sentence1": f"a {at}", "sentence2": f"b {at}", "label": f"{2 * (at % 2)}.0"} for at in range(9)])
    with pytest.raises(SourceError, match=r"'label' holds 0, 2: are"):
        load_dataset(path)
    for ratings in ([0, 1, 2, 3], [0, 1, 2, 0.5]):
        as_csv(path, [{"sentence1": f"a {at}", "sentence2": f"b {at}", "label": at} for at in ratings])
        assert [row.score for row in load_dataset(path)] == ratings


@pytest.mark.parametrize("pair", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "answer")])
@pytest.mark.parametrize("name", ["label", "gold_label", "gold"])
@pytest.mark.parametrize("classes", [[0, 1], ["0.0", "1.0"], [1], [1, 2, 3], [0, 5], [-1, 0, 1]])
def test_few_labels_are_neither_ratings_nor_classes_unless_said(
    tmp_path: Path, pair: tuple[str, str], name: str, classes: list[float | str]
) -> None:
    """Whether 0 or 1 means that a pair belongs together differs between data sets: training and --dev refuse both."""
    path = tmp_path / "rows.csv"
    rows = [(f"a {at}", f"b {at}", classes[at % len(classes)]) for at in range(9)]
    as_csv(path, [dict(zip((*pair, name), row, strict=True)) for row in rows])
    with pytest.raises(SourceError, match=rf"'{name}' holds [\d., -]+: are these classes or ratings\?") as caught:
        load_dataset(path)
    assert f"score={name}" in str(caught.value)
    columns = f"anchor={pair[0]},positive={pair[1]},score={name}"
    assert [row.score for row in load_dataset(path, columns)] == [float(row[2]) for row in rows]
    if pair[0] != "question":  # Of questions and answers --dev knows no names.
        with pytest.raises(SourceError, match=rf"'{name}' holds classes"):
            read_dev_set(str(path))


@pytest.mark.parametrize("name", ["score", "similarity", "is_duplicate", "Is Duplicate", "rating"])
def test_what_is_called_a_score_is_one_to_training_and_to_dev(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.csv"
    as_csv(path, [{"question1": f"a {at}", "question2": f"b {at}", name: at % 2} for at in range(9)])
    gold = [at % 2 for at in range(9)]
    assert [row.score for row in load_dataset(path)] == read_dev_set(str(path)).gold_N.tolist() == gold


@pytest.mark.parametrize("name", ["label", "gold_label", "gold"])
def test_numbers_beside_a_hypothesis_are_classes_or_ratings_and_never_both(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.csv"
    for ratings, few in (([0, 2, 5], 150), ([5, 0, 2], 0), ([0.5, 1], 0)):
        values = ratings[:1] * few + ratings[few > 0 :] * 150
        as_csv(path, [{"premise": f"a {at}", "hypothesis": "b", name: value} for at, value in enumerate(values)])
        with pytest.raises(SourceError, match=rf"'{name}' holds [\d., ]+: are these classes or ratings\?") as caught:
            load_dataset(path)
        assert f"score={name}" in str(caught.value)
        told = load_dataset(path, f"anchor=premise,positive=hypothesis,score={name}")
        assert [row.score for row in told] == values


@pytest.mark.parametrize("ratings", [[0, 2, 5], [0, 1, 2], [0, 0.5, 1]])
def test_a_score_beside_a_hypothesis_is_a_score(tmp_path: Path, ratings: list[float]) -> None:
    path = tmp_path / "rows.csv"
    as_csv(path, [{"premise": f"a {at}", "hypothesis": "b", "score": at} for at in ratings])
    assert [row.score for row in load_dataset(path)] == ratings


def test_words_of_nli_in_named_columns_are_nli(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    as_csv(path, [dict(zip("abc", row, strict=True)) for row in NLI])
    with pytest.warns(BellmWarning, match="8 rows of NLI make 2 triplets"):
        assert list(load_dataset(path, "anchor=a,positive=b,score=c")) == TRIPLETS


def test_a_pattern_is_all_files_that_it_matches(tmp_path: Path) -> None:
    for number in (2, 1):
        as_csv(tmp_path / f"part-{number}.csv", [{"query": f"a {number}", "pos": f"b {number}"}])
    found = load_dataset(tmp_path / "part-*.csv")
    assert found.name == "part-*.csv"
    assert [row.anchor for row in found] == ["a 1", "a 2"]
    with pytest.raises(SourceError, match=r"no-\*\.csv matches no file"):
        load_dataset(tmp_path / "no-*.csv")


@FORMATS
def test_folders_go_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, write: Callable[..., None]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / f"train{suffix}", ROWS[:2])
    write(folder / f"test{suffix}", ROWS[2:])
    if suffix != ".tsv":
        assert list(read_examples(folder)) == EXAMPLES[:2]
        assert list(read_examples(f"{folder}?split=test")) == EXAMPLES[2:]
        with pytest.raises(SourceError, match=r"split=none: datasets cannot read it: .*none"):
            list(read_examples(f"{folder}?split=none"))
    with pytest.raises(SourceError, match=r"shuffle is no setting of a data set\. Settings: config, split"):
        list(read_examples(f"{folder}?shuffle=1"))


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "rows.parquet"), ("datasets", ".")])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    as_parquet(tmp_path / "rows.parquet", ROWS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SourceError, match=rf"need {module}: pip install"):
        list(read_examples(tmp_path / name))


def test_the_nli_triplets(data: Path) -> None:
    with pytest.warns(BellmWarning, match="not read: column 'source'"):
        triplets = load_dataset(data / "nli" / "triplets_en.csv")
    with (data / "nli" / "triplets_en.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(triplets), triplets.num_rejected) == (len(rows), 0) == (18942, 0)
    assert [row.texts for row in triplets] == [(row["sent0"], row["sent1"], row["hard_neg"]) for row in rows]


def test_texts_that_say_the_same_and_pairs_may_stand_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"texts": ["a dog", "a hound"]}\n{"anchor": "snow", "positive": "ice"}\n')
    rows = load_dataset(tmp_path / "rows.jsonl")
    assert [rows[index].texts for index in range(2)] == [("a dog", "a hound"), ("snow", "ice")]
