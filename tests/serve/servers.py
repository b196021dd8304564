"""Servers on a free port in a thread of the test, and requests to them."""

import asyncio
import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.applications import Starlette

from bellm.serve.http_server import make_server
from bellm.serve.ports import bind_port
from tests.processes import LIMIT


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
