"""Run an application on a port with uvicorn: said once ready, drained on SIGTERM, clients that send nothing let go."""

import asyncio
import ipaddress
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from bellm.errors import BellmError, BellmWarning, warn

if TYPE_CHECKING:
    from bellm.serve.serve_config import ServeConfig
    from bellm.serve.service import EmbeddingService

_KEEP_ALIVE = 65  # Seconds that a connection may be idle: longer than clients and load balancers keep theirs.
_NOTICE = 0.25  # Seconds in which new requests are told that the server ends, at least.
_LAST_COMERS = 1.0  # Seconds that a connection has to send its first request once the port is closed.
_POLL = 0.02  # Seconds between looks at the requests that are still being answered.


def run_server(app: Starlette, bound: socket.socket, *, on_ready: Callable[[str], object]) -> None:
    """Serve an application of `create_app` until SIGTERM or Ctrl-C, then let requests end and return.

    From the signal on `/health` fails and new requests get 503; those that were accepted have `drain_seconds`. Another
    signal ends at once.

    Args:
        app: The application.
        bound: A socket of `bind_port`.
        on_ready: Called with the address once requests are answered.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and all is ended.
        BellmError: A model failed on its first texts.
    """
    server = make_server(app, on_ready)
    warn_unprotected(bound, server.service.config)
    allow_files()
    asyncio.run(server.serve([bound]))
    if server.fault:
        raise server.fault
    if server.signal == signal.SIGINT:
        raise KeyboardInterrupt("every request that was accepted is answered.")


def warn_unprotected(bound: socket.socket, config: "ServeConfig") -> None:
    """Say so where others than this machine reach a server that asks for no key."""
    host, port = bound.getsockname()[:2]
    if config.api_key is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        warn(
            f"Whoever reaches {host}:{port} may ask this server: set a key with --api-key or BELLM_API_KEY.",
            BellmWarning,
        )


def allow_files() -> None:
    """Let this process open as many files, and so connections, as it may: the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def make_server(app: Starlette, on_ready: Callable[[str], object]) -> "DrainingServer":
    """Make the server of `run_server`, for an event loop of one's own: `await server.serve([bound])`."""
    service: EmbeddingService = app.state.service
    protocol = partial(ImpatientProtocol, read_seconds=service.config.read_seconds)
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )
    return DrainingServer(config, service, on_ready)


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, which lets go of clients that do not send a whole head, or read their answer, in time."""

    def __init__(self, *arguments: Any, read_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_seconds = read_seconds
        self._patience: asyncio.TimerHandle | None = None
        self._reader_patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(self._read_seconds, self._lose_patience)

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request's head, unless it is there."""
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._patience:
            self._patience.cancel()
            self._patience = None
        elif not answering and not self._patience:
            self._patience = self.loop.call_later(self._read_seconds, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        for timer in filter(None, (self._patience, self._reader_patience)):
            timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait until the client has read some of its answer."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Wait no more."""
        super().resume_writing()
        if self._reader_patience:
            self._reader_patience.cancel()
            self._reader_patience = None

    def on_response_complete(self) -> None:
        """Wait until the client has read the end of its answer."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        if not self._reader_patience:
            self._reader_patience = self.loop.call_later(self._read_seconds, self._lose_reader)

    def _lose_reader(self) -> None:
        self._reader_patience = None
        if self.transport.get_write_buffer_size():  # To close it would wait for the reader.
            self.transport.abort()

    def _lose_patience(self) -> None:
        self._patience = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which after a signal answers what it has accepted before it closes its port."""

    def __init__(self, config: uvicorn.Config, service: "EmbeddingService", on_ready: Callable[[str], object]) -> None:
        super().__init__(config)
        self.service, self._on_ready = service, on_ready
        service.count_connections = lambda: len(self.server_state.connections)
        self._draining: asyncio.Task[None] | None = None
        self.signal: int | None = None
        """What asked it to end."""
        self.fault: BaseException | None = None
        """Why it could not start."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and SIGINT, where this is the main thread; uvicorn would raise them again in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin to drain; asked again, end at once."""
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self.signal = number
        self.service.is_draining = True
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load, warm up and listen; then say so."""
        await super().startup(sockets)
        if not self.lifespan.should_exit and sockets:
            host, port = sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            self._on_ready(f"http://{host}:{port}")
        else:
            self.fault = self.service.queue.fault or BellmError("The server could not start.")

    async def _drain(self) -> None:
        """Answer what is there; then close the port, and answer those who had just come."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.service.config.drain_seconds
        await asyncio.sleep(_NOTICE)
        while self.service.num_calls and loop.time() < until:
            await asyncio.sleep(_POLL)
        for listener in self.servers:
            listener.close()
        until = min(until, loop.time() + _LAST_COMERS)
        while any(map(_has_not_asked, self.server_state.connections)) and loop.time() < until:
            await asyncio.sleep(_POLL)
        self.should_exit = True


def _has_not_asked(connection: Any) -> bool:
    return connection.cycle is None or not connection.cycle.response_complete
