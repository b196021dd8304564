"""Words in worlds where the truth is planted, and against slow formulas."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from bellm import BellmError, BellmWarning
from bellm.analyse import (
    AnalogyTask,
    WordPairs,
    WordPairsTask,
    agreement_table,
    compare_words,
    make_word_tasks,
    word_agreement,
    write_words,
)
from bellm.analyse.word_tasks import METHODS
from bellm.data import WordRelation, read_rated_words, read_relations
from bellm.errors import SourceError
from bellm.evaluate import EvaluatedModel, load_model

Floats = NDArray[np.float32]
NOUNS = (
    "  1 A license stands here.  \n",
    "00000010 05 n 01 bird 0 002 %p 00000030 n 0000 ~ 00000020 n 0000 | has feathers  \n",
    '00000020 05 n 02 heron 0 hernshaw 0 001 @ 00000010 n 0000 | wades; "a heron | a stork"  \n',
    "00000030 05 n 02 wing 0 great_wing 0 001 + 00000050 a 0101 | for flying  \n",
    "00000040 05 n 01 Ibis 0 001 @ 00000010 n 0000 | a name  \n",
    "00000070 05 n 01 bird 1 001 @ 00000010 n 0000 | another sense  \n",
)
ADJECTIVES = (
    "00000050 00 a 02 winged 0 alate(p) 0 003 ! 00000060 s 0201 + 00000030 n 0101 & 00000060 s 0000 | with wings  \n",
    "00000060 00 s 02 wingless 0 bare 1 001 ! 00000050 a 0102 02 + 08 00 + 09 00 | without  \n",
)
"""Synsets in WordNet's form: a semantic pointer (0000), lexical ones, heads and satellites, verb frames."""

PLURALS = {
    "heron": "herons",
    "bank": "banks",
    "loaf": "loaves",
    "train": "trains",
    "street": "streets",
    "river": "rivers",
}
YOUNG = {"cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "hen": "chick"}


def relation(
    pairs: dict[str, str], name: str = "plurals", category: str = "BATS inflectional morphology"
) -> WordRelation:
    questions = [(i, j) for i in range(len(pairs)) for j in range(len(pairs)) if i != j]
    return WordRelation(name, category, tuple((word, (answer,)) for word, answer in pairs.items()), np.array(questions))


class Table:
    """Vectors by word."""

    def __init__(self, vectors: dict[str, Floats]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str]) -> Floats:
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)


def lattice(*relations: WordRelation, width: int = 50) -> Table:
    """A random vector for each word, and for each answer that vector plus the relation's."""
    draw = np.random.default_rng(0)
    vectors: dict[str, Floats] = {}
    for one in relations:
        offset = 0.8 * draw.normal(size=width)
        for word, answers in one.pairs:
            vectors[word] = draw.normal(size=width)
            vectors |= dict.fromkeys(answers, vectors[word] + offset)
    return Table(vectors)


def scattered(*relations: WordRelation, width: int = 50, seed: int = 0) -> Table:
    draw = np.random.default_rng(seed)
    return Table({word: draw.normal(size=width) for one in relations for word in one.words})


def scored(table: Table, *relations: WordRelation, method: str) -> Any:
    task = AnalogyTask("analogies", data=relations, method=method)
    return task.score(relations, {"text": table.encode(list(task.texts(relations)["text"]))})


@pytest.mark.parametrize("method", METHODS)
def test_a_lattice_answers_every_question(method: str) -> None:
    relations = (relation(PLURALS), relation(YOUNG, "young"))
    found = scored(lattice(*relations), *relations, method=method)
    assert found.item_scores_N.tolist() == [1.0] * 11
    assert found.metric == f"{method} accuracy"
    assert found.extra_metrics["chance"] == pytest.approx(100 / 22)


@pytest.mark.parametrize("method", METHODS)
def test_random_vectors_answer_as_often_as_chance(method: str) -> None:
    words = {f"word{at}": f"answer{at}" for at in range(20)}
    means = [
        scored(scattered(relation(words), seed=seed), relation(words), method=method).item_scores_N.mean()
        for seed in range(5)
    ]
    assert np.mean(means) < 0.12


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_methods_are_the_published_formulas(method: str, exclude: bool) -> None:
    relations = (relation(PLURALS), relation(YOUNG, "young"))
    near = lattice(*relations, width=6)
    noise = np.random.default_rng(2)
    table = Table({word: vector + 0.5 * noise.normal(size=6) for word, vector in near.vectors.items()})
    words = list(dict.fromkeys(word for one in relations for word in one.words))
    unit = {word: table.vectors[word] / np.linalg.norm(table.vectors[word]) for word in words}

    def cos(one: Any, other: Any) -> float:
        length = np.linalg.norm(one) * np.linalg.norm(other)
        return float(one @ other / length) if length > 1e-6 else -np.inf

    def best(a: str, b: str, c: str, offset: Any) -> str:
        def score(x: str) -> float:
            if method == "3CosMul":
                shifted = {word: (cos(unit[x], unit[word]) + 1) / 2 for word in (a, b, c)}
                return shifted[b] * shifted[c] / (shifted[a] + 1e-3)
            if method == "PairDistance":
                return cos(unit[x] - unit[c], unit[b] - unit[a])
            if method == "3CosAvg":
                return float(unit[x] @ (unit[c] + offset))
            return float(unit[x] @ (unit[b] - unit[a] + unit[c]))

        inputs = {c} if method == "3CosAvg" else {a, b, c}
        return max((x for x in words if not (exclude and x in inputs)), key=score)

    expected = []
    for one in relations:
        pairs = [(word, answers[0]) for word, answers in one.pairs]
        for j, (c, d) in enumerate(pairs):
            others = [pair for i, pair in enumerate(pairs) if i != j]
            offset = np.mean([unit[b] - unit[a] for a, b in others], axis=0)
            expected.append(np.mean([best(a, b, c, offset) == d for a, b in others]))
    found = scored(table, *relations, method=method)
    accuracy = 100 * found.item_scores_N.mean() if exclude else found.extra_metrics["inputs included"]
    assert accuracy == pytest.approx(100 * np.mean(expected))
    if exclude:
        np.testing.assert_allclose(found.item_scores_N, expected)
        assert 0 < np.mean(expected) < 1


def test_any_of_several_answers_is_right() -> None:
    pairs = tuple((word, ("wrong", answer)) for word, answer in PLURALS.items())
    several = WordRelation("plurals", "", pairs, relation(PLURALS).questions_Q2)
    table = lattice(relation(PLURALS))
    table.vectors["wrong"] = np.full(50, 0.1)
    found = scored(table, several, relation(PLURALS), method="3CosAdd")
    assert found.item_scores_N[6:].tolist() == [1.0] * 6


def test_related_words_are_told_from_random_ones_as_their_cosines_are() -> None:
    draw = np.random.default_rng(0)
    pairs = tuple((f"a{at}", f"b{at}") for at in range(30))
    random = tuple((f"a{at}", f"b{at + 1}") for at in range(29))
    common = draw.normal(size=(30, 8))
    table = Table({f"{side}{at}": common[at] + draw.normal(size=8) for at in range(30) for side in "ab"})
    task = WordPairsTask("related words", data=WordPairs(pairs, random))
    found = task.score(task.data, {"text": table.encode(list(task.texts(task.data)["text"]))})  # type: ignore[arg-type]
    cosines = [
        float(
            np.dot(table.vectors[a], table.vectors[b])
            / np.linalg.norm(table.vectors[a])
            / np.linalg.norm(table.vectors[b])
        )
        for a, b in (*pairs, *random)
    ]
    assert found.item_scores_N.mean() == pytest.approx(roc_auc_score([1] * 30 + [0] * 29, cosines))
    related, others = np.array(cosines[:30]), np.array(cosines[30:])
    assert found.extra_metrics["random cosine"] == pytest.approx(100 * others.mean(), abs=1e-3)
    pooled = np.sqrt((related.var(ddof=1) + others.var(ddof=1)) / 2)
    assert found.extra_metrics["Cohen's d"] == pytest.approx((related.mean() - others.mean()) / pooled, abs=1e-4)
    edges = np.linspace(min(cosines), max(cosines), 101)
    shares = [np.histogram(side, edges)[0] / len(side) for side in (related, others)]
    assert found.extra_metrics["overlap"] == pytest.approx(
        100 * np.minimum(*shares).sum(), abs=4
    )  # A cosine on an edge.
    assert 0 < found.extra_metrics["overlap"] < 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sets as they are published, with words of our own."""
    top = tmp_path / "data" / "word"
    (top / "eval-word-vectors").mkdir(parents=True)
    rated = ["heron\tbank\t1.5", "heron herons 9", "cat\tkitten\t7", "dog puppy 6.5\r", "Cow train 0.5", ""]
    (top / "eval-word-vectors" / "EN-SIMLEX-999.txt").write_text("\n".join(rated))
    for place, pairs in (
        ("1_Inflectional_morphology/I01 [plurals]", PLURALS),
        ("3_Encyclopedic_semantics/E06 [young]", YOUNG),
    ):
        file = top / "BATS_3.0" / f"{place}.txt"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"{word}\t{answer}/an_{answer}\n" for word, answer in pairs.items()))
    (top / "google_analogies").mkdir()
    (top / "wordnet").mkdir()
    (top / "wordnet" / "data.noun").write_text("".join(NOUNS))
    (top / "wordnet" / "data.adj").write_text("".join(ADJECTIVES))
    questions = ": gram8-plural\nheron herons bank banks\nbank banks loaf loaves\nloaf loaves Heron Herons\n"
    (top / "google_analogies" / "questions-words.txt").write_text(questions)
    return tmp_path / "data"


def test_wordnet_is_read_as_published(folder: Path) -> None:
    found = {one.category: set(one.pairs) for one in read_relations(folder) if "WordNet" in one.category}
    assert found == {
        "WordNet synonyms": {("heron", ("hernshaw",)), ("winged", ("alate",)), ("wingless", ("bare",))},
        "WordNet hypernyms": {("heron", ("bird",))},
        "WordNet parts": {("bird", ("wing",))},
        "WordNet antonyms": {("wingless", ("alate",))},
        "WordNet derivations": {("wing", ("winged",))},
    }


def test_much_of_wordnet_is_a_sample(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [f"{at:08} 05 n 02 x{a}{b} 0 y{a}{b} 0 000 | \n" for at, (a, b) in enumerate(product(letters, letters * 2))]
    (folder / "word" / "wordnet" / "data.noun").write_text("".join(pairs))
    first, second = ([one for one in read_relations(folder) if one.name == "synonyms"] for _ in range(2))
    assert len(first[0].pairs) == 678  # Pairs that come twice count once.
    assert first[0].pairs == second[0].pairs
    more = "".join(
        f"{at:08} 05 n 02 {a}{b}x 0 {b}{a}y 0 000 | \n" for at, (a, b) in enumerate(product(letters, letters))
    )
    (folder / "word" / "wordnet" / "data.verb").write_text(more.replace(" n ", " v "))
    (sampled,) = (one for one in read_relations(folder) if one.name == "synonyms")
    assert len(sampled.pairs) == 1000
    assert {word[0] for word, _ in sampled.pairs} == {*letters}


def test_sets_are_read_as_published(folder: Path) -> None:
    (rated,) = read_rated_words(folder)
    assert (rated.name, rated.left[4], rated.gold_N.tolist()) == ("SimLex-999", "Cow", [1.5, 9, 7, 6.5, 0.5])
    plurals, young, google, *_ = read_relations(folder, lowercase=True)
    assert (plurals.category, young.category) == ("BATS inflectional morphology", "BATS encyclopedic semantics")
    assert plurals.pairs[0] == ("heron", ("herons", "an herons"))
    assert len(plurals.questions_Q2) == 30
    assert (google.category, google.name) == ("Google morphology", "gram8-plural")
    assert google.pairs == (("heron", ("herons",)), ("bank", ("banks",)), ("loaf", ("loaves",)))
    assert google.questions_Q2.tolist() == [[0, 1], [1, 2], [2, 0]]
    known = google.known({"heron", "herons", "bank", "banks", "loaf"})
    assert (len(known.pairs), known.questions_Q2.tolist()) == (2, [[0, 1]])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("eval-word-vectors/EN-SIMLEX-999.txt", "heron bank\n", "line 1: 'heron bank' is not two words and a rating"),
        (
            "BATS_3.0/1_Inflectional_morphology/I01 [plurals].txt",
            "heron herons\n",
            "is not a word, a tab and its answers",
        ),
        ("google_analogies/questions-words.txt", ": plural\nheron herons bank\n", "is not a question of four words"),
        ("wordnet/data.noun", "00000010 05 n 02 bird\n", "line 1: '00000010 05 n 02 bird' is no synset of WordNet"),
    ],
)
def test_a_line_that_is_none_is_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / "word" / file).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_rated_words(folder), read_relations(folder)


def test_models_are_compared_on_the_words_that_all_have(folder: Path, tmp_path: Path) -> None:
    relations = read_relations(folder, lowercase=True)
    table = lattice(*(relation({word: answers[0] for word, answers in one.pairs}, one.name) for one in relations[:2]))
    lines = [" ".join([word, *map(str, vector)]) for word, vector in table.vectors.items() if word != "foal"]
    (tmp_path / "glove.txt").write_text("\n".join(lines))
    vectors = load_model(f"vectors:{tmp_path / 'glove.txt'}")
    other = EvaluatedModel.of(scattered(*relations), "scattered")
    with pytest.warns(BellmWarning, match=r"glove.txt has no vector for 19 of 40 words, which are left out"):
        report = compare_words([vectors, other], data=folder, lowercase=True, resamples=100)
    scores = report.runs[0].scores
    assert scores["BATS encyclopedic semantics, 3CosAdd"].value == 100
    assert scores["BATS encyclopedic semantics, 3CosAdd"].n == 4
    assert scores["Google morphology, PairDistance"].metric == "PairDistance accuracy"
    assert {"SimLex-999", "morphological pairs", "related words"} <= set(scores)
    assert len(scores) == 3 + 3 * 4  # Of WordNet hardly a word has a vector.
    assert report.runs[1].differences["BATS inflectional morphology, 3CosMul"].value < 0
    record = write_words(report, tmp_path / "out", seconds=1)
    assert {"metric", "value", "low", "high", "n"} <= set(record["words"]["SimLex-999"])
    assert record["compared"][0]["words"].keys() == record["words"].keys()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["words"] == record["words"]
    assert "| SimLex-999 | Spearman of cosine |" in (tmp_path / "out" / "words.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "words.html").exists()


def test_models_agree_as_their_cosines_do(folder: Path, tmp_path: Path) -> None:
    rated, relations = read_rated_words(folder), read_relations(folder)
    words = [*rated[0].left, *rated[0].right, *(word for one in relations for word in one.words)]
    draw = np.random.default_rng(0)
    one = {word: draw.normal(size=4) for word in words}
    tables = [one, {word: vector + 0.7 * draw.normal(size=4) for word, vector in one.items()}]
    models = [EvaluatedModel.of(Table(table), name) for table, name in zip(tables, ("near", "far"), strict=True)]
    report = compare_words(models, data=folder, resamples=100)
    (found,) = word_agreement(report)
    results = report.results[0]
    pairs = {*results["SimLex-999"].texts}
    for task in make_word_tasks(rated, relations):
        pairs |= {*task.data.pairs, *task.data.random} if isinstance(task, WordPairsTask) else set()
    cosines = [
        [np.dot(t[a], t[b]) / np.linalg.norm(t[a]) / np.linalg.norm(t[b]) for a, b in sorted(pairs)] for t in tables
    ]
    assert (found.a, found.b, found.n) == ("near", "far", len(pairs))
    assert found.value == pytest.approx(100 * spearmanr(*cosines).statistic, abs=1e-6)
    assert found.low < found.value < found.high
    record = write_words(report, tmp_path / "out")
    assert record["agreement"] == [
        {"a": "near", "b": "far", "value": found.value, "low": found.low, "high": found.high, "n": found.n}
    ]
    (row,) = agreement_table([found]).rows
    assert row[:2] == ["near", "far"]
    assert f"| near | far | {row[2]} | {row[3]} |" in (tmp_path / "out" / "words.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [3, 4, 30])
def test_random_pairs_are_as_many_and_none_is_of_the_set(count: int) -> None:
    pairs = {f"word{at}": f"answer{at}" for at in range(count)}
    orders = []
    for seed in range(8):
        (task,) = (one for one in make_word_tasks([], [relation(pairs)], seed) if isinstance(one, WordPairsTask))
        assert task.data is not None
        random = dict(task.data.random)
        assert random.keys() == pairs.keys()
        assert sorted(random.values()) == sorted(pairs.values())
        assert not random.items() & pairs.items()
        orders.append(task.data.random)
    assert len(set(orders)) > 1


def test_one_model_agrees_with_nobody(folder: Path, tmp_path: Path) -> None:
    report = compare_words([scattered(*read_relations(folder), rated_as_relation(folder))], data=folder, resamples=100)
    assert word_agreement(report) == []
    assert write_words(report, tmp_path / "out")["agreement"] == []


def rated_as_relation(folder: Path) -> WordRelation:
    (rated,) = read_rated_words(folder)
    return relation(dict(zip(rated.left, rated.right, strict=True)))


def test_nothing_to_score_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"none of the folders eval-word-vectors, BATS_3.0, google_analogies and wordnet, also not"
    ):
        compare_words([Table({})], data=tmp_path)
    with pytest.raises(BellmError, match="No set has enough words that every file of vectors has"):
        make_word_tasks([], [])
    with pytest.raises(BellmError, match="method='magic' is not one of 3CosAdd"):
        AnalogyTask("analogies", method="magic")
