"""The application on Ray Serve: replicas on the machines of a cluster, more under load, new ones for those that die.

Ray's proxies take requests and give each to one of two replicas that has fewer. Each replica is the application of
`create_app`, with its own queue, limits and worker; Ray asks it for its health and replaces it where it is dead.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from bellm.corpus.ray_cluster import ray_cluster, share_cluster, use_share
from bellm.errors import BellmError, MissingExtraError
from bellm.serve.api import create_app
from bellm.serve.serve_config import ServeConfig
from bellm.types import Embedder

try:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, HTTPOptions
except ImportError as error:
    raise MissingExtraError("The engine ray needs Ray Serve: pip install 'bellm[serve-ray]'.") from error

_NAME = "bellm"
_KEEP_ALIVE = 65  # Seconds, as of the server without Ray.
_HEALTH_PERIOD = 5.0  # Seconds between questions for a replica's health; after three bad answers it is replaced.


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas there are; a BellmError where there cannot be so many."""

    least: int = 1
    most: int = 1
    requests: int = 32
    """Requests that each has at a time; where they have more, Ray starts others, up to `most`."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise BellmError(f"--replicas {self.least}:{self.most} cannot be: give 2, or 1:4 for one to four.")
        if self.requests < 1:
            raise BellmError(f"--requests-per-replica {self.requests} is too small: give at least 1.")


def run_on_ray(
    load: Callable[[], Mapping[str, Embedder]],
    config: ServeConfig,
    bound: socket.socket,
    *,
    replicas: Replicas,
    index: str | Path | None = None,
    on_ready: Callable[[str], object],
) -> None:
    """Serve an application on a Ray cluster until SIGTERM or Ctrl-C, then let requests end and return.

    Args:
        load: Makes the embedders by their names; every replica calls it, so that it finds the same on all machines.
        config: As of `create_app`, for each replica.
        bound: A socket of `bind_port`, whose address Ray's proxies take over.
        replicas: How many there are.
        index: As of `create_app`.
        on_ready: Called with the address once requests are answered.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and all is ended.
        BellmError: A replica could not start, or Ray Serve runs at another address already.
    """
    host, port = bound.getsockname()[:2]
    bound.close()
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    with ray_cluster():
        _, cpus, gpus = share_cluster(replicas.most)
        app = _deployment(load, config, replicas, index).options(
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        )
        try:
            serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=_KEEP_ALIVE))
            serve.run(app.bind(), name=_NAME)
        except RuntimeError as error:
            raise BellmError(_reason(str(error))) from error
        try:
            number = _wait_for_signal(lambda: on_ready(f"http://{host}:{port}"))
            serve.delete(_NAME)  # Requests that it has are answered; Ray's proxies give it no others.
        finally:
            serve.shutdown()
    if number == signal.SIGINT:
        raise KeyboardInterrupt("every request that was accepted is answered.")


def _deployment(
    load: Callable[[], Mapping[str, Embedder]], config: ServeConfig, replicas: Replicas, index: str | Path | None
) -> Any:
    directory = os.getcwd()

    def build() -> Starlette:
        os.chdir(directory)
        use_share()
        app = create_app(load(), config, index=index)
        app.state.service.metrics.labels = {"replica": serve.get_replica_context().replica_tag}
        return app

    scaling = AutoscalingConfig(
        min_replicas=replicas.least, max_replicas=replicas.most, target_ongoing_requests=replicas.requests
    )

    @serve.deployment(
        name=_NAME,
        autoscaling_config=scaling if replicas.least < replicas.most else None,
        num_replicas=replicas.least if replicas.least == replicas.most else None,
        max_ongoing_requests=config.max_connections,  # A replica's own queue knows when it is full.
        health_check_period_s=_HEALTH_PERIOD,
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=0.1,
    )
    @serve.ingress(build)
    class Replica:
        """The application in an actor of Ray."""

        def check_health(self) -> None:
            """Fail where only a new start helps."""
            self.app.state.service.check_alive()  # type: ignore[attr-defined]

    return Replica


def _wait_for_signal(begun: Callable[[], object]) -> int:
    """The first SIGTERM or SIGINT; another one then does what it always does."""
    came: list[int] = []
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: object) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        asked.set()

    for number in before:
        signal.signal(number, note)
    begun()
    asked.wait()
    return came[0]


def _reason(message: str) -> str:
    """What a replica met, in one line: the last one of Ray's message that names an error."""
    lines = [line.strip() for line in message.splitlines()]
    errors = [line.partition("Error: ")[2] for line in lines if "Error: " in line]
    return f"Ray Serve could not start: {(errors or lines)[-1]}"
