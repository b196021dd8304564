"""Tables of one's own: which columns are read, and what is refused."""

import json
from pathlib import Path

import pytest

from bellm.data import LabeledTexts, RetrievalData, STSPairs
from bellm.data.own_files import read_own_data
from bellm.errors import BellmWarning, SourceError

pytestmark = pytest.mark.filterwarnings("ignore:.*not read:bellm.errors.BellmWarning")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(header: str, *rows: str, name: str = "own.tsv") -> str:
    Path(name).write_text("".join(f"{line}\n" for line in (header, *rows)).replace("|", "\t"))
    return name


@pytest.mark.parametrize(
    "header",
    [
        "sentence1|sentence2|score",
        "Sentence 1|Sentence 2|Similarity Score",
        "anchor|positive|score",
        "sentence_A|sentence_B|relatedness_score",
        "question1|question2|label",
        "text_a|text_b|Gold",
        "premise|hypothesis|sim",
    ],
)
def test_rated_pairs_are_known_by_their_columns(header: str) -> None:
    rows = ("Snow fell.|It snowed.|4.5", "Bread rises.|The train is late.|0", "Why?|Because.|2", "Go.|Leave.|3.5")
    found = read_own_data(table(header, *rows))
    assert isinstance(found, STSPairs)
    assert (found.name, found.left[:2], found.right[0]) == ("own.tsv", ("Snow fell.", "Bread rises."), "It snowed.")
    assert found.gold_N.tolist() == [4.5, 0, 2, 3.5]


def test_a_score_goes_before_a_label_of_the_same_pairs() -> None:
    found = read_own_data(table("sentence1|sentence2|score|label", "a|b|0|0", "a|c|1|1", "b|c|1|1"))
    assert isinstance(found, STSPairs)
    assert found.gold_N.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["label", "gold_label", "Gold", "labels"])
@pytest.mark.parametrize("classes", [("0", "1", "2"), ("1", "0", "1"), ("entailment", "neutral", "contradiction")])
def test_classes_of_pairs_are_no_ratings(name: str, classes: tuple[str, ...]) -> None:
    file = table(f"premise|hypothesis|{name}", *(f"Snow fell.|It rained {label}.|{label}" for label in classes))
    with pytest.raises(SourceError, match=rf"own.tsv: the column '{name}' holds classes \(.*Call it score if"):
        read_own_data(file)


def test_a_text_with_a_class_is_classified() -> None:
    found = read_own_data(table("Text|Label", "Good.|pos", "Bad.|neg", "Fine.|pos"))
    assert isinstance(found, LabeledTexts)
    assert (found.columns, found.labels_N.tolist()) == ((("Good.", "Bad.", "Fine."),), [1, 0, 1])


@pytest.mark.parametrize("other", ["1.0", " 1", "1 "])
def test_a_class_is_written_in_one_way(other: str) -> None:
    with pytest.raises(SourceError, match=r"own\.tsv: '.*' and '.*' would be two classes"):
        read_own_data(table("text|label", "Good.|1", "Bad.|0", f"Fine.|{other}"))
    with pytest.raises(SourceError, match="'Pos' and 'pos' would be two classes"):
        read_own_data(table("text|label", "Good.|pos", "Bad.|neg", "Fine.|Pos"))


def test_columns_that_are_named_are_read() -> None:
    file = table("query|passage|sentence1|grade", "a|b|x|1", "c|d|x|2.5")
    columns = {"anchor": ["query"], "positive": ["passage"], "score": ["grade"]}
    found = read_own_data(file, columns)
    assert isinstance(found, STSPairs)
    assert (found.left, found.right, found.gold_N.tolist()) == (("a", "c"), ("b", "d"), [1, 2.5])
    with pytest.raises(SourceError, match="no column 'rank' for the score"):
        read_own_data(file, {**columns, "score": ["rank"]})


def test_json_lines_and_a_folder_in_beirs_format() -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": n / 3, "more": None} for n in range(4)]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read_own_data("own.jsonl")
    assert isinstance(found, STSPairs)
    assert found.gold_N.tolist() == [0, 1 / 3, 2 / 3, 1]
    Path("own/qrels").mkdir(parents=True)
    Path("own/corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "Herons wait."}\n')
    Path("own/queries.jsonl").write_text('{"_id": "q", "text": "which bird"}\n')
    Path("own/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    collection = read_own_data("own")
    assert isinstance(collection, RetrievalData)
    assert collection.queries == ("which bird",)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("sentence1|sentence2", ["a|b"], "no task in the columns 'sentence1', 'sentence2'. Give a task the columns"),
        (
            "sentence1|text1|sentence2|score",
            ["a|b|c|1"],
            "more than one column could be the anchor: 'sentence1', 'text1'",
        ),
        (
            "sentence1|sentence2|score",
            ["a|b|1", "a|b|"],
            "own.tsv, line 3: '' is no score. A task is scored by every row",
        ),
        ("sentence1|sentence2|score", ["a|b|high"], "own.tsv, line 2: 'high' is no rating. Give a number"),
        ("sentence1|sentence2|score", ["a|b|nan"], "line 2: 'nan' is no rating"),
        ("sentence1|sentence2|score", ["a|b|1_000"], "line 2: '1_000' is no rating"),
        ("sentence1|sentence2|score", ["a|b| 1"], "line 2: ' 1' is no rating"),
        ("sentence1|sentence2|score", ["a|b|\u0661"], "is no rating. Give a number, as in 0.5"),
        ("sentence1|sentence2|label", ["a|b|1", "a|b|2", "a|b|3", "a|b|1_0"], "holds classes (1, 1_0, 2, 3)"),
        ("sentence1|sentence2|score", ["a|1"], "own.tsv, line 2: 2 cells, but the header has 3"),
        ("sentence1|sentence2|score", [], "own.tsv holds no rows"),
    ],
)
def test_what_is_no_task_is_said_with_its_place(header: str, rows: list[str], message: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_own_data(table(header, *rows))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_read_are_named() -> None:
    with pytest.warns(BellmWarning, match=r"^own\.tsv: not read: columns 'year', 'genre'\.$"):
        read_own_data(table("year|sentence1|sentence2|score|genre", "2012|a|b|1.5|x", "2013|c|d|2|y"))


def test_rows_with_other_columns_than_the_first_are_refused() -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": 1}, {"sentence1": "a", "sentence2": "b", "label": 1}]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SourceError, match=r"own.jsonl, line 2: no column .*, unlike rows before"):
        read_own_data("own.jsonl")
    Path("own.jsonl").write_text('["a", "b"]\n')
    with pytest.raises(SourceError, match=r"own.jsonl, line 1: .* has no columns"):
        read_own_data("own.jsonl")
