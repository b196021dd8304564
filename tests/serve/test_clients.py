"""Clients that people have, unchanged, against a server: the vectors are those of `encode`."""

import asyncio
import json
import shutil
import sys
from typing import Any

import numpy as np
import pytest

from bellm import Encoder
from bellm.tensors.similarity import relative_distance
from tests.processes import run

TEXTS = ["A heron waits for a fish.", "Snow fell all night."]


def assert_same(found: Any, expected: Any) -> None:
    assert relative_distance(np.asarray(found, dtype=np.float32), np.asarray(expected)) <= 1e-6


@pytest.fixture(scope="module")
def expected(tiny_encoder: Encoder) -> Any:
    return tiny_encoder.encode(TEXTS)


def test_openai(server: str, expected: Any) -> None:
    """It asks for base64 unless told otherwise."""
    openai = pytest.importorskip("openai", reason="no openai: pip install openai")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    with client:
        answer = client.embeddings.create(model="tiny", input=TEXTS)
        assert_same([each.embedding for each in answer.data], expected)
        assert answer.usage.prompt_tokens > 0
        numbers = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
        assert_same(numbers.data[0].embedding, expected[0])
        assert "tiny" in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
            client.embeddings.create(model="gpt", input=TEXTS)
        with pytest.raises(openai.UnprocessableEntityError, match="--allow-token-ids"):
            client.embeddings.create(model="tiny", input=[1, 2])


def test_langchain(server: str, expected: Any) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="no langchain-openai: pip install langchain-openai")
    embeddings = langchain.OpenAIEmbeddings(
        model="tiny", base_url=f"{server}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert_same(embeddings.embed_documents(TEXTS), expected)
    assert_same(embeddings.embed_query(TEXTS[0]), expected[0])


def test_llama_index(server: str, expected: Any) -> None:
    llama_index = pytest.importorskip(
        "llama_index.embeddings.openai", reason="no llama-index: pip install llama-index-embeddings-openai"
    )
    embedding = llama_index.OpenAIEmbedding(model_name="tiny", api_base=f"{server}/v1", api_key="none")
    assert_same(embedding.get_text_embedding_batch(TEXTS), expected)
    assert_same(embedding.get_query_embedding(TEXTS[0]), expected[0])


def test_huggingface_hub(server: str, expected: Any, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # It would ask no server at all.
    client = InferenceClient(server)
    assert_same(client.feature_extraction(TEXTS[0]), expected[:1])
    assert_same(client.feature_extraction(TEXTS[0], normalize=False, truncate=True), expected[:1])
    scores = client.sentence_similarity(TEXTS[0], TEXTS)
    assert_same(scores, tiny_encoder.similarity(expected[:1], expected)[0])


@pytest.mark.slow  # To import it takes ten seconds.
def test_litellm(server: str, expected: Any) -> None:
    """In a process of its own: it changes warnings and event loops of the whole process."""
    pytest.importorskip("litellm", reason="no litellm: pip install litellm")
    program = """
import json, sys
import litellm
url, texts = sys.argv[1], json.loads(sys.argv[2])
found = litellm.embedding(model="openai/tiny", input=texts, api_base=url + "/v1", api_key="none")
ranked = litellm.rerank(model="infinity/tiny", query="snow", documents=texts, api_base=url, api_key="none")
print(json.dumps([[each["embedding"] for each in found.data], [each["index"] for each in ranked.results]]))
"""
    done = run([sys.executable, "-W", "ignore", "-c", program, server, json.dumps(TEXTS)])
    assert done.returncode == 0, done.stderr
    vectors, order = json.loads(done.stdout.splitlines()[-1])
    assert_same(vectors, expected)
    assert sorted(order) == [0, 1]


def test_curl(server: str, expected: Any) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on the path")
    body = json.dumps({"inputs": TEXTS})
    done = run(["curl", "-sS", "--noproxy", "*", f"{server}/embed", "-H", "Content-Type: application/json", "-d", body])
    assert_same(json.loads(done.stdout), expected)


def test_many_clients_at_once_get_their_own_vectors(server: str, tiny_encoder: Encoder) -> None:
    openai = pytest.importorskip("openai", reason="no openai: pip install openai")
    texts = [f"Snow fell on day {number}." for number in range(40)]
    expected = tiny_encoder.encode(texts)

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(client.embeddings.create(model="tiny", input=text) for text in texts))

    for answer, vector in zip(asyncio.run(ask_all()), expected, strict=True):
        assert_same(answer.data[0].embedding, vector)
