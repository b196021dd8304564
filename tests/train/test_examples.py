"""Columns to examples."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.errors import SourceError
from bellm.train.examples import Example, ExampleColumns, mark_symmetric, match_columns, parse_example, text_key


def made(row: dict[str, Any], columns: ExampleColumns | None = None) -> Example:
    return parse_example(row, match_columns(list(row), columns))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"anchor": "a", "positive": "p"}, Example("a", ("p",))),
        ({"sent0": "a", "sent1": "p", "hard_neg": "n", "source": "x"}, Example("a", ("p",), ("n",))),
        ({"query": "a", "pos": ["p", "q"], "neg": ["m", "n"]}, Example("a", ("p", "q"), ("m", "n"))),
        ({"question": "a", "answer": "p", "id": 7}, Example("a", ("p",))),
        ({"sentence1": "a", "sentence2": "p", "score": "3.5"}, Example("a", ("p",), score=3.5)),
        ({"text1": "a", "text2": "p", "label": 1}, Example("a", ("p",), score=1.0)),
        ({"premise": "a", "positives": ["p"], "similarity": 0.25}, Example("a", ("p",), score=0.25)),
        ({"anchor": "a", "positive": "p", "negative_1": "m", "negative_2": "n"}, Example("a", ("p",), ("m", "n"))),
        ({"anchor": "a", "positive": "p", "negative_1": "", "negative_2": None}, Example("a", ("p",))),
        ({"anchor": "a", "positive": "p", "negatives": []}, Example("a", ("p",))),
        ({"texts": ["a", "b", "A ", "c"]}, Example("a", ("b", "c"), symmetric=True)),
        ({"Sentence1": "a", "Sentence 2": "p", "Similarity Score": 2}, Example("a", ("p",), score=2.0)),
        ({"sentence_A": "a", "sentence_B": "p", "relatedness_score": 2}, Example("a", ("p",), score=2.0)),
        ({"question1": "a", "question2": "p", "is_duplicate": "1", "qid1": 3}, Example("a", ("p",), score=1.0)),
        ({"query": "a", "Positive": "p", "hard_negatives": ["m", "n"]}, Example("a", ("p",), ("m", "n"))),
        (
            {"query": "a", "positive": "p", "hard_negative_1": "m", "hard_negative_2": "n"},
            Example("a", ("p",), ("m", "n")),
        ),
        ({"premise": "a", "hypothesis": "p", "labels": 0.5}, Example("a", ("p",), score=0.5)),
        ({"sentence1": "a", "sentence2": "p", "gold": "4.5"}, Example("a", ("p",), score=4.5)),
        ({"text_a": "a", "text_b": "p", "sim": "-1e-1"}, Example("a", ("p",), score=-0.1)),
        ({"query": "a", "pos": '["p", "q"]', "neg": "nan"}, Example("a", ('["p", "q"]',), ("nan",))),
    ],
)
def test_the_names_of_the_field(row: dict[str, Any], wanted: Example) -> None:
    assert made(row) == wanted


def test_named_columns_are_read_and_no_others() -> None:
    row = {"anchor": "a", "query": "b", "positive": "p", "label": 2, "negative": "n"}
    assert made(row, {"anchor": "query", "positive": "positive"}) == Example("b", ("p",))
    assert made(row, {"anchor": "anchor", "positive": ["query", "positive"]}) == Example("a", ("b", "p"))
    # Unsupervised SimCSE: a text is its own positive, and dropout makes two of it.
    assert made(row, {"anchor": "query", "positive": "query"}) == Example("b", ("b",))


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (
            ["query", "anchor", "pos"],
            None,
            r"more than one column could be the anchor: 'query', 'anchor'\. Columns: 'query'",
        ),
        (["query", "pos", "neg", "negative_1"], None, "could be the negative: 'neg', 'negative_1'"),
        (["query", "pos", "pos"], None, "could be the positive: 'pos', 'pos'"),
        (
            ["a", "b"],
            None,
            r"^no column for anchor or positive\. Columns: 'a', 'b'\. Name .*--columns anchor=NAME,positive=NAME\.$",
        ),
        (["query", "pos", "score_by_hand"], None, "^'score_by_hand' may be the score, and would not be read"),
        (["query", "pos", "Label text", "id"], None, "^'Label text' may be the score"),
        (["query", "pos", "negs_of_bm25"], None, "^'negs_of_bm25' may be the negative"),
        *(
            (["question", "answer", "id", name], None, f"^'{name}' may be the score")
            for name in (
                *("target", "distance", "cosine", "rel", "relation", "y", "Quality", "isAnswered", "pos_scores"),
                *(
                    "STS",
                    "sts-b",
                    "agreement",
                    "human_avg",
                    "Average",
                    "truth",
                    "ground_truth",
                    "groundTruth",
                    "closeness",
                ),
            )
        ),
        *(
            (["question", "answer", "id", name], None, f"^'{name}' may be the negative")
            for name in (
                *("distractors", "Distractor1", "wrong answer", "incorrect", "hn", "rejected", "irrelevantDocs"),
                *("opposite", "Opposites", "foil", "foil_2", "loser", "candidates", "antonym", "dissimilar", "decoys"),
            )
        ),
        *(
            ([first, second, third, "url"], None, f"^'{third}' may be another text of the row, and would not be read")
            for first, second, third in (
                ("sentence1", "sentence2", "sentence3"),
                ("sent0", "sent1", "sent2"),
                ("sentence_a", "sentence_b", "sentence_c"),
                ("text1", "text2", "Text 3"),
                ("query", "positive", "positive_2"),
                *(
                    ("anchor", "positive", name)
                    for name in ("sentence3", "text3", "Text 4", "passage2", "doc_b", "SentenceC", "response-2")
                ),
            )
        ),
        (["a"], {"anchor": "a"}, "^no column for positive"),
        (["source", "target"], None, "^no column for anchor or positive"),
        (["query", "rejected", "score"], None, "^no column for positive"),
        (["query", "pos", "neg", "score"], None, "both negatives and a score"),
        (["texts", "anchor"], None, "texts and anchor in one row"),
        (["a", "b"], {"anchor": "a", "positive": "c"}, r"^no column 'c' for the positive\. Columns: 'a', 'b'\.$"),
        (["a", "a", "b"], {"anchor": "a", "positive": "b"}, "^more than one column 'a' for the anchor"),
        (["a", "b"], {"anchor": ["a", "b"], "positive": "b"}, "^2 columns for the anchor"),
        (["a", "b"], {"anker": "a", "positive": "b"}, r"^'anker' is no part of an example\. Parts: anchor, positive"),
    ],
)
def test_unclear_columns_are_named(names: list[str], columns: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        match_columns(names, columns)


def test_columns_that_say_where_a_row_is_from_are_no_parts() -> None:
    others = """id ID _id uid uuid qid1 qid2 pair_id pairID promptID captionID doc_id text_id candidate_id sts_id
        idx index row number no split subset fold source dataset corpus genre domain topic category type task lang
        language
        lang1 url link title author date year month_2 created_at timestamp version license file filename path page
        length num_tokens text_length count annotator annotator_2 worker_a notes comment meta metadata hash image image2
        country state city section chapter format encoding platform model average_length"""
    for pair in (("anchor", "positive"), ("sentence1", "sentence2"), ("question", "answer")):
        assert match_columns([*pair, *others.split()]) == {"anchor": pair[:1], "positive": pair[1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": ""}, r"^no anchors"),
        ({"anchor": None}, "^no anchors"),
        ({"anchor": " \n"}, "A text is empty"),
        ({"anchor": "\u200b"}, "A text is empty"),
        ({"anchor": ["a", "b"]}, "^2 anchors"),
        ({"anchor": 7}, "7 is not a text"),
        ({"anchor": "half \ud83d"}, "half a character"),
        ({"positive": []}, "^no positive"),
        ({"positive": ["p", ""]}, "A text is empty"),
        ({"positive": ["p", 7]}, "7 is not a text"),
        ({"positive": {"p": 1}}, "is not a text"),
        ({"positive": ["p", "q"], "score": 1}, "more than one positive"),
        ({"negative": "THE  anchor"}, "'THE  anchor' is a negative, and the anchor or a positive as well"),
        ({"negative": ["n", "the positive"]}, "is a negative"),
        ({"score": math.nan}, "nan is not a finite number"),
        ({"score": "inf"}, "'inf' is not a finite number"),
        ({"score": "high"}, "'high' is not a finite number, as in 0.5"),
        ({"score": None}, "None is not a finite number"),
        ({"score": [1]}, "is not a finite number"),
        *(
            ({"score": cell}, "is not a finite number")
            for cell in ("1_000", " 1 ", "1\n", "\u0661", "0x1", "1,5", "1e999")
        ),
        ({"score": 10**400}, "is not a finite number"),
        ({"anchor": "a zero\0byte"}, "zero bytes"),
    ],
)
def test_cells_that_are_not_what_they_should_be(change: dict[str, Any], message: str) -> None:
    row = {"anchor": "the anchor", "positive": "the positive"}
    assert made(row)
    with pytest.raises(SourceError, match=message):
        made({**row, **change})


@pytest.mark.parametrize("texts", [[], ["a"], ["a", " A"], ["a", ""], ["a", 7]])
def test_alike_texts_are_two_or_more(texts: Any) -> None:
    with pytest.raises(SourceError):
        mark_symmetric(texts)


@given(st.integers(2, 6), st.integers(0, 40))
def test_every_alike_text_is_the_anchor_in_turn(number: int, start: int) -> None:
    texts = [f"text {at}" for at in range(number)]
    rows = [mark_symmetric(texts).rotate(start + by) for by in range(number)]
    assert [row.anchor for row in rows] == [texts[(start + by) % number] for by in range(number)]
    assert all(sorted(row.texts) == texts and row.symmetric for row in rows)
    assert Example("a", ("b",), ("c",)).rotate(start) == Example("a", ("b",), ("c",))


def test_keys_tell_texts_apart_as_a_reader_would() -> None:
    assert text_key("Stra\u00dfe  12") == text_key("STRASSE 12\n") == text_key("\uff53trasse 12")
    assert len({text_key(text) for text in ("a b", "ab", "a b.", "b a", "a b ?")}) == 5
    assert all(-(2**63) <= text_key(str(number)) < 2**63 for number in range(200))
