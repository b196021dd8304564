"""Servers on a free port in a thread of the test, and requests to them."""

import asyncio
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.applications import Starlette

from bellm.serve.http_server import make_server
from bellm.serve.ports import bind_port
from tests.processes import LIMIT
from tests.serve.planted import Planted


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: Any
    """JSON where it is said to be, else bytes."""


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The address of a server that runs until the end."""
    said: queue.Queue[str] = queue.Queue()
    with bind_port("127.0.0.1", 0) as bound:
        server = make_server(app, said.put)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()
        try:
            yield said.get(timeout=LIMIT)
        finally:
            server.should_exit = True
            thread.join(LIMIT)
            assert not thread.is_alive()


def ask(url: str, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
    """Send a request, with a body as JSON, or bytes as they are."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=LIMIT)
    try:
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, {**kind, **named})
        response = connection.getresponse()
        read = response.read()
        answer = dict(response.headers.items())
        is_json = answer.get("content-type") == "application/json"
        return Answer(response.status, answer, json.loads(read) if is_json and read else read)
    finally:
        connection.close()


def connect(url: str) -> socket.socket:
    host, _, port = urlsplit(url).netloc.partition(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT)


def head(path: str, length: int | None, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


class Held:
    """A server whose embedder is held up, with the application behind it."""

    def __init__(self, app: Starlette, planted: Planted, url: str) -> None:
        self.service, self.queue = app.state.service, app.state.service.queue
        self.planted, self.url = planted, url
        self._threads: list[threading.Thread] = []
        self.answers: list[Answer] = []

    def send(self, *texts: str) -> None:
        """Ask in a thread, and wait until the texts are in the queue."""
        before = self.queue.num_tokens
        task = threading.Thread(target=lambda: self.answers.append(ask(self.url, "/embed", {"inputs": texts})))
        self._threads.append(task)
        task.start()
        wait_for(lambda: self.queue.num_tokens == before + len(texts))

    def finish(self) -> list[Answer]:
        self.planted.open.set()
        for each in self._threads:
            each.join(LIMIT)
        return self.answers
