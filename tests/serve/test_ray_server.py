"""`bellm serve --engine ray`: the same vectors, a replica killed under load, and the end."""

import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from tests.serve.servers import ask, wait_for
from tests.serve.test_serve_command import bellm_serve

TEXTS = ["Snow fell all night.", "A heron waits."]


def replicas(server: psutil.Process) -> list[psutil.Process]:
    """The actors that serve, of a cluster that a process has started."""
    return [each for each in server.children(recursive=True) if "ServeReplica" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_replica_that_is_killed_under_load_loses_nothing(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    """OpenAI's client sends again what it got no answer to, as it does by itself."""
    pytest.importorskip("aiohttp", reason="no Ray Serve: pip install 'bellm[serve-ray]'")
    openai = pytest.importorskip("openai", reason="no openai: pip install openai")
    expected = tiny_encoder.encode(TEXTS)
    answered: list[int] = []
    late: list[int] = []
    failures: list[BaseException] = []
    end = threading.Event()

    def work(url: str, number: int) -> None:
        try:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8) as client:
                while not end.is_set():
                    found = client.embeddings.create(model="tiny", input=[f"Day {len(answered)} of {number}.", *TEXTS])
                    assert np.allclose([each.embedding for each in found.data[1:]], expected, atol=1e-5)
                    answered.append(number)
        except BaseException as error:
            failures.append(error)

    def work_to_the_end(url: str) -> None:
        try:
            while True:
                answer = ask(url, "/v1/embeddings", {"input": TEXTS})
                late.append(answer.status)
                if answer.status != 200:
                    return
        except ConnectionError:
            return
        except BaseException as error:
            failures.append(error)

    options = ["--name", "tiny", "--engine", "ray", "--replicas", "2", "--drain-seconds", "60"]
    with bellm_serve(tiny_folder, *options) as (process, url):
        server = psutil.Process(process.pid)
        assert ask(url, "/health").body == {"status": "ready"}
        assert ',replica="' in ask(url, "/metrics").body.decode()
        first = replicas(server)
        assert len(first) == 2
        clients = [threading.Thread(target=work, args=[url, number]) for number in range(6)]
        for client in clients:
            client.start()
        wait_for(lambda: len(answered) > 100 or bool(failures))
        first[0].kill()
        wait_for(lambda: len(set(replicas(server)) - set(first)) == 1 or bool(failures))
        count = len(answered)
        wait_for(lambda: len(answered) > count + 200 or bool(failures))
        end.set()
        for client in clients:
            client.join()
        assert not failures, failures
        clients = [threading.Thread(target=work_to_the_end, args=[url]) for _ in range(4)]
        for client in clients:
            client.start()
        wait_for(lambda: len(late) > 20)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        _, err = process.communicate(timeout=120)
    assert not failures, failures
    assert set(late) <= {200, 404, 503}
    assert process.returncode == 0, err


def test_what_ray_is_asked_for_is_checked(tiny_folder: Path) -> None:
    for arguments, words in (
        (["--replicas", "2"], "--replicas and --requests-per-replica belong to --engine ray"),
        (["--engine", "ray", "--replicas", "many"], "--replicas many is no number: give 2, or 1:4"),
        (["--engine", "ray", "--replicas", "4:1"], "--replicas 4:1 cannot be"),
        (["--engine", "ray", "--replicas", "0"], "--replicas 0:0 cannot be"),
        (["--engine", "ray", "--requests-per-replica", "0"], "--requests-per-replica 0 is too small"),
    ):
        done = CliRunner().invoke(app, ["serve", str(tiny_folder), "--port", "0", *arguments])
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        [line] = done.stderr.splitlines()
        assert words in line
