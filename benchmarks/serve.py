"""Load on servers of one model: bellm serve against FastAPI with sentence-transformers, as people write it.

The model is the first layers of SmolLM2, causal, with mean pooling, so that both serve the same vectors, which is
checked. Clients are closed loops on keep-alive connections, in a process of their own; each request has texts of its
own, generated, 6 to 40 words.
A row is one number of clients and of texts a request. Besides texts a second it says how many texts a server embeds in
a second of its own CPU time, which others on the machine change less; `engine` is `encoder.encode` of such texts in
one process. Both servers run all the time; they and the engine take turns. Rows that --json holds already are not
measured again.

--soak MINUTES sends two requests a second to one `bellm serve`: texts, wrong requests, clients that leave. It says what
was answered, whether vectors stayed the same, and how the memory of the server went.
"""

import argparse
import copy
import http.client
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

WORDS = [
    "river",
    "snow",
    "market",
    "quiet",
    "engine",
    "window",
    "garden",
    "letter",
    "winter",
    "mountain",
    "ticket",
    "doctor",
    "bridge",
    "music",
    "paper",
    "stone",
    "harbour",
    "teacher",
    "coffee",
    "storm",
    "village",
    "signal",
    "candle",
    "forest",
    "reason",
    "answer",
    "silver",
    "captain",
    "morning",
    "kitchen",
    "border",
    "history",
]
SYSTEMS = ("bellm", "plain", "engine")
Running = tuple[str, subprocess.Popen[str]]
"""Address and process of a server."""


@dataclass(frozen=True)
class Row:
    """One server under one load."""

    system: str
    clients: int
    texts: int
    """Of a request."""
    requests: int
    texts_per_second: float
    texts_per_cpu_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="layers of SmolLM2 that are served (6)")
    parser.add_argument("--quick", action="store_true", help="2 layers, few requests, no 64 clients with 16 texts")
    parser.add_argument("--json", type=Path, help="write rows here, and read those that were measured")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="a low load for so long, on one server alone")
    parser.add_argument("--plain", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=4, metavar=("URL", "CLIENTS", "TEXTS", "REQUESTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        serve_plainly(options.plain[0], int(options.plain[1]))
    elif options.load:
        url, *numbers = options.load
        print(json.dumps(load(url, *map(int, numbers))))
    elif options.soak:
        soak(options.soak, 2 if options.quick else options.layers, options.json)
    else:
        compare(2 if options.quick else options.layers, options.quick, options.json)


def compare(layers: int, quick: bool, path: Path | None) -> None:
    """Put every load on both servers, in turn."""
    record: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "layers": layers, "rows": []}
    if path and path.exists():
        record = json.loads(path.read_text())
    loads = [each for each in product((1, 8, 64), (1, 16)) if not (quick and each == (64, 16))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        prepare(folder, layers)
        done = {(row["system"], row["clients"], row["texts"]) for row in record["rows"]}
        left = [(system, *each) for each in loads for system in SYSTEMS if (system, *each) not in done]
        with ExitStack() as running:
            servers: dict[str, Running] = {}
            if left:
                alone = Engine(folder / "bellm")
                servers = {system: running.enter_context(server(system, folder / system)) for system in SYSTEMS[:2]}
                check([url for url, _ in servers.values()])
            for system, clients, texts in left:
                if system == "engine":
                    row = alone.measure(clients, texts, 64 if quick else 256)
                else:
                    row = measure(system, servers[system], clients, texts, quick)
                record["rows"].append(asdict(row))
                if path:
                    path.write_text(json.dumps(record, indent=1) + "\n")
    Console().print(table([Row(**row) for row in record["rows"]]))


def prepare(folder: Path, layers: int) -> None:
    """Save the first layers of SmolLM2 for both servers."""
    from bellm import Encoder
    from bellm.compress import drop_layers

    full = Encoder.from_pretrained("smollm2", prompt="raw", pooling="mean", max_tokens=128, dtype="float32")
    encoder = drop_layers(full, full.num_layers - layers)
    encoder.save_pretrained(folder / "bellm")
    encoder.model.save_pretrained(folder / "plain")
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.chat_template = None  # sentence-transformers would wrap every text in it.
    tokenizer.save_pretrained(folder / "plain")


def measure(system: str, running: Running, clients: int, texts: int, quick: bool) -> Row:
    """One load on one server."""
    rounds = 8 if texts == 1 and not quick else 2  # With many clients the first round has batches of its own.
    requests = max(clients * rounds, (16 if quick else 128) // texts, 8)
    url, process = running
    before = cpu_seconds(process)
    command = [sys.executable, __file__, "--load", url, str(clients), str(texts), str(requests)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    spent = cpu_seconds(process) - before
    percentiles = 1000 * np.percentile(found["latencies"], (50, 95, 99))
    count = requests * texts
    return Row(system, clients, texts, requests, count / found["seconds"], count / spent, *map(float, percentiles))


@contextmanager
def server(system: str, folder: Path, *options: str) -> Iterator[Running]:
    """A server of the model in a process of its own."""
    if system == "bellm":
        command = [sys.executable, "-m", "bellm", "serve", str(folder), "--port", "0", "--quiet", *options]
    else:
        command = [sys.executable, __file__, "--plain", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[-1], process
        finally:
            process.terminate()
            process.wait(600)


def serve_plainly(folder: str, port: int) -> None:
    """What people write: FastAPI, a function that encodes, a thread for each request."""
    import socket

    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(folder, model_kwargs={"dtype": "float32"}, max_seq_length=128)
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")], device="cpu"
    )
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    app = FastAPI()

    class Texts(BaseModel):
        inputs: list[str]

    def embed(body: Texts) -> list[list[float]]:
        vectors: list[list[float]] = model.encode(body.inputs, show_progress_bar=False).tolist()
        return vectors

    app.post("/embed")(embed)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", port))
        print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_keep_alive=65)).run([bound])


def check(urls: list[str]) -> None:
    """Wait for the servers, warm them up, and compare their vectors of one text."""
    vectors = []
    for url in urls:
        while True:
            try:
                vectors.append(np.array(ask(connect(url), ["The river was quiet."])[0]))
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        load(url, 2, 2, 4)
    ours, theirs = vectors
    assert np.allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(ours).max()), np.abs(ours - theirs).max()


def load(url: str, clients: int, texts: int, requests: int) -> dict[str, Any]:
    """Latencies of requests from so many clients, each of which sends its next one when it has an answer."""
    numbers = iter(range(requests))
    lock, latencies = threading.Lock(), []
    gate = threading.Barrier(clients + 1)
    seed = os.getpid()

    def client() -> None:
        connection = connect(url)
        gate.wait()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            chance = random.Random(f"{seed} {number}")
            sentences = [" ".join(chance.choices(WORDS, k=chance.randint(6, 40))) for _ in range(texts)]
            began = time.perf_counter()
            assert len(ask(connection, sentences)) == texts
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    assert len(latencies) == requests
    return {"seconds": time.perf_counter() - began, "latencies": latencies}


def connect(url: str) -> http.client.HTTPConnection:
    """A connection that is kept."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=3000)


def ask(connection: http.client.HTTPConnection, texts: list[str]) -> list[list[float]]:
    """Vectors of texts from a server."""
    connection.request("POST", "/embed", json.dumps({"inputs": texts}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    vectors: list[list[float]] = json.loads(response.read())
    assert response.status == 200, vectors
    return vectors


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """CPU time that a process and its children have spent."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return float(sum(sum(each.cpu_times()[:2]) for each in family))


class Engine:
    """What `encode` does with such texts in one call, without any server."""

    def __init__(self, folder: Path) -> None:
        from bellm import Encoder

        self._encoder, self._chance = Encoder.from_pretrained(folder), random.Random(0)
        self._encoder.encode(self._texts(16))

    def measure(self, clients: int, texts: int, count: int) -> Row:
        """Embed texts, beside the measurement of servers under this load."""
        sentences = self._texts(count)
        began, spent = time.perf_counter(), time.process_time()
        self._encoder.encode(sentences)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        return Row("engine", clients, texts, 1, count / seconds, count / cpu, 0.0, 0.0, 0.0)

    def _texts(self, count: int) -> list[str]:
        return [" ".join(self._chance.choices(WORDS, k=self._chance.randint(6, 40))) for _ in range(count)]


def table(rows: list[Row]) -> Table:
    """Rows, with ratios to the plain server and to the engine, which were measured next to each other."""
    ratios = ("x plain", "x engine")
    shown = Table("clients", "texts", "server", "texts/s", *ratios, "texts/CPU s", *ratios, "p50 ms", "p95", "p99")
    by_load = {(row.system, row.clients, row.texts): row for row in rows}
    for row in rows:
        others = [by_load[system, row.clients, row.texts] for system in ("plain", "engine")]
        shown.add_row(
            str(row.clients),
            str(row.texts),
            row.system,
            f"{row.texts_per_second:.1f}",
            *(f"{row.texts_per_second / other.texts_per_second:.2f}" for other in others),
            f"{row.texts_per_cpu_second:.1f}",
            *(f"{row.texts_per_cpu_second / other.texts_per_cpu_second:.2f}" for other in others),
            *(f"{value:.0f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms) if value),
        )
    return shown


def soak(minutes: float, layers: int, path: Path | None) -> None:
    """Send two requests a second to a server for a time, and print what became of them and of its memory."""
    statuses: Counter[str] = Counter()
    megabytes: list[float] = []
    chance, farthest = random.Random(0), 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        prepare(folder, layers)
        with server("bellm", folder / "bellm", "--cache-megabytes", "4", "--read-seconds", "5") as (url, process):
            first = np.array(ask(connect(url), ["The river was quiet."])[0])
            began = now = time.monotonic()
            while now < began + 60 * minutes:
                time.sleep(max(0.0, began + sum(statuses.values()) / 2 - now))
                statuses[disturb(url, chance)] += 1
                if sum(statuses.values()) % 60 == 0:  # Twice a minute.
                    found = np.array(ask(connect(url), ["The river was quiet."])[0])
                    farthest = max(farthest, float(np.linalg.norm(found - first) / np.linalg.norm(first)))
                    megabytes.append(psutil.Process(process.pid).memory_info().rss / 2**20)
                now = time.monotonic()
            process.terminate()
            ended = process.wait(600)
    record = {"minutes": minutes, "layers": layers, "ended_with": ended, "statuses": dict(sorted(statuses.items()))}
    record |= {"largest_relative_distance": farthest, "megabytes": [round(each, 1) for each in megabytes]}
    if path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def disturb(url: str, chance: random.Random) -> str:
    """One request, of texts most times; what became of it."""
    kind = chance.choices(("texts", "wrong", "leaves", "long"), (80, 10, 5, 5))[0]
    words = 5000 if kind == "long" else chance.randint(6, 40)
    texts = [" ".join(chance.choices(WORDS, k=words)) for _ in range(chance.choice((1, 1, 4, 16)))]
    wrong = chance.choice((b"{", b'{"inputs": 5}', b'{"inputs": []}', b"\xff", b'{"inputs": "a", "dimensions": -1}'))
    connection = connect(url)
    try:
        body = wrong if kind == "wrong" else json.dumps({"inputs": texts}).encode()
        connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        if kind == "leaves":
            return kind
        response = connection.getresponse()
        answer = json.loads(response.read())
        whole = kind == "wrong" or len(answer) == len(texts)
        return f"{kind} {response.status}" + ("" if whole else " with too few vectors")
    except OSError as error:
        return f"{kind} {type(error).__name__}"
    finally:
        connection.close()


if __name__ == "__main__":
    main()
