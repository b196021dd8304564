"""What a server refuses, how it says so, and that it does no work for who has left."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import Encoder
from bellm.corpus import build_index, embed_corpus
from bellm.errors import BellmError, FingerprintError
from bellm.serve import ServeConfig, create_app
from tests.processes import LIMIT
from tests.serve.planted import Planted
from tests.serve.servers import Held, ask, connect, head, serving, wait_for

OPENAI, EMBED, COHERE = "/v1/embeddings", "/embed", "/v2/embed"


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "words"),
    [
        (OPENAI, b"{", 400, None, "The body must be a JSON object"),
        (OPENAI, b"[1]", 400, None, "The body must be a JSON object"),
        (OPENAI, b"\xff\xfe", 400, None, "The body must be a JSON object"),
        (OPENAI, b'{"input": "\\ud800"}', 400, None, "The body must be a JSON object"),
        (OPENAI, b'{"input": ' + b"[" * 5000, 400, None, "The body must be a JSON object"),
        (OPENAI, b"", 400, None, "The body is empty"),
        (OPENAI, {}, 422, "input", "input is missing."),
        (OPENAI, {"input": 5}, 422, "input", "input is a number: send a text or a list of texts."),
        (OPENAI, {"input": []}, 422, "input", "input is empty: send at least one text."),
        (OPENAI, {"input": ["a", None]}, 422, "input", "input[1] is null: send texts."),
        (OPENAI, {"input": [["a"]]}, 422, "input", "input[0] is no list of token ids"),
        (OPENAI, {"input": [True]}, 422, "input", "input[0] is no list of token ids"),
        (OPENAI, {"input": "a", "dimension": 5}, 422, "dimension", "Did you mean dimensions?"),
        (OPENAI, {"input": "a", "dimensions": 0}, 422, "dimensions", "greater than or equal to 1"),
        (OPENAI, {"input": "a", "dimensions": "5"}, 422, "dimensions", "valid integer"),
        (OPENAI, {"input": "a", "dimensions": 33}, 422, "dimensions", "more than the 32 numbers of tiny"),
        (OPENAI, {"input": "a", "dimensions": 10**400}, 422, "dimensions", "dimensions="),
        (OPENAI, {"input": "a", "encoding_format": "hex"}, 422, "encoding_format", "'float' or 'base64'"),
        (OPENAI, {"input": "a", "input_type": "poem"}, 422, "input_type", "'poem' is not one of text, query"),
        (OPENAI, {"input": "a", "model": "gpt"}, 404, "model", "'gpt' is not served here: tiny, asking"),
        (OPENAI, {"input": ["a"] * 65}, 413, "input", "input has 65 items: send 64 at most."),
        (OPENAI, {"input": "a" * 200_000}, 413, None, "the server reads 100000"),
        (EMBED, {"inputs": {"a": 1}}, 422, None, "inputs is an object: send a text or a list of texts."),
        (EMBED, {"inputs": "a", "truncation_direction": "left"}, 422, None, "truncation_direction='left'"),
        ("/", {"inputs": {"source_sentence": "a"}}, 422, None, "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": "b"}}, 422, None, "send a list of texts"),
        ("/rerank", {"query": "a", "texts": ["b"], "documents": ["c"]}, 422, None, "as texts, or as documents"),
        (COHERE, {"texts": "a"}, 422, None, "texts is a text: send a list of texts."),
        (COHERE, {"texts": ["a"], "images": ["b"]}, 422, None, "'images' is no field of this request"),
        ("/search", {"query": "a"}, 422, None, "start the server with --index FOLDER"),
    ],
)
def test_what_is_wrong_is_a_sentence_in_the_form_of_the_dialect(
    server: str, path: str, body: Any, status: int, field: str | None, words: str
) -> None:
    answer = ask(server, path, body)
    assert answer.status == status, answer
    if path == OPENAI:
        error = answer.body["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["param"] == field
        message = error["message"]
    elif path == COHERE:
        assert list(answer.body) == ["message"]
        message = answer.body["message"]
    elif path != "/search":
        assert list(answer.body) == ["error", "error_type"]
        message = answer.body["error"]
    else:
        message = answer.body["error"]["message"]
    assert words in message
    assert "\n" not in message
    assert len(message) < 500


def test_paths_methods_and_content_types(server: str) -> None:
    assert ask(server, "/nowhere").status == 404
    assert ask(server, "/embed/", {"inputs": "a"}).status == 404
    assert ask(server, OPENAI).status == 405
    assert ask(server, "/health", {"a": 1}).status == 405
    assert ask(server, EMBED, {"inputs": "a"}, method="DELETE").status == 405
    wrong = ask(server, EMBED, {"inputs": "a"}, Content_Type="text/plain")  # As a page of another origin may send it.
    assert (wrong.status, wrong.body["error"]) == (
        415,
        "Send the body as JSON, with the header Content-Type: application/json.",
    )
    assert ask(server, EMBED, {"inputs": "a"}, Content_Type="application/json; charset=utf-8").status == 200


def test_a_body_of_unknown_length_is_read_as_far_as_allowed(server: str) -> None:
    with connect(server) as client:
        client.sendall(head(EMBED, None, Transfer_Encoding="chunked"))
        part = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        client.sendall(4 * part)
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_who_sends_nothing_or_too_slowly_is_let_go(server: str) -> None:
    with connect(server) as silent, connect(server) as slow, connect(server) as slower:
        slow.sendall(head(EMBED, 100) + b'{"inputs"')
        slower.sendall(b"POST /embed HT")
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(4096) == b""
        assert slower.recv(4096) == b""


def test_a_key_is_asked_for(tiny_encoder: Encoder) -> None:
    with serving(create_app(tiny_encoder, ServeConfig(api_key="open sesame"))) as url:
        for given in (None, "", "Bearer", "Bearer open", "open sesame", "Basic open sesame", "Bearer öpen"):
            headers = {} if given is None else {"Authorization": given}
            answer = ask(url, OPENAI, {"input": "a"}, **headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.body["error"]["code"] == "invalid_api_key"
        assert ask(url, OPENAI, {"input": "a"}, Authorization="Bearer open sesame").status == 200
        assert [ask(url, path).status for path in ("/metrics", "/info", "/v1/models")] == [401] * 3
        assert [ask(url, path).status for path in ("/", "/docs", "/openapi.json", "/health", "/live")] == [200] * 5


def test_a_server_answers_to_its_own_names_alone(tiny_encoder: Encoder) -> None:
    with serving(create_app(tiny_encoder, ServeConfig(allow_hosts=("localhost", "::1")))) as url:
        for host, status in (
            ("localhost:80", 200),
            ("LOCALHOST", 200),
            ("[::1]:5", 200),
            ("rebound.example", 421),
            ("", 421),
            ("[", 421),
        ):
            assert ask(url, OPENAI, {"input": "a"}, Host=host).status == status, host
            assert ask(url, "/health", Host=host).status == 200


def test_other_origins_may_ask_only_where_they_are_allowed(server: str, tiny_encoder: Encoder) -> None:
    origin = {"Origin": "https://example.org", "Access_Control_Request_Method": "POST"}
    assert ask(server, EMBED, method="OPTIONS", **origin).status == 405
    assert "access-control-allow-origin" not in ask(server, "/health", **origin).headers
    with serving(create_app(tiny_encoder, ServeConfig(allow_origin="https://example.org"))) as url:
        assert ask(url, EMBED, method="OPTIONS", **origin).headers["access-control-allow-origin"] == origin["Origin"]
        answer = ask(url, EMBED, {"inputs": "a"}, **origin)
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        other = ask(url, "/health", Origin="https://example.com")
        assert other.headers.get("access-control-allow-origin") != "https://example.com"


def test_a_full_queue_is_said_before_the_body_is_read(held: Held) -> None:
    held.send(*(f"{number:03}" for number in range(49)))
    with connect(held.url) as client:
        client.sendall(head(EMBED, 90_000))  # And nothing of the body.
        answer = ""
        while not answer.endswith("}"):  # It comes in pieces.
            piece = client.recv(4096).decode()
            assert piece, answer
            answer += piece
    assert answer.startswith("HTTP/1.1 429 ")
    assert "\r\nretry-after: " in answer
    assert '"error_type":"Overloaded"' in answer
    full = ask(held.url, OPENAI, {"input": ["aaa", "bbb"]})
    assert (full.status, full.body["error"]["type"], int(full.headers["retry-after"]) >= 1) == (
        429,
        "rate_limit_error",
        True,
    )
    assert [answer.status for answer in held.finish()] == [200]


def test_texts_of_clients_that_left_are_not_embedded(held: Held) -> None:
    held.send("aaa")
    body = json.dumps({"inputs": ["bbb", "ccc"]}).encode()
    with connect(held.url) as client:
        client.sendall(head(EMBED, len(body)) + body)
        wait_for(lambda: held.queue.num_tokens == 3)
    wait_for(lambda: held.queue.num_tokens == 1)
    held.send("ddd")
    assert len(held.finish()) == 2
    assert held.planted.batches == [["aaa"], ["ddd"]]


@pytest.mark.parametrize("held", [{"timeout": 0.3}], indirect=True)
def test_a_request_ends_when_its_time_is_up(held: Held) -> None:
    held.send("aaa")
    late = ask(held.url, OPENAI, {"input": "bbb"})
    assert (late.status, late.body["error"]["message"]) == (503, "There are no vectors after 0.3 s.")
    wait_for(lambda: bool(held.answers))
    for path in ("/health", "/live"):  # The batch itself takes too long.
        wait_for(lambda path=path: ask(held.url, path).status == 503)  # type: ignore[misc]
    held.planted.open.set()
    wait_for(lambda: ask(held.url, "/health").status == 200)
    assert held.planted.batches == [["aaa"]]


def test_a_crash_of_the_worker_fails_health_and_hangs_nobody(held: Held) -> None:
    held.planted.faults["bad"] = sys.exit
    held.send("bad")
    held.send("aaa")
    assert [answer.status for answer in held.finish()] == [503, 503]
    assert [ask(held.url, path).status for path in ("/health", "/live")] == [503, 503]
    assert ask(held.url, OPENAI, {"input": "bbb"}).status == 503


def test_a_failure_is_that_of_one_request(held: Held) -> None:
    held.planted.faults["bad"] = lambda: 1 / 0
    for text in ("aaa", "bad", "nan"):
        held.send(text)
    answers = sorted(held.finish(), key=lambda answer: answer.status)
    assert [answer.status for answer in answers] == [200, 500, 500]
    assert {answer.body["error_type"] for answer in answers[1:]} == {"Backend"}
    assert ask(held.url, "/health").status == 200


def test_metrics_count_what_was_done(tiny_encoder: Encoder) -> None:
    with serving(create_app(tiny_encoder)) as url:
        texts = ["Snow fell.", "Snow fell. " * 60]
        num_tokens = sum(map(len, tiny_encoder.tokenize(texts).ids))
        assert ask(url, EMBED, {"inputs": texts}).status == 200
        ask(url, EMBED, {"inputs": 5})
        ask(url, "/nowhere/1")
        ask(url, "/nowhere/2")
        lines = ask(url, "/metrics").body.decode().splitlines()
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    assert found['bellm_requests_total{path="/embed",status="200"}'] == 1
    assert found['bellm_requests_total{path="other",status="404"}'] == 2
    assert found['bellm_errors_total{code="invalid_value"}'] == 1
    assert (found["bellm_texts_total"], found["bellm_tokens_total"]) == (2, num_tokens)
    assert (found["bellm_truncated_texts_total"], found["bellm_embedded_tokens_total"]) == (1, num_tokens)
    assert (found["bellm_batch_texts_sum"], found["bellm_queue_tokens"]) == (2, 0)
    assert found['bellm_stage_seconds_count{stage="embed"}'] == 1


def test_a_corpus_is_searched_with_its_own_encoder(tiny_encoder: Encoder, asking: Encoder, tmp_path: Path) -> None:
    texts = [f"Snow fell on day {number}." for number in range(20)]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    embed_corpus(asking, [tmp_path / "t.txt"], tmp_path / "out", keep_text=True, input_type="document")
    build_index(tmp_path / "out")
    app = create_app({"asking": asking}, index=tmp_path / "out")
    with serving(app) as url:
        answer = ask(url, "/search", {"query": "day 7", "top": 3}).body
        assert ask(url, "/info").body["has_index"]
    scores = asking.similarity(asking.encode_query(["day 7"]), asking.encode_document(texts))[0]
    assert [hit["row"] - 1 for hit in answer["hits"]] == (-scores).argsort()[:3].tolist()
    assert np.allclose([hit["score"] for hit in answer["hits"]], np.sort(scores)[::-1][:3], atol=1e-5)
    assert answer["hits"][0]["text"] == texts[answer["hits"][0]["row"] - 1]
    assert answer["exact"] is True
    with pytest.raises(FingerprintError, match="does not give the vectors that it gave to the corpus"):
        create_app(asking.replace(pooling="last"), index=tmp_path / "out")


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({}, "models is empty"),
        ("smollm2", "'smollm2' is no encoder"),
        ({"a": 5}, "a: 5 is no encoder"),
        ({"": Planted()}, "'' is no name of a model"),
        ({"a\nb": Planted()}, "'a.nb' is no name of a model"),
    ],
)
def test_what_cannot_be_served_is_said(models: Any, words: str) -> None:
    with pytest.raises(BellmError, match=words):
        create_app(models)


def test_no_model_takes_the_name_of_another(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="a:causal is the name of the causal model beside another"):
        create_app({"a": tiny_encoder, "a:causal": Planted()})


def test_a_server_of_ones_own_runs_the_application(tiny_encoder: Encoder) -> None:
    """The application alone, as any ASGI server calls it."""
    app = create_app(tiny_encoder)

    async def act() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        body = iter([{"type": "http.request", "body": b'{"input": "Snow fell."}', "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in body:
                return message
            await asyncio.sleep(LIMIT)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "path": OPENAI, "method": "POST", "headers": headers, "query_string": b""}
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
        return sent

    start, content = asyncio.run(act())
    assert start["status"] == 200
    assert np.allclose(
        json.loads(content["body"])["data"][0]["embedding"], tiny_encoder.encode("Snow fell."), atol=1e-6
    )
