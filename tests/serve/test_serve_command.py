"""`bellm serve` as a process: the line when it is ready, requests that are answered after SIGTERM, Ctrl-C."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from tests.processes import LIMIT, run, started
from tests.serve.servers import ask

TEXTS = ["Snow fell all night.", "A heron waits."]


@contextmanager
def bellm_serve(*arguments: object) -> Iterator[tuple[subprocess.Popen[Any], str]]:
    """A server on a free port, and its address."""
    command = [sys.executable, "-m", "bellm", "serve", *arguments, "--port", "0"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"bellm serves .+ on (http://127\.0\.0\.1:\d+)\n", line)
        assert found, (line, process.stderr and process.stderr.read())
        yield process, found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_after_the_signal(
    tiny_folder: Path, tiny_encoder: Encoder, number: signal.Signals
) -> None:
    """Clients ask all the time; the signal comes in between; each has an answer or is told that the server ends."""
    expected = tiny_encoder.encode(TEXTS)
    statuses: list[int] = []
    begun, signalled = threading.Event(), threading.Event()

    def client(url: str, number: int) -> None:
        while True:
            texts = [f"Snow fell on day {number}, {len(statuses)}.", *TEXTS]
            is_late = signalled.is_set()
            try:
                answer = ask(url, "/v1/embeddings", {"input": texts})
            except ConnectionRefusedError:  # The port is closed: nothing was accepted.
                return
            except ConnectionError:  # It was closed while the connection waited to be accepted.
                assert is_late
                return
            statuses.append(answer.status)
            if len(statuses) > 40:
                begun.set()
            if answer.status == 503:
                assert answer.headers["connection"] == "close"
                return
            assert answer.status == 200
            vectors = [each["embedding"] for each in answer.body["data"]]
            assert np.allclose(vectors[1:], expected, atol=1e-6)

    failures: list[BaseException] = []

    def guarded(*arguments: Any) -> None:
        try:
            client(*arguments)
        except BaseException as error:
            failures.append(error)
            begun.set()

    with bellm_serve(tiny_folder, "--name", "tiny", "--drain-seconds", "60") as (process, url):
        clients = [threading.Thread(target=guarded, args=[url, number]) for number in range(8)]
        for thread in clients:
            thread.start()
        assert begun.wait(LIMIT)
        signalled.set()
        process.send_signal(number)
        for thread in clients:
            thread.join(LIMIT)
        out, err = process.communicate(timeout=LIMIT)
    assert not failures, failures
    assert statuses.count(200) > 40
    lines = [json.loads(line) for line in err.splitlines() if line[0] == "{"]
    assert [line["status"] for line in lines].count(200) == statuses.count(200)
    assert out == ""
    if number == signal.SIGTERM:
        assert process.returncode == 0, err
    else:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "bellm: interrupted; every request that was accepted is answered."


def test_the_log_is_json_without_texts_or_wrong_ids(tiny_folder: Path) -> None:
    with bellm_serve(tiny_folder, "--name", "tiny", "--also", f"other={tiny_folder}?pooling=mean") as (process, url):
        names = [model["id"] for model in ask(url, "/v1/models").body["data"]]
        assert names == ["tiny", "other", "tiny:causal", "other:causal"]
        ask(url, "/embed", {"inputs": "Snow fell.", "truncate": True}, x_request_id="mine-1")
        ask(url, "/embed", {"inputs": 5}, x_request_id='"} {"forged": 1')
        ask(url, "/nowhere")
        rebound = ask(url, "/info", Host="rebound.example")
        assert (rebound.status, "--allow-host" in rebound.body["error"]) == (421, True)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LIMIT)
    lines = [json.loads(line) for line in err.splitlines() if line[0] == "{"]
    _, first, second, third, _ = lines
    assert (first["id"], first["status"], first["texts"], first["model"]) == ("mine-1", 200, 1, "tiny")
    assert first["tokens"] > 0
    assert (second["status"], second["error"]) == (422, "invalid_value")
    assert re.fullmatch(r"[0-9a-f]{16}", second["id"])
    assert (third["status"], third["path"]) == (404, "/nowhere")
    assert "Snow" not in err
    assert process.returncode == 0


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = "import sys; sys.modules.update(torch=None); from bellm.cli import main; main()"
        done = run([sys.executable, "-c", program, "serve", tiny_folder, "--port", port])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"bellm: 127.0.0.1:{port} cannot be served on: address already in use. Give another --port, or 0 for any.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--also small", "--also small is no NAME=SOURCE"),
        ("--also a/b=MODEL", "is no NAME=SOURCE"),
        ("--also small=none", "none is no folder"),
        ("--name one --also one=MODEL", "there is a model one already"),
        ("--max-queue-tokens 0", "max_queue_tokens=0 is too small: give at least 1"),
        ("--max-batch-tokens 0", "max_batch_tokens=0 is too small"),
        ("--timeout 0", "timeout=0.0 is no number of seconds"),
        ("--drain-seconds nan", "drain_seconds=nan is no number of seconds"),
        ("--api-key ''", "api_key must be printable ASCII"),
        ("--api-key ' sesame'", "api_key must be printable ASCII"),
        ("--requests-megabytes 0", "requests_megabytes=0 is too small"),
        ("--host 300.1.1.1", "300.1.1.1 is no address of this machine"),
        ("--index none", "none"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    def not_to_be_called(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(Encoder, "from_pretrained", not_to_be_called)
    given = shlex.split(arguments.replace("MODEL", str(tiny_folder)))
    done = CliRunner().invoke(app, ["serve", str(tiny_folder), "--port", "0", *given])
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    [line] = done.stderr.splitlines()
    assert words in line
