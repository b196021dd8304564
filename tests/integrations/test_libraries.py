"""Encoders in other libraries, the real ones: queries and documents have the vectors that the encoder gives them.

Libraries that are not in the extra `dev` are skipped where they are not installed.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bellm.integrations
from bellm import BellmError, Encoder, Prompt
from bellm.errors import FingerprintError, MissingExtraError, SourceError
from bellm.integrations import as_sentence_transformer
from bellm.integrations.encoder_reference import _in_use, encoder_from_json, encoder_to_json
from tests.processes import run

DOCUMENTS = ["A heron stands in the water.", "Snow fell all night in the street.", "The invoice was paid twice."]
QUERY = "a bird that waits"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install it to run this")


@pytest.fixture(scope="module")
def saved(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose encoder treats queries otherwise than documents."""
    folder = tmp_path_factory.mktemp("saved") / "encoder"
    prompt = Prompt("birds", "{text}", query="Find birds: {text}", document="This is of birds: {text}")
    tiny_encoder.replace(prompt=prompt, pooling="mean").save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(saved: Path) -> Iterator[Encoder]:
    yield Encoder.from_pretrained(saved)
    _in_use.clear()


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-5)


def best(encoder: Encoder) -> str:
    scores = encoder.similarity(encoder.encode_query(QUERY), encoder.encode_document(DOCUMENTS))
    return DOCUMENTS[int(scores.argmax())]


def test_every_name_is_there_where_its_library_is() -> None:
    assert set(bellm.integrations.__all__) <= set(dir(bellm.integrations))
    for name in bellm.integrations.__all__:
        with contextlib.suppress(MissingExtraError):
            assert getattr(bellm.integrations, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("LangChainEmbeddings", "langchain_core", "langchain-core"),
        ("LlamaIndexEmbedding", "llama_index.core", "llama-index-core"),
        ("HaystackTextEmbedder", "haystack", "haystack-ai"),
        ("ChromaEmbeddingFunction", "chromadb", "chromadb"),
    ],
)
def test_a_library_that_is_missing_is_named(name: str, package: str, install: str) -> None:
    program = (
        f"import sys; sys.modules[{package.partition('.')[0]!r}] = None\n"
        f"try:\n    from bellm.integrations import {name}\nexcept ImportError as error:\n    print(error)\n"
        "print('torch' in sys.modules)"
    )
    said = f"bellm.integrations.{name} needs {package}, which is not installed: pip install {install}."
    assert run([sys.executable, "-c", program]).stdout.splitlines() == [said, "False"]


# What is kept of an encoder


def test_a_reference_gives_the_encoder_in_use_or_loads_it(encoder: Encoder) -> None:
    values = json.loads(json.dumps(encoder_to_json(encoder)))
    assert encoder_from_json(values) is encoder
    _in_use.clear()
    again = encoder_from_json(values)
    assert again is not encoder
    assert again.config == encoder.config
    near(again.encode_query(DOCUMENTS), encoder.encode_query(DOCUMENTS))
    assert encoder_from_json(values) is again
    other = encoder.replace(pooling="last", prompt="raw")
    assert encoder_from_json(encoder_to_json(other)) is other
    values = encoder_to_json(other)
    _in_use.clear()
    near(encoder_from_json(values).encode(DOCUMENTS), other.encode(DOCUMENTS))


def test_another_model_at_the_source_is_refused(encoder: Encoder, tiny_model: Any, tiny_tokenizer: Any) -> None:
    values = encoder_to_json(encoder)
    _in_use.clear()
    vector = [number + 0.5 for number in values["vector"]]
    with pytest.raises(FingerprintError, match="does not give the vectors that it gave"):
        encoder_from_json({**values, "vector": vector})
    for broken, said in (
        ({"source": "heron"}, "'dtype' is missing"),
        ({**values, "vector": "x"}, "no list of numbers"),
    ):
        with pytest.raises(SourceError, match=rf"This is no reference to an encoder, .*{said}\.$"):
            encoder_from_json(broken)
    values = encoder_to_json(Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer))
    _in_use.clear()
    with pytest.raises(BellmError, match="LlamaForCausalLM"):
        encoder_from_json(values)


# Libraries


def test_langchain(encoder: Encoder) -> None:
    library("langchain_core")
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    embeddings = bellm.integrations.LangChainEmbeddings(encoder)
    assert isinstance(embeddings, Embeddings)
    near(embeddings.embed_documents(DOCUMENTS), encoder.encode_document(DOCUMENTS))
    near(embeddings.embed_query(QUERY), encoder.encode_query(QUERY))
    near(asyncio.run(embeddings.aembed_query(QUERY)), encoder.encode_query(QUERY))
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    assert store.similarity_search(QUERY, k=1)[0].page_content == best(encoder)


def test_llama_index(encoder: Encoder) -> None:
    library("llama_index.core")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.embeddings import resolve_embed_model
    from llama_index.core.schema import TextNode

    embedding = bellm.integrations.LlamaIndexEmbedding(encoder)
    assert resolve_embed_model(embedding) is embedding
    near(embedding.get_text_embedding_batch(DOCUMENTS), encoder.encode_document(DOCUMENTS))
    near(embedding.get_text_embedding(DOCUMENTS[0]), encoder.encode_document(DOCUMENTS[0]))
    near(embedding.get_query_embedding(QUERY), encoder.encode_query(QUERY))

    async def waited() -> tuple[Any, ...]:
        texts = await embedding.aget_text_embedding_batch(DOCUMENTS)
        return texts, await embedding.aget_text_embedding(DOCUMENTS[0]), await embedding.aget_query_embedding(QUERY)

    texts, text, query = asyncio.run(waited())
    near(texts, encoder.encode_document(DOCUMENTS))
    near(text, encoder.encode_document(DOCUMENTS[0]))
    near(query, encoder.encode_query(QUERY))
    index = VectorStoreIndex([TextNode(text=text) for text in DOCUMENTS], embed_model=embedding)
    assert index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].get_content() == best(encoder)


def test_haystack(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    library("haystack")
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    given = [Document(content=text, meta={"row": row}) for row, text in enumerate(DOCUMENTS)]
    documents = bellm.integrations.HaystackDocumentEmbedder(encoder).run(given)["documents"]
    near([document.embedding for document in documents], encoder.encode_document(DOCUMENTS))
    assert [document.meta["row"] for document in documents] == [0, 1, 2]
    assert given[0].embedding is None
    store.write_documents(documents)
    pipeline = Pipeline()
    pipeline.add_component("query", bellm.integrations.HaystackTextEmbedder(encoder))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("query.embedding", "retriever.query_embedding")
    [hit] = pipeline.run({"query": {"text": QUERY}})["retriever"]["documents"]
    assert hit.content == best(encoder)
    text = Pipeline()
    text.add_component("query", bellm.integrations.HaystackTextEmbedder(encoder))
    text.add_component("documents", bellm.integrations.HaystackDocumentEmbedder(encoder))
    written = text.dumps()
    _in_use.clear()
    again = Pipeline.loads(written, allowed_modules=["bellm.integrations.*"])
    near(again.get_component("query").run(QUERY)["embedding"], encoder.encode_query(QUERY))
    near(again.get_component("documents").run(given)["documents"][1].embedding, encoder.encode_document(DOCUMENTS[1]))


def test_chroma(encoder: Encoder, tmp_path: Path) -> None:
    chromadb = library("chromadb")
    function = bellm.integrations.ChromaEmbeddingFunction(encoder)
    client = chromadb.PersistentClient(tmp_path, settings=chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("birds", embedding_function=function)
    collection.add(ids=list("abc"), documents=DOCUMENTS)
    near(collection.get(include=["embeddings"])["embeddings"], encoder.encode_document(DOCUMENTS))
    assert collection.query(query_texts=[QUERY], n_results=1)["documents"] == [[best(encoder)]]
    wanted = 1 - encoder.similarity(encoder.encode_query(QUERY), encoder.encode_document(DOCUMENTS)).max()
    assert collection.query(query_texts=[QUERY], n_results=1)["distances"][0][0] == pytest.approx(wanted, abs=1e-4)
    # Another process has only what the collection keeps.
    program = (
        "import sys, chromadb, bellm.integrations\n"
        "bellm.integrations.ChromaEmbeddingFunction\n"
        "client = chromadb.PersistentClient(sys.argv[1], settings=chromadb.Settings(anonymized_telemetry=False))\n"
        "print(client.get_collection('birds').query(query_texts=[sys.argv[2]], n_results=1)['documents'][0][0])"
    )
    done = run([sys.executable, "-c", program, tmp_path, QUERY])
    assert done.stdout.splitlines()[-1:] == [best(encoder)], done.stderr


def test_lancedb(encoder: Encoder, tmp_path: Path) -> None:
    lancedb = library("lancedb")
    from lancedb.pydantic import LanceModel, Vector

    function: Any = bellm.integrations.LanceEmbeddingFunction.create(encoder=encoder)

    class Row(LanceModel):  # type: ignore[misc]
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("birds", schema=Row)
    table.add([{"text": text} for text in DOCUMENTS])
    near(np.stack(table.to_pandas()["vector"].to_numpy()), encoder.encode_document(DOCUMENTS))
    [hit] = table.search(QUERY).distance_type("cosine").limit(1).to_list()
    assert hit["text"] == best(encoder)
    cosines = encoder.similarity(encoder.encode_query(QUERY), encoder.encode_document(DOCUMENTS))
    assert hit["_distance"] == pytest.approx(1 - cosines.max(), abs=1e-4)
    _in_use.clear()
    again = lancedb.connect(tmp_path).open_table("birds")
    assert again.search(QUERY).distance_type("cosine").limit(1).to_list()[0]["text"] == best(encoder)
    with pytest.raises(BellmError, match=r"texts\[0\] is NoneType"):
        function.compute_source_embeddings_with_retry([None])


def test_keybert(encoder: Encoder) -> None:
    library("keybert")
    from keybert import KeyBERT

    text = "A heron stands in the shallow water and waits for a fish."
    model = KeyBERT(model=as_sentence_transformer(encoder))
    found = dict(model.extract_keywords(text, top_n=3))
    words = list(found)
    cosines = encoder.similarity(encoder.encode(words), encoder.encode(text))[:, 0]
    np.testing.assert_allclose(list(found.values()), cosines, atol=1e-3)


def test_bertopic(encoder: Encoder) -> None:
    library("bertopic")
    from bertopic import BERTopic
    from bertopic.backend._utils import select_backend
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    texts = [f"{text} {number}" for number in range(8) for text in DOCUMENTS]
    wrapped = as_sentence_transformer(encoder)
    near(select_backend(wrapped).embed(DOCUMENTS), encoder.encode(DOCUMENTS))
    model = BERTopic(embedding_model=wrapped, umap_model=PCA(3), hdbscan_model=KMeans(3, n_init=3, random_state=0))
    topics, _ = model.fit_transform(texts)
    assert len(set(topics)) == 3
    assert list(model.transform(texts[:3])[0]) == list(topics[:3])


def test_a_head_as_of_setfit(encoder: Encoder) -> None:
    library("setfit")
    from setfit import SetFitModel
    from sklearn.linear_model import LogisticRegression

    model = SetFitModel(model_body=as_sentence_transformer(encoder), model_head=LogisticRegression(), labels=["a", "b"])
    model.model_head.fit(encoder.encode(DOCUMENTS), [0, 1, 1])
    assert list(model.predict(DOCUMENTS)) == ["a", "b", "b"]
