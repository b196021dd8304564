"""Clients that would hold a server up or fill its memory, and ways of HTTP that are rare."""

import concurrent.futures
import contextlib
import gc
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from bellm.errors import BellmWarning
from bellm.serve import ServeConfig, create_app
from bellm.serve.http_server import warn_unprotected
from bellm.serve.ports import bind_port
from bellm.serve.served_model import TokenRow
from tests.processes import LIMIT
from tests.serve.planted import Planted
from tests.serve.servers import Held, ask, connect, head, serving, wait_for

EMBED = "/embed"
CHUNKED = head(EMBED, None, Transfer_Encoding="chunked")


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def post(body: Any) -> bytes:
    content = json.dumps(body).encode()
    return head(EMBED, len(content)) + content


def status_of(client: socket.socket) -> int:
    """The status of the next answer, which is read as far as it comes at once."""
    return int(client.recv(1 << 16).split()[1])


@contextlib.contextmanager
def busy(threads: concurrent.futures.ThreadPoolExecutor) -> Iterator[None]:
    """A thread pool of one that does nothing else."""
    begun, end = threading.Event(), threading.Event()
    threads.submit(lambda: (begun.set(), end.wait(LIMIT)))
    assert begun.wait(LIMIT)
    try:
        yield
    finally:
        end.set()


def test_who_does_not_read_the_answer_is_let_go() -> None:
    app = create_app(Planted(4096), ServeConfig(read_seconds=0.5))
    service = app.state.service
    with serving(app) as url:
        with connect(url) as idle, connect(url) as leaving:
            for client in (idle, leaving):  # Small to send, large to answer.
                client.sendall(post({"inputs": ["aaa"] * 1000}))
                answer = client.recv(1 << 10)
                assert answer.startswith(b"HTTP/1.1 200 ")
            leaving.close()
            wait_for(lambda: not service.num_calls and not service.held_bytes)
            with contextlib.suppress(ConnectionError):
                while piece := idle.recv(1 << 20):
                    answer += piece
            assert len(answer) < 4096 * 1000 * 4
        wait_for(lambda: service.count_connections() == 0)
        assert len(ask(url, EMBED, {"inputs": ["aaa"] * 1000}).body) == 1000


@pytest.mark.parametrize("held", [{"max_queue_tokens": 1000}], indirect=True)
def test_a_body_of_unknown_length_takes_room_as_it_comes(held: Held) -> None:
    with connect(held.url) as first, connect(held.url) as second:
        first.sendall(CHUNKED + chunk(b" " * 3000))
        wait_for(lambda: held.queue.num_tokens == 750)
        second.sendall(CHUNKED + chunk(b" " * 3000))
        assert status_of(second) == 429
    wait_for(lambda: held.queue.num_tokens == held.service.held_bytes == 0)


@pytest.mark.parametrize("held", [{"max_queue_tokens": 1_000_000, "requests_megabytes": 1}], indirect=True)
def test_bodies_take_no_more_than_the_memory_for_them(held: Held) -> None:
    with connect(held.url) as first:
        first.sendall(head(EMBED, 200_000))
        wait_for(lambda: held.service.held_bytes == 800_000)
        full = ask(held.url, EMBED, b" " * 200_000)
        assert (full.status, full.body["error"]) == (
            429,
            "Requests and their answers take 0 MiB, and the server has 1 MiB for all: send it again later.",
        )
        assert int(full.headers["retry-after"]) >= 1
    wait_for(lambda: held.service.held_bytes == 0)


def test_answers_take_no_more_than_the_memory_for_them() -> None:
    """Equal texts are embedded once, and each has its place in an answer."""
    planted = Planted(4096)
    app = create_app(planted, ServeConfig(requests_megabytes=1))
    with serving(app) as url:
        planted.open.clear()
        held = Held(app, planted, url)
        with connect(url) as first:
            first.sendall(post({"inputs": ["aaa"] * 12}))
            wait_for(lambda: held.queue.num_tokens == 1)
            assert ask(url, EMBED, {"inputs": ["aaa"] * 12}).status == 429
            planted.open.set()
            assert status_of(first) == 200
        wait_for(lambda: held.service.held_bytes == 0)
        assert ask(url, EMBED, {"inputs": ["aaa"] * 100}).status == 200  # Alone it may have more.


@pytest.mark.parametrize("held", [{"max_queue_tokens": 1000, "timeout": 1.0}], indirect=True)
def test_what_waits_to_be_tokenized_counts_and_ends_in_time(held: Held) -> None:
    body = post({"inputs": "a" * 2000})
    with busy(held.service._tokenizing):
        with connect(held.url) as leaving:
            leaving.sendall(body)
            wait_for(lambda: held.queue.num_tokens > 500)
        wait_for(lambda: held.queue.num_tokens == held.service.num_calls == 0)
        with connect(held.url) as first:
            first.sendall(body)
            wait_for(lambda: held.queue.num_tokens > 500)
            assert ask(held.url, EMBED, {"inputs": "b" * 2000}).status == 429
            assert status_of(first) == 503
    assert held.planted.batches == []


@pytest.mark.parametrize("held", [{"max_queue_tokens": 1_000_000}], indirect=True)
def test_a_long_text_holds_up_no_short_one_before_the_queue(held: Held) -> None:
    with busy(held.service._tokenizing_long), connect(held.url) as long:
        long.sendall(post({"inputs": "a" * 300_000}))
        wait_for(lambda: held.service.num_calls == 1)
        held.send("aaa")
        held.planted.open.set()
        wait_for(lambda: bool(held.answers))
    assert held.answers[0].status == 200


def test_a_storm_of_clients_that_leave_costs_nothing(held: Held) -> None:
    held.send("aaa")
    for number in range(30):
        clients = [connect(held.url) for _ in range(10)]
        for index, client in enumerate(clients):
            client.sendall(post({"inputs": [f"{number:02}{index}", "bbb"]}))
        for client in clients:
            client.close()
    wait_for(lambda: held.service.num_calls == 1)
    assert held.queue.num_tokens == 1
    assert [answer.status for answer in held.finish()] == [200]
    assert held.planted.batches == [["aaa"]]


@pytest.mark.parametrize("held", [{"max_connections": 3}], indirect=True)
def test_a_crowd_does_not_make_the_server_look_dead(held: Held) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(4):
            idle.enter_context(connect(held.url))
        wait_for(lambda: held.service.count_connections() == 4)
        crowded = ask(held.url, EMBED, {"inputs": "aaa"})
        assert (crowded.status, crowded.headers["connection"]) == (503, "close")
        assert "more connections than the 3" in crowded.body["error"]
        assert [ask(held.url, path).status for path in ("/live", "/health")] == [200, 200]
    wait_for(lambda: held.service.count_connections() == 0)
    held.send("aaa")
    assert held.finish()[0].status == 200


@pytest.mark.parametrize("held", [{"max_queue_tokens": 1000}], indirect=True)
def test_vectors_of_requests_are_not_kept_by_places_that_others_need_no_more(held: Held) -> None:
    """A text of two requests has two places in the queue, of which one remains when it is embedded."""
    held.send("aaa")
    held.send(*(f"{number:03}" for number in range(40)))
    with connect(held.url) as client:
        client.sendall(post({"inputs": ["039", "038"]}))
        wait_for(lambda: len(held.queue._open_rows[("planted", ("039", "text"))].waiters) == 2)
        tickets = [weakref.ref(ticket) for row in held.queue._open_rows.values() for ticket in row.waiters]
    assert [answer.status for answer in held.finish()] == [200, 200]
    gc.collect()
    assert not [ticket for ticket in tickets if ticket()]


def test_a_key_of_the_vector_cache_is_as_large_as_its_text() -> None:
    assert TokenRow(("a" * 10_000, "text"), 5).num_bytes > 10_000  # Its tokens are those of its beginning.
    assert TokenRow(((1,) * 5, (0, 5)), 5).num_bytes < 1000


def http(url: str, *parts: bytes) -> bytes:
    """All that a server says until it closes the connection."""
    said = b""
    with connect(url) as client:
        for part in parts:
            client.sendall(part)
        while piece := client.recv(1 << 16):
            said += piece
    return said


def test_rare_ways_of_http(server: str) -> None:
    body = b'{"inputs": "Snow."}'
    request, close = head(EMBED, len(body)) + body, head(EMBED, len(body), Connection="close") + body
    with connect(server) as client:
        client.sendall(head(EMBED, len(body), Expect="100-continue", Connection="close"))
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert status_of(client) == 200
    assert http(server, request + request + close).count(b"HTTP/1.1 200 ") == 3  # Pipelined.
    assert http(server, *(bytes([byte]) for byte in close)).startswith(b"HTTP/1.1 200 ")
    wrong = head(EMBED, 2) + b"{}"
    assert http(server, wrong + close).count(b"HTTP/1.1 ") == 2  # After an error the connection goes on.
    old = http(server, close.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b" 200 " in old
    last = head(EMBED, None, Transfer_Encoding="chunked", Connection="close")
    parts = http(server, last + chunk(body[:5]) + chunk(body[5:]), b"0\r\nX: y\r\n\r\n")
    assert parts.startswith(b"HTTP/1.1 200 ")
    both = http(server, head(EMBED, len(body), Transfer_Encoding="chunked") + chunk(body) + b"0\r\n\r\n")
    assert [line.split()[1] for line in both.splitlines() if line.startswith(b"HTTP/")] == [b"400"]
    endless = http(server, CHUNKED, *[chunk(b" " * 0x8000)] * 3, b"")
    assert endless.startswith(b"HTTP/1.1 4")


def test_the_full_queue_is_said_without_the_body_that_waits_for_a_word(held: Held) -> None:
    held.send(*(f"{number:03}" for number in range(50)))
    with connect(held.url) as client:
        client.sendall(head(EMBED, 4000, Expect="100-continue"))
        assert status_of(client) == 429


def test_metrics_do_not_grow_with_what_clients_send(server: str) -> None:
    def odd(number: int) -> None:
        ask(server, f"/nowhere/{number}", method=f"ODD{number}", x_request_id=f"mine-{number}")
        ask(server, EMBED, {"inputs": "a", "model": f"model-{number}"})
        ask(server, EMBED, {"inputs": "a", f"field-{number}": 5})

    odd(0)
    ask(server, "/metrics")  # Which is itself counted.
    before = ask(server, "/metrics").body.count(b"\n")
    for number in range(1, 50):
        odd(number)
    assert ask(server, "/metrics").body.count(b"\n") == before


def test_views_are_tokenized_for_several_requests_at_once(server: str) -> None:
    """To count tokens and by the worker, at the same time; tokenizers of Hugging Face do not allow all of that."""
    texts = [f"Snow fell on day {number}. " * 20 for number in range(60)]
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        done = [clients.submit(ask, server, EMBED, {"inputs": texts, "model": "views"}) for _ in range(24)]
    assert {each.result().status for each in done} == {200}


def test_a_server_that_others_reach_without_a_key_says_so() -> None:
    with bind_port("0.0.0.0", 0) as bound:
        with pytest.warns(BellmWarning, match=r"^Whoever reaches 0\.0\.0\.0:\d+ may ask this server: set a key"):
            warn_unprotected(bound, ServeConfig())
        warn_unprotected(bound, ServeConfig(api_key="sesame"))
    with bind_port("localhost", 0) as bound:
        warn_unprotected(bound, ServeConfig())


def test_json_that_is_odd_is_read_or_refused(server: str) -> None:
    for text, status in (
        (b'{"inputs": "a", "dimensions": NaN}', 422),
        (b'{"inputs": "a", "dimensions": Infinity}', 422),
        (b'{"inputs": "a", "dimensions": 1e999}', 422),
        (b'{"inputs": "a", "dimensions": -0}', 422),
        (b'{"inputs": "a", "dimensions": 5.0}', 422),
        (b'{"inputs": "a", "dimensions": %b}' % (b"9" * 6000), 400),
        (b'{"inputs": %b}' % (b"9" * 4000), 422),
        (b'{"inputs": "a", "inputs": "b"}', 200),  # The last one, as in Python and JavaScript.
        (b'\xef\xbb\xbf{"inputs": "a"}', 400),
        (b'{"inputs": "a"} {}', 400),
        (b'{"inputs": "a",}', 400),
        (b"{'inputs': 'a'}", 400),
        (b'{"inputs": "\\u0000\\ud83d\\udc26"}', 200),
    ):
        answer = ask(server, EMBED, text)
        assert answer.status == status, (text[:60], answer)
