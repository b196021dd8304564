"""Real tasks of mteb on our own sentences, without a network."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm import Encoder
from bellm.errors import SourceError
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity
from bellm.types import Vectors

pytest.importorskip("mteb", reason="mteb is not installed")

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import PromptType

from bellm.evaluate.evaluated_model import WrappedEncoder
from bellm.evaluate.mteb_encoder import MtebEncoder

PAIRS = [
    ("A heron waits in the water.", "A heron stands in the river.", 4.5),
    ("The invoice was paid twice.", "Somebody paid the bill two times.", 4.0),
    ("Bread rises in a warm kitchen.", "The trains leave at noon.", 0.2),
    ("Snow fell all night.", "It snowed until the morning.", 3.8),
    ("The bank sent half of it back.", "The street was white and quiet.", 0.0),
    ("A cat sleeps on the mat.", "A dog sleeps on the sofa.", 2.6),
    ("One of them is an hour late.", "The cat is late for lunch.", 1.4),
]
DOCUMENTS = {"d1": "Herons wait for fish.", "d2": "Bread rises when it is warm.", "d3": "Trains are late at noon."}
QUERIES = {"q1": "which bird eats fish", "q2": "why does bread rise", "q3": "when do trains leave"}
RELEVANT = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}


def metadata(name: str, type: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Made of a few sentences.",
        dataset={"path": "none/none", "revision": "1"},
        type=type,
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


class OurPairs(AbsTaskSTS):
    metadata = metadata("OurPairs", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        left, right, gold = zip(*PAIRS, strict=True)
        self.dataset = DatasetDict(test=Dataset.from_dict({"sentence1": left, "sentence2": right, "score": gold}))
        self.data_loaded = True


class OurSearch(AbsTaskRetrieval):
    metadata = metadata("OurSearch", "Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        def rows(texts: dict[str, str]) -> Dataset:
            return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})

        part = {"corpus": rows(DOCUMENTS), "queries": rows(QUERIES), "relevant_docs": RELEVANT, "top_ranked": None}
        self.dataset = {"default": {"test": part}}
        self.data_loaded = True


class Letters:
    """Counts of letters: the least that can be evaluated."""

    def encode(self, texts: list[str]) -> Vectors:
        return np.array([[text.lower().count(letter) for letter in "aeiourst"] for text in texts], dtype=np.float32)


class Vowels(Letters):
    def encode(self, texts: list[str]) -> Vectors:
        return super().encode(texts)[:, :5]


class Roles(Letters):
    """Reads queries and documents in ways of their own."""

    def encode(self, texts: list[str]) -> Vectors:
        raise AssertionError(texts)

    def encode_query(self, texts: list[str]) -> Vectors:
        return super().encode([text[::-1] + "aa" for text in texts])

    def encode_document(self, texts: list[str]) -> Vectors:
        return super().encode([text + "ee" for text in texts])


def scores_of(encoder: MtebEncoder, task: Any) -> dict[str, Any]:
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    scores: dict[str, Any] = result.task_results[0].scores["test"][0]
    return scores


def test_it_follows_the_protocol(tiny_encoder: Encoder) -> None:
    assert isinstance(MtebEncoder(tiny_encoder), EncoderProtocol)


def test_a_similarity_task_scores_what_scipy_scores(tiny_encoder: Encoder) -> None:
    scores = scores_of(MtebEncoder(tiny_encoder), OurPairs())
    left, right, gold = zip(*PAIRS, strict=True)
    cosines = paired_cosine_similarity(tiny_encoder.encode(left), tiny_encoder.encode(right))
    expected = spearmanr(cosines, gold).statistic
    assert abs(expected) > 0.05
    assert scores["main_score"] == pytest.approx(expected, abs=1e-9)
    assert scores["spearman"] == pytest.approx(expected, abs=1e-9)


def test_a_search_ranks_as_cosines_of_queries_and_documents_do(tiny_encoder: Encoder) -> None:
    prompted = tiny_encoder.replace(prompt="instruct:Find what answers the question")
    documents, queries = list(DOCUMENTS.values()), list(QUERIES.values())
    for encoder in (prompted, Letters()):
        own = encoder if isinstance(encoder, Encoder) else None
        queries_QD = own.encode_query(queries) if own else encoder.encode(queries)
        documents_ND = own.encode_document(documents) if own else encoder.encode(documents)
        ranks = (-cosine_similarity(queries_QD, documents_ND)).argsort(axis=1).argsort(axis=1)
        expected = np.mean(1 / np.log2(2 + np.diag(ranks)))  # One relevant document for each query.
        assert scores_of(MtebEncoder(encoder), OurSearch())["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)


def test_an_instruct_encoder_gets_the_instruction_of_each_task(tiny_encoder: Encoder) -> None:
    instruct = tiny_encoder.replace(prompt="instruct")
    left, right, gold = zip(*PAIRS, strict=True)
    told = "Instruct: Retrieve semantically similar text.\nQuery: {text}"
    vectors = [tiny_encoder.replace(prompt=told).encode(side) for side in (left, right)]
    expected = spearmanr(paired_cosine_similarity(*vectors), gold).statistic
    assert scores_of(MtebEncoder(instruct), OurPairs())["main_score"] == pytest.approx(expected, abs=1e-6)
    batches = [{"text": list(QUERIES.values())}]
    own = OurSearch.metadata.model_copy(update={"prompt": {"query": "Find the bird"}})
    general = OurPairs.metadata.model_copy(update={"prompt": "Say what it is"})
    for prompt, task, kind, template in (
        ("instruct", own, PromptType.query, "Instruct: Find the bird\nQuery: {text}"),
        ("instruct:My task", own, PromptType.query, "Instruct: Find the bird\nQuery: {text}"),
        ("instruct:My task", OurSearch.metadata, PromptType.query, "Instruct: My task\nQuery: {text}"),
        ("instruct", own, PromptType.document, "{text}"),
        ("instruct", general, None, "Instruct: Say what it is\nQuery: {text}"),
        ("instruct:My task", OurPairs.metadata, None, "{text}"),
        ("prompteol", own, PromptType.query, None),
    ):
        encoder = tiny_encoder.replace(prompt=prompt)
        found = MtebEncoder(encoder).encode(batches, task_metadata=task, prompt_type=kind)
        wanted = tiny_encoder.replace(prompt=template or prompt).encode(list(QUERIES.values()))
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=f"{prompt} {kind}")


def test_queries_and_documents_go_where_they_belong() -> None:
    encoder = MtebEncoder(Letters())
    encoder.embedder = WrappedEncoder(Roles())
    batches = [{"text": ["one", "two"]}, {"text": ["three"]}]
    found = encoder.encode(batches, prompt_type=PromptType.query)
    assert np.array_equal(found, Letters().encode(["enoaa", "owtaa", "eerhtaa"]))
    found = encoder.encode(batches, prompt_type=PromptType.document)
    assert np.array_equal(found, Letters().encode(["oneee", "twoee", "threeee"]))
    with pytest.raises(AssertionError, match="three"):
        encoder.encode(batches)


def test_similarities_are_cosines() -> None:
    left, right = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    encoder = MtebEncoder(Letters())
    assert np.allclose(encoder.similarity(left, right), cosine_similarity(left, right), atol=1e-6)
    assert np.allclose(encoder.similarity_pairwise(left, right), paired_cosine_similarity(left, right), atol=1e-6)


def test_names_and_revisions_tell_encoders_apart(tiny_encoder: Encoder) -> None:
    metas = [
        MtebEncoder(encoder).mteb_model_meta
        for encoder in (tiny_encoder, tiny_encoder.replace(), tiny_encoder.replace(bidirectional="none"))
    ]
    assert {meta.name for meta in metas} == {f"bellm/{Path(tiny_encoder.name).name}"}
    assert metas[0].revision == metas[1].revision != metas[2].revision
    assert metas[0].embed_dim == tiny_encoder.embedding_dim
    shorter = tiny_encoder.replace(max_tokens=64)
    assert MtebEncoder(shorter).mteb_model_meta.revision != metas[0].revision
    assert MtebEncoder(Letters()).mteb_model_meta.name == "bellm/Letters"
    assert MtebEncoder(Letters(), "someone/letters").mteb_model_meta.name == "someone/letters"
    letters, again, vowels = (MtebEncoder(one).mteb_model_meta for one in (Letters(), Letters(), Vowels()))
    assert letters.revision == again.revision != vowels.revision


def test_results_that_mteb_keeps_are_of_this_encoder_alone(tiny_encoder: Encoder, tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path)
    other = tiny_encoder.replace(pooling="mean", prompt="raw")
    scores = [
        mteb.evaluate(MtebEncoder(encoder), OurPairs(), cache=cache, show_progress_bar=False)
        .task_results[0]
        .get_score()
        for encoder in (tiny_encoder, other, tiny_encoder)
    ]
    assert scores[2] == pytest.approx(scores[0], abs=1e-6)  # Kept with six digits.
    assert abs(scores[1] - scores[0]) > 0.01


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mteb"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SourceError, match=r"^Tasks of mteb need mteb.*pip install 'bellm\[evaluate\]'\.$"):
        MtebEncoder(Letters())
