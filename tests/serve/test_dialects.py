"""What the dialects answer: vectors of the encoder itself, in the form that their clients read."""

import base64
from typing import Any

import numpy as np
import pytest

from bellm import Encoder, MultiViewEncoder
from bellm.compress import quantize
from bellm.serve import ServeConfig, create_app
from bellm.tensors.similarity import cosine_similarity, normalize_rows
from tests.serve.servers import ask, serving

TEXTS = [
    "A heron waits for a fish.",
    "Snow fell all night.",
    "",
    "Why does bread rise?\x00 \N{SNOWMAN}",
    "Snow fell all night.",
]
CLOSE = {"rtol": 0, "atol": 1e-6}


def embedded(server: str, **body: Any) -> Any:
    answer = ask(server, "/v1/embeddings", body)
    assert answer.status == 200, answer
    return answer.body


def vectors_of(answer: Any) -> Any:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    return np.array([each["embedding"] for each in answer["data"]], dtype=np.float32)


def decoded(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def test_openai_vectors_are_those_of_encode(server: str, tiny_encoder: Encoder) -> None:
    answer = embedded(server, model="tiny", input=TEXTS, user="somebody")
    assert np.allclose(vectors_of(answer), tiny_encoder.encode(TEXTS), **CLOSE)
    num_tokens = sum(map(len, tiny_encoder.tokenize(TEXTS).ids))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    single = embedded(server, input=TEXTS[0])
    assert np.allclose(vectors_of(single), tiny_encoder.encode(TEXTS[:1]), **CLOSE)


def test_base64_holds_the_very_numbers(server: str, tiny_encoder: Encoder) -> None:
    plain = vectors_of(embedded(server, input=TEXTS[0], encoding_format="float"))[0]
    answer = embedded(server, input=TEXTS[0], encoding_format="base64")["data"][0]
    assert answer["object"] == "embedding"
    assert (decoded(answer["embedding"]) == plain).all()
    assert np.allclose(plain, tiny_encoder.encode(TEXTS[0]), **CLOSE)


@pytest.mark.parametrize("name", ["tiny", "asking"])
def test_dimensions_cut_as_the_setting_does(server: str, tiny_encoder: Encoder, asking: Encoder, name: str) -> None:
    encoder = {"tiny": tiny_encoder, "asking": asking}[name]
    vectors = vectors_of(embedded(server, model=name, input=TEXTS, dimensions=5))
    assert np.allclose(vectors, encoder.encode(TEXTS, truncate_dim=5), **CLOSE)


def test_input_types_choose_the_template(server: str, asking: Encoder) -> None:
    for kind, theirs in (("query", "search_query"), ("document", "search_document"), ("text", "clustering")):
        expected = asking.encode(TEXTS, input_type=kind)  # type: ignore[call-overload]
        assert np.allclose(
            vectors_of(embedded(server, model="asking", input=TEXTS, input_type=kind)), expected, **CLOSE
        )
        tei = ask(server, "/embed", {"inputs": TEXTS, "prompt_name": kind, "model": "asking"})
        assert np.allclose(tei.body, expected, **CLOSE)
        cohere = ask(server, "/v2/embed", {"model": "asking", "texts": TEXTS, "input_type": theirs})
        assert np.allclose(cohere.body["embeddings"]["float"], expected, **CLOSE)


def test_several_views_are_served(server: str, tiny_encoder: Encoder, asking: Encoder) -> None:
    views = MultiViewEncoder([tiny_encoder, asking])
    answer = embedded(server, model="views", input=TEXTS)
    assert np.allclose(vectors_of(answer), views.encode(TEXTS), **CLOSE)
    assert answer["usage"]["prompt_tokens"] == views.encode_with_stats(TEXTS).num_tokens
    refused = ask(server, "/v1/embeddings", {"model": "views", "input": "Snow.", "dimensions": 5})
    assert (refused.status, refused.body["error"]["param"]) == (422, "dimensions")


def test_a_quantized_encoder_is_served(tiny_encoder: Encoder) -> None:
    small = quantize(tiny_encoder)
    with serving(create_app({"small": small})) as url:
        assert np.allclose(vectors_of(embedded(url, input=TEXTS)), small.encode(TEXTS), **CLOSE)


def test_the_causal_model_is_served_beside_the_open_one(server: str, tiny_encoder: Encoder) -> None:
    with tiny_encoder.causal():
        causal = tiny_encoder.encode(TEXTS)
    assert np.allclose(vectors_of(embedded(server, model="tiny:causal", input=TEXTS)), causal, **CLOSE)
    assert not np.allclose(causal, tiny_encoder.encode(TEXTS), atol=1e-2)
    names = [model["id"] for model in ask(server, "/v1/models").body["data"]]
    assert names == ["tiny", "asking", "views", "tiny:causal", "asking:causal"]


def test_token_ids_are_refused_in_a_sentence_that_names_the_flag(server: str) -> None:
    for ids in ([9906, 1917], [[9906, 1917], [1]]):
        answer = ask(server, "/v1/embeddings", {"model": "tiny", "input": ids})
        assert (answer.status, answer.body["error"]["param"]) == (422, "input")
        assert "--allow-token-ids" in answer.body["error"]["message"]


def test_token_ids_stand_for_their_texts_where_they_are_allowed(asking: Encoder) -> None:
    ids = [asking.tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS[:2]]
    with serving(create_app(asking, ServeConfig(allow_token_ids=True))) as url:
        assert np.allclose(vectors_of(embedded(url, input=ids)), asking.encode(TEXTS[:2]), **CLOSE)
        assert np.allclose(vectors_of(embedded(url, input=ids[1])), asking.encode(TEXTS[1:2]), **CLOSE)
        for wrong in ("[[400]]", "[-1]", f"[{2**70}]", f"[{'9' * 4000}]"):
            answer = ask(url, "/v1/embeddings", f'{{"input": {wrong}}}'.encode())
            assert answer.status == 422, answer
            assert "is no token id of" in answer.body["error"]["message"]


def test_truncation_is_in_a_header_and_can_be_refused(server: str) -> None:
    long = "Snow fell all night. " * 60
    answer = ask(server, "/v1/embeddings", {"input": ["Snow.", long, long]})
    assert (answer.status, answer.headers["x-truncated-texts"]) == (200, "2")
    assert ask(server, "/v1/embeddings", {"input": "Snow."}).headers["x-truncated-texts"] == "0"
    for path, field, wrong in (
        ("/v1/embeddings", "input", {"truncate": False}),
        ("/embed", "inputs", {"truncate": False}),
        ("/v2/embed", "texts", {"truncate": "NONE"}),
    ):
        refused = ask(server, path, {field: ["Snow.", long], **wrong})
        assert refused.status == 422
        assert f"{field}[1] has more than 128 tokens" in str(refused.body)


def test_embed_gives_a_list_of_vectors(server: str, tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    for path in ("/embed", "/"):
        assert np.allclose(ask(server, path, {"inputs": TEXTS, "truncate": True}).body, vectors, **CLOSE)
        assert np.allclose(ask(server, path, {"inputs": TEXTS[0]}).body, vectors[:1], **CLOSE)
    unit = ask(server, "/embed", {"inputs": TEXTS, "normalize": True, "dimensions": 3}).body
    assert np.allclose(unit, normalize_rows(vectors[:, :3]), **CLOSE)


def test_headers_say_what_a_request_took(server: str, tiny_encoder: Encoder) -> None:
    headers = ask(server, "/embed", {"inputs": TEXTS}).headers
    assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert headers["x-compute-tokens"] == str(sum(map(len, tiny_encoder.tokenize(TEXTS).ids)))
    stages = ("x-tokenization-time", "x-queue-time", "x-inference-time")
    assert sum(int(headers[stage]) for stage in stages) <= int(headers["x-total-time"]) + len(stages)


def test_cosines_of_a_sentence_with_others(server: str, asking: Encoder) -> None:
    vectors = asking.encode(TEXTS)
    pair = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    for path in ("/similarity", "/"):
        scores = ask(server, path, {"inputs": pair, "model": "asking"}).body
        assert np.allclose(scores, cosine_similarity(vectors[:1], vectors[1:])[0], **CLOSE)


def test_rerank_orders_by_cosine_with_the_query(server: str, asking: Encoder) -> None:
    texts = TEXTS[:4]
    query = asking.encode_query(["snow"])
    scores = cosine_similarity(query, asking.encode_document(texts))[0]
    tei = ask(server, "/rerank", {"query": "snow", "texts": texts, "model": "asking", "return_text": True}).body
    assert [each["index"] for each in tei] == (-scores).argsort(kind="stable").tolist()
    assert np.allclose([each["score"] for each in tei], np.sort(scores)[::-1], **CLOSE)
    assert all(each["text"] == texts[each["index"]] for each in tei)
    body = {"query": "snow", "documents": texts, "model": "asking", "top_n": 2, "return_documents": True}
    infinity = ask(server, "/rerank", body).body
    assert [each["index"] for each in infinity["results"]] == [each["index"] for each in tei[:2]]
    assert infinity["results"][0]["document"] == tei[0]["text"]
    assert ask(server, "/rerank", {"query": "snow"}).status == 422


def test_tokens_are_those_that_the_model_gets(server: str, asking: Encoder) -> None:
    answer = ask(server, "/tokenize", {"inputs": TEXTS[:2], "prompt_name": "query", "model": "asking"}).body
    assert [[token["id"] for token in row] for row in answer] == asking.tokenize(TEXTS[:2], "query").ids
    assert answer[0][0] == {"id": 1, "text": "<s>", "special": True}
    assert "".join(token["text"] for token in answer[0][1:]) == f"Question: {TEXTS[0]}"


def test_cohere_gives_vectors_by_type(server: str, tiny_encoder: Encoder) -> None:
    body = {"texts": TEXTS, "input_type": "classification", "embedding_types": ["float", "base64"]}
    answer = ask(server, "/v2/embed", {**body, "output_dimension": 4}).body
    expected = tiny_encoder.encode(TEXTS, truncate_dim=4)
    assert np.allclose(answer["embeddings"]["float"], expected, **CLOSE)
    assert np.allclose([decoded(text) for text in answer["embeddings"]["base64"]], expected, **CLOSE)
    assert answer["texts"] == TEXTS
    assert answer["meta"]["billed_units"]["input_tokens"] == sum(map(len, tiny_encoder.tokenize(TEXTS).ids))


def test_info_tells_settings_and_limits(server: str, tiny_encoder: Encoder) -> None:
    info = ask(server, "/info").body
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("tiny", 128, 64)
    assert info["models"]["tiny"] == tiny_encoder.describe()


def test_the_health_of_a_server(server: str) -> None:
    assert ask(server, "/health")[::2] == (200, {"status": "ready"})
    assert ask(server, "/live")[::2] == (200, {"status": "alive"})
    assert ask(server, "/health", method="HEAD").status == 200
