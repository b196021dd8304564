"""Labelled pairs and claims: read as published, with what is wrong in one line; and tables of a user's own."""

import json
from pathlib import Path

import pytest

from bellm.data import LABEL_NAMES, find_graphs, read_labeled, read_labeled_file
from bellm.errors import BellmError, SourceError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("dev", "test"):
        write(tmp_path / f"qqp/{part}.tsv", f"1\tIs it {part}?\tIs this {part}?\t7\n0\tWhy snow?\tWhy ice?\t8\n")
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    write(tmp_path / "sick/SICK_train.txt", f"{header}1\tA man sings\tA man is singing\t5\tENTAILMENT\n")
    write(tmp_path / "sick/SICK_test_annotated.txt", f"{header}2\tA dog runs\tNo dog runs\t3\tCONTRADICTION\r\n")
    claims = [("0", "Snow is warm.", "CONTRADICT"), ("1", "Ice melts.", "SUPPORT"), ("2", "Rain falls.", None)]
    lines = [
        {"_id": key, "text": text, "metadata": {"9": [{"sentences": [1], "label": label}]} if label else {}}
        for key, text, label in claims
    ]
    lines.append(
        {"_id": "3", "text": "Both.", "metadata": {"9": [{"label": "SUPPORT"}], "8": [{"label": "CONTRADICT"}]}}
    )
    write(tmp_path / "scifact/beir/queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(tmp_path / "scifact/beir/qrels/train.tsv", "query-id\tcorpus-id\tscore\n0\t9\t1\n2\t9\t1\n3\t9\t1\n")
    write(tmp_path / "scifact/beir/qrels/test.tsv", "1\t 0 9\t1\n")
    return tmp_path


def test_questions(folder: Path) -> None:
    found = read_labeled("QQP", folder)
    assert found.columns[0] == ("Is it dev?", "Why snow?", "Is it test?", "Why snow?")
    assert [LABEL_NAMES["QQP"][label] for label in found.labels_N] == ["duplicate", "different"] * 2
    assert found.split == {"train": range(2), "test": range(2, 4)}


def test_questions_with_broken_characters_are_read(folder: Path) -> None:
    (folder / "qqp/dev.tsv").write_bytes(b"1\tIs it \xe2\x80\x98so\xe2\x80?\tIs caf\xc3\xa9 so?\t7\n")
    assert read_labeled("QQP", folder).columns[0][0] == "Is it \u2018so\ufffd?"
    assert read_labeled("QQP", folder).columns[1][0] == "Is caf\u00e9 so?"


def test_entailment(folder: Path) -> None:
    found = read_labeled("SICK-E", folder)
    assert found.columns == (("A man sings", "A dog runs"), ("A man is singing", "No dog runs"))
    assert [found.label_names[label] for label in found.labels_N] == ["ENTAILMENT", "CONTRADICTION"]


def test_claims_without_evidence_or_with_evidence_that_disagrees_are_left_out(folder: Path) -> None:
    found = read_labeled("SciFact-claims", folder)
    assert found.columns == (("Snow is warm.", "Ice melts."),)
    assert found.labels_N.tolist() == [0, 1]
    assert found.split == {"train": range(1), "test": range(1, 2)}


def test_what_is_wrong_is_one_line(folder: Path) -> None:
    write(folder / "qqp/test.tsv", "yes\tA\tB\t1\n")
    write(
        folder / "sick/SICK_train.txt",
        "pair_ID\tsentence_A\tsentence_B\tscore\tentailment_judgment\n1\tA\tB\t5\tMAYBE\n",
    )
    write(folder / "scifact/beir/queries.jsonl", "no json\n")
    for name, said in (
        ("QQP", "test.tsv, line 1: 'yes' is not 0 or 1, before two questions and an id"),
        ("SICK-E", "line 2: 'MAYBE' is not one of CONTRADICTION, ENTAILMENT, NEUTRAL"),
        ("SciFact-claims", "line 1: 'no json' is no claim of SciFact"),
    ):
        with pytest.raises(SourceError, match=said):
            read_labeled(name, folder)
    with pytest.raises(BellmError, match="There is no labelled set 'SNLI'"):
        read_labeled("SNLI", folder)
    with pytest.raises(SourceError, match=r"QQP is not in .*: no file qqp/dev.tsv"):
        read_labeled("QQP", folder / "qqp")


def test_published_sets(data: Path) -> None:
    sizes = {"QQP": (10_000, 10_000), "SICK-E": (4500, 4927), "SciFact-claims": (505, 188)}
    for name, (train, test) in sizes.items():
        found = read_labeled(name, data)
        assert (len(found.split["train"]), len(found.split["test"])) == (train, test), name
        assert len(found.columns) == (1 if name == "SciFact-claims" else 2)


# Tables


def test_a_table_of_texts_and_one_of_pairs(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", "Text,Label\nA heron waits.,bird\nSnow fell.,weather\n")
    found = read_labeled_file(str(tmp_path / "one.csv"))
    assert (found.columns, found.label_names) == ((("A heron waits.", "Snow fell."),), ("bird", "weather"))
    write(
        tmp_path / "two.jsonl", '{"text": "A", "text_b": "B", "label": 1}\n{"text": "C", "text_b": "D", "label": 0}\n'
    )
    with pytest.raises(SourceError, match="more than one column"):
        write(tmp_path / "three.csv", "text,premise,label\na,b,c\n")
        read_labeled_file(str(tmp_path / "three.csv"))
    write(tmp_path / "nli.csv", "premise,hypothesis,label\nA,B,yes\nC,D,no\n")
    assert read_labeled_file(str(tmp_path / "nli.csv")).columns == (("A", "C"), ("B", "D"))
    found = read_labeled_file(str(tmp_path / "two.jsonl"))
    assert (found.columns, found.labels_N.tolist()) == ((("A", "C"), ("B", "D")), [1, 0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,score\na,1\n", "no labelled texts in the columns 'text', 'score'"),
        ("text,label\na,x\nb,x\n", "holds 2 rows of 1 classes"),
        ("text,label\na,x\nb,X\n", "would be two classes"),
        ("text,label\na,\nb,x\n", "'' is no label"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: str, said: str) -> None:
    write(tmp_path / "t.csv", content)
    with pytest.raises(SourceError, match=said) as caught:
        read_labeled_file(str(tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)


def test_graphs_of_some_texts_are_found_in_large_files(tmp_path: Path) -> None:
    pytest.importorskip("penman")
    write(
        tmp_path / "a.amr", "# ::id 0\n# ::snt Snow fell.\n(f / fall-01\n   :ARG1 (s / snow))\n\n# ::snt Broken\n(b\n"
    )
    write(tmp_path / "b.amr", "# ::snt Snow  fell.\n(s / snow-01)\n\n# ::snt It waits.\n(w / wait-01)\n")
    files = [tmp_path / "a.amr", tmp_path / "b.amr"]
    found = find_graphs(files, ["Snow fell.", "It waits .", "It  waits.", "Nothing."])
    assert dict(found.by_text) == {
        "Snow fell.": "(fall-01 :ARG1 (snow))",
        "It waits .": "(wait-01)",
        "It waits.": "(wait-01)",
    }
    with pytest.raises(SourceError, match=r"a.amr, the graph at line 6: "):
        find_graphs(files, ["Broken"])
