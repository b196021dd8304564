"""BM25 beside the models of retrieval tasks."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bellm.data.retrieval import RetrievalData
from bellm.evaluate import compare_with_words, evaluate, write_report
from bellm.evaluate.bm25 import BM25, rank_by_words
from bellm.evaluate.retrieval_task import RetrievalTask
from bellm.types import Vectors

NOTES = (
    "The heron stands in the shallow river and waits for fish.",
    "Bread rises twice: once in the bowl, once in the tin.",
    "A river in flood carries trees, and a heron moves to the fields.",
    "Trains to the coast leave every hour from platform two.",
    "Fish soup: onions, fish, fish stock, saffron.",
)
QUERIES = ("heron river", "fish", "when do trains leave", "!?", "zebra", "лошадь")


def collection(documents: tuple[str, ...] = NOTES, queries: tuple[str, ...] = QUERIES) -> RetrievalData:
    ids, names = (
        tuple(f"{kind}{row}" for row in range(len(texts))) for kind, texts in (("d", documents), ("q", queries))
    )
    return RetrievalData("notes", ids, documents, names, queries, {name: {ids[0]: 1} for name in names})


def written_out(documents: tuple[str, ...], query: str) -> list[float]:
    """BM25 as Lucene has it, word by word."""
    stop = {"the", "in", "and", "for", "a", "to"}
    bags = [Counter(word for word in re.findall(r"\w\w+", text.lower()) if word not in stop) for text in documents]
    lengths = [sum(bag.values()) for bag in bags]
    mean, scores = sum(lengths) / len(lengths), []
    for bag, length in zip(bags, lengths, strict=True):
        score = 0.0
        for word in re.findall(r"\w\w+", query.lower()):
            found = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - found + 0.5) / (found + 0.5))
            score += idf * bag[word] / (bag[word] + 1.5 * (0.25 + 0.75 * length / mean)) if bag[word] else 0.0
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula() -> None:
    found = rank_by_words(collection(), 10)
    for number, query in enumerate(QUERIES):
        wanted = written_out(NOTES, query)
        ranking = found[f"q{number}"]
        assert list(ranking.values()) == sorted(ranking.values(), reverse=True)
        assert [ranking[f"d{row}"] for row in range(len(NOTES))] == pytest.approx(wanted, abs=1e-5)
    assert len(rank_by_words(collection(), 2)["q0"]) == 2


@pytest.mark.parametrize("documents", [("",), ("?!", "..."), ("heron",), ("река и лес", "лошадь в поле")])
def test_documents_without_words_or_in_another_script(documents: tuple[str, ...]) -> None:
    found = rank_by_words(collection(documents), 10)
    assert list(found) == [f"q{number}" for number in range(len(QUERIES))]
    assert all(np.isfinite(list(ranking.values())).all() for ranking in found.values())
    if len(documents) == 2 and "лошадь" in documents[1]:
        assert next(iter(found["q5"])) == "d1"


class Reader:
    """Vectors by how often each letter comes."""

    name = "reader"

    def encode(self, texts: list[str]) -> Vectors:
        return np.array([[1e-3 + text.lower().count(letter) for letter in "aeiourstn"] for text in texts], np.float32)


def animals() -> RetrievalData:
    """Thirty notes, each with a word of its own, and a query for each."""
    names = [f"{first}{second}x" for first in "bcdfgh" for second in "aeiou"]
    notes = tuple(f"In the notes of the evening there is one on {name}." for name in names)
    ids = tuple(f"d{row}" for row in range(len(notes)))
    return RetrievalData("animals", ids, notes, ids, tuple(names), {name: {name: 1} for name in ids})


def test_every_retrieval_task_has_its_row(tmp_path: Path) -> None:
    report = evaluate([Reader()], [RetrievalTask("animals", data=animals())])
    assert [run.model for run in report.runs] == ["reader", BM25]
    reader, words = report.runs
    assert words.scores["animals"].value == pytest.approx(100)
    assert words.differences["animals"].value == pytest.approx(100 - reader.scores["animals"].value)
    assert reader.bm25_differences["animals"].value == pytest.approx(-words.differences["animals"].value)
    [sentence] = compare_with_words(report)
    assert sentence.startswith("On animals reader does not beat words: reader is worse than BM25 by ")
    for _ in range(2):  # The row is no other model's results.
        results = write_report(report, tmp_path)
    assert results["compared"][0]["model"] == BM25
    assert sentence in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["bm25_differences"]["animals"]["value"] < 0


def test_other_tasks_have_no_row_of_it(tmp_path: Path) -> None:
    pairs, words = tmp_path / "pairs.csv", animals().queries
    rows = (f"{words[row]},{words[row + row % 3]},{row % 5}\n" for row in range(12))
    pairs.write_text("sentence1,sentence2,score\n" + "".join(rows))
    report = evaluate([Reader()], [pairs])
    assert len(report.runs) == 1
    both = evaluate([Reader(), Reader()], [pairs, RetrievalTask("animals", data=animals())])
    assert [len(run.scores) for run in both.runs] == [2, 2, 1]
    assert str(both)  # A cell is empty.
    write_report(both, tmp_path / "report")
    assert len(compare_with_words(both)) == 2


def test_vectors_that_find_more_are_not_named() -> None:
    class Knowing(Reader):
        """Sees the name of an animal also where its last letter is missing."""

        def encode(self, texts: list[str]) -> Vectors:
            names = [text.rstrip(".").split()[-1][:2] for text in texts]
            return np.eye(30, dtype=np.float32)[
                ["bcdfgh".index(name[0]) * 5 + "aeiou".index(name[1]) for name in names]
            ]

    whole = animals()
    queries = tuple(f"what about {query[:-1]}" for query in whole.queries)
    report = evaluate([Knowing()], [RetrievalTask("animals", data=replace(whole, queries=queries))])
    assert report.runs[0].scores["animals"].value == pytest.approx(100)
    assert report.runs[1].scores["animals"].value < 50
    assert compare_with_words(report) == []
