"""Requests that nobody should send: each is answered or let go, none with a 5xx, and the server is as it was."""

import contextlib
import copy
import gc
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from hypothesis import Phase, given, settings
from hypothesis.errors import Unsatisfiable

from bellm import Encoder
from bellm.serve import ServeConfig, create_app
from bellm.serve.api import ENDPOINTS
from tests.serve.servers import ask, serving

GOOD: dict[str, Any] = {
    "/v1/embeddings": {"input": ["Snow.", "Ice."], "model": "tiny", "encoding_format": "base64", "dimensions": 4},
    "/embed": {"inputs": ["Snow.", "Ice."], "truncate": True, "normalize": True, "prompt_name": "query"},
    "/": {"inputs": {"source_sentence": "Snow.", "sentences": ["Ice."]}},
    "/similarity": {"inputs": {"source_sentence": "Snow.", "sentences": ["Ice."]}, "parameters": {"truncate": True}},
    "/rerank": {"query": "Snow.", "texts": ["Ice.", "Rain."], "return_text": True, "top_n": 1},
    "/tokenize": {"inputs": ["Snow.", "Ice."]},
    "/v2/embed": {"texts": ["Snow."], "input_type": "search_query", "embedding_types": ["float"]},
    "/search": {"query": "Snow.", "top": 3},
}
VALUES: list[Any] = [None, True, -1, 0, 1, 10**30, 1e308, "", "\x00", "\ud800", "\U0001f426" * 40, "a" * 20_000, [], {}]
VALUES += [
    [None],
    [[]],
    [[1, 2]],
    [[["a"]]],
    ["\x00"] * 5,
    ["a"] * 3000,
    {"a": {"b": []}},
    [-1],
    [2**70],
    ["a", 1],
    "float",
]
HEADS = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /embed\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nabcde",
    b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99999999999999999\r\n\r\n{",
    b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nX-Request-Id: \xff\xfe\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
)


class Attacker:
    """Hostile requests, the same ones for the same seed."""

    def __init__(self, url: str, seed: int) -> None:
        host, _, port = urlsplit(url).netloc.partition(":")
        self._address, self._chance = (host, int(port)), random.Random(seed)
        self.statuses: Counter[int] = Counter()

    def attack(self) -> None:
        kinds = (
            self.mutated,
            self.mutated,
            self.mutated,
            self.broken,
            self.raw,
            self.long,
            self.left,
            self.half_closed,
        )
        self._chance.choice(kinds)()

    def mutated(self) -> None:
        path, body = self._chance.choice(list(GOOD.items()))
        body = copy.deepcopy(body)
        for _ in range(self._chance.randint(1, 3)):
            self._mutate(body)
        self._ask(path, json.dumps(body, allow_nan=True).encode("utf-8", "surrogatepass"))

    def broken(self) -> None:
        path, body = self._chance.choice(list(GOOD.items()))
        text = bytearray(json.dumps(body).encode())
        for _ in range(self._chance.randint(1, 4)):
            place = self._chance.randrange(len(text))
            text[place : place + self._chance.randint(0, 3)] = self._chance.randbytes(self._chance.randint(0, 3))
        self._ask(path, bytes(text) or b"{", self._chance.choice(["application/json", "text/plain", "a/b; c"]))

    def raw(self) -> None:
        garbage = self._chance.randbytes(self._chance.randint(1, 200)) + b"\r\n\r\n"
        self._talk(self._chance.choice([*HEADS, garbage]))

    def long(self) -> None:
        body = self._chance.choice(
            [b"[" * 50_000, b'{"input": [' + b"0," * 400_000 + b"0]}", b'{"a":' * 20_000, b'"' + b"a" * 900_000]
        )
        self._ask("/v1/embeddings", body)

    def left(self) -> None:
        with socket.create_connection(self._address, timeout=60) as client:
            text = b"".join(self._request("/embed", json.dumps(GOOD["/embed"]).encode()))
            client.sendall(text[: self._chance.randrange(len(text))])

    def half_closed(self) -> None:
        with socket.create_connection(self._address, timeout=60) as client:
            text = b"".join(self._request("/embed", json.dumps(GOOD["/embed"]).encode()))
            client.sendall(text[: self._chance.randrange(1, len(text) + 1)])
            client.shutdown(socket.SHUT_WR)
            self._read(client)

    def _mutate(self, value: Any) -> None:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = self._chance.choice(keys)
        if isinstance(value[key], dict | list) and self._chance.random() < 0.5:
            self._mutate(value[key])
        elif isinstance(value, dict) and self._chance.random() < 0.2:
            value[self._chance.choice(["", "\x00", "inputs", "model", "a" * 5000])] = value.pop(key)
        else:
            value[key] = copy.deepcopy(self._chance.choice(VALUES))

    def _ask(self, path: str, body: bytes, kind: str = "application/json") -> None:
        self._talk(*self._request(path, body, kind))

    def _request(self, path: str, body: bytes, kind: str = "application/json") -> tuple[bytes, bytes]:
        lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        return f"{lines}Connection: close\r\n\r\n".encode(), body

    def _talk(self, *parts: bytes) -> None:
        with socket.create_connection(self._address, timeout=60) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for part in parts:
                    client.sendall(part)
            self._read(client)

    def _read(self, client: socket.socket) -> None:
        """The status, if there is an answer; a server that is silent is a failure."""
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n" not in answer and (part := client.recv(1 << 16)):
                answer += part
        if found := re.match(rb"HTTP/1\.1 (\d{3}) ", answer):
            self.statuses[int(found[1])] += 1


def attack(url: str, count: int, seed: int) -> Counter[int]:
    """Attack with four threads; the statuses of the answers."""
    attackers = [Attacker(url, seed + number) for number in range(4)]
    failures: list[BaseException] = []

    def work(attacker: Attacker) -> None:
        try:
            for _ in range(count // 4):
                attacker.attack()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[attacker]) for attacker in attackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return sum((attacker.statuses for attacker in attackers), Counter())


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_hostile_requests_change_nothing(tiny_encoder: Encoder, count: int) -> None:
    app = create_app({"tiny": tiny_encoder}, ServeConfig(read_seconds=0.5, max_body=500_000))
    service = app.state.service
    with serving(app) as url:
        attack(url, 100, seed=0)  # What is allocated once.
        gc.collect()
        before = psutil.Process().memory_info().rss
        statuses = attack(url, count, seed=1000)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        assert not [status for status in statuses if status >= 500], statuses
        assert {200, 400, 413, 422} <= set(statuses), statuses
        assert ask(url, "/health").status == 200
        answer = ask(url, "/embed", {"inputs": ["Snow fell."]})
        assert np.allclose(answer.body, tiny_encoder.encode(["Snow fell."]), atol=1e-6)
        until = time.monotonic() + 60
        while service.num_calls or service.queue.num_tokens:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert grown < 64 << 20, f"{grown >> 20} MiB more after {count} requests: {statuses}"


def test_every_path_with_a_body_is_attacked() -> None:
    assert set(GOOD) == {endpoint.path for endpoint in ENDPOINTS if endpoint.body}


def test_requests_made_of_the_documentation_are_never_a_fault(server: str) -> None:
    """schemathesis reads the OpenAPI document, and sends what it allows and what it does not."""
    schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    statuses: Counter[int] = Counter()
    for operation in (each.ok() for each in schema.get_all_operations()):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable):  # There is nothing to send that is not allowed.
                statuses += ask_as_documented(operation, mode)
    assert {200, 422} <= set(statuses)


def ask_as_documented(operation: Any, mode: Any) -> Counter[int]:
    """Send what an operation of schemathesis allows, or what it does not; each answer is documented."""
    documented = {int(status) for status in operation.definition.raw["responses"]} | {405}
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, database=None, derandomize=True, phases=[Phase.generate])
    def ask_one(case: Any) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        assert response.status_code < 500, (operation.label, case.body, response.text)
        assert response.status_code in documented, (operation.label, response.status_code)

    ask_one()
    return statuses
