"""The application: endpoints of all dialects behind one gate, which knows limits, keys, request ids and errors."""

import asyncio
import hmac
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellm.serve.api_pages import PAGE_ENDPOINTS
from bellm.serve.cohere_dialect import COHERE_ENDPOINTS
from bellm.serve.endpoints import Endpoint, json_response
from bellm.serve.openai_dialect import OPENAI_ENDPOINTS
from bellm.serve.operator_endpoints import OPERATOR_ENDPOINTS
from bellm.serve.request_bodies import read_fields
from bellm.serve.request_errors import (
    Dialect,
    FramingError,
    MalformedError,
    MediaTypeError,
    MethodError,
    RequestError,
    ServerFaultError,
    SlowClientError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnknownPathError,
    WrongHostError,
)
from bellm.serve.serve_config import ServeConfig
from bellm.serve.serve_metrics import ServeMetrics
from bellm.serve.served_model import as_models
from bellm.serve.service import CALL_HEADERS, Call, EmbeddingService
from bellm.serve.tei_dialect import TEI_ENDPOINTS
from bellm.types import Embedder

ENDPOINTS = (*OPENAI_ENDPOINTS, *TEI_ENDPOINTS, *COHERE_ENDPOINTS, *OPERATOR_ENDPOINTS, *PAGE_ENDPOINTS)

_BYTES_PER_TOKEN = 4  # Of a body that is being read, roughly.
_COPIES = 4  # Of a body: its bytes, their parts, its texts, these in their prompt.
_CLIENT_LEFT = 499  # As nginx has it, in the log alone.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CALL = "bellm.call"

log = logging.getLogger("bellm.serve")


def create_app(
    models: Embedder | Mapping[str, Embedder],
    config: ServeConfig | None = None,
    *,
    index: str | Path | None = None,
) -> Starlette:
    """Make an ASGI application that serves embedders; it embeds once its lifespan has begun.

    Args:
        models: One embedder, or several by the names that requests give; the first is that of requests without a name.
        config: Limits, key and batching.
        index: An indexed corpus that `/search` searches with the first embedder, the one that embedded it.

    Raises:
        BellmError: There is no embedder, or the corpus is another's.
    """
    served, metrics = as_models(models), ServeMetrics()
    opened = None
    if index is not None:
        from bellm.corpus import Index

        opened = Index.open(index, next(iter(served.values())).embedder)
    config = config or ServeConfig()
    service = EmbeddingService(served, config, opened, metrics)
    metrics.watch(service)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routes = [Route(path, Answering(service, methods)) for path, methods in by_path.items()]
    middleware = [Middleware(Gate, service=service, paths=frozenset(by_path))]
    if config.allow_origin:
        cors: dict[str, Any] = {"allow_origins": [config.allow_origin], "allow_methods": ["GET", "POST"]}
        cors |= {
            "allow_headers": ["authorization", "content-type", "x-request-id"],
            "expose_headers": list(CALL_HEADERS),
        }
        middleware.insert(0, Middleware(CORSMiddleware, **cors))
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = _unknown_path
    app.state.service = service
    return app


class Gate:
    """What every request passes: its id, the headers of its answer, the log and the metrics."""

    def __init__(self, app: ASGIApp, service: EmbeddingService, paths: frozenset[str]) -> None:
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, service = Request(scope, receive), self._service
        given = request.headers.get("x-request-id", "")
        call_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        call = scope[_CALL] = Call(request=request, id=call_id, came=time.perf_counter())
        status = _CLIENT_LEFT

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {"x-request-id": call.id, "x-content-type-options": "nosniff", **call.headers()}
                if service.is_draining:
                    added["connection"] = "close"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        service.num_calls += 1
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            service.num_calls -= 1
            service.release(call)
            self._record(call, scope, status)

    def _record(self, call: Call, scope: Scope, status: int) -> None:
        seconds = time.perf_counter() - call.came
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._service.metrics.count_call(call, path, status, seconds)
        trace = self._service.traces.record(call, path, status) if self._service.traces else None
        if not log.isEnabledFor(logging.INFO):
            return
        line = {"time": round(time.time(), 3), "id": call.id}
        line |= {"method": scope["method"][:20], "path": scope["path"][:200]}
        line |= {"status": status, "ms": round(1000 * seconds, 1)}
        if call.num_texts:
            line |= {"model": call.model, "texts": call.num_texts, "tokens": call.num_tokens}
            line |= {"truncated": call.num_truncated, "queue_ms": round(1000 * call.seconds("queue"), 1)}
            line |= {"embed_ms": round(1000 * call.seconds("embed"), 1)}
        line |= {name: value for name, value in (("error", call.error), ("trace", trace)) if value}
        log.info(json.dumps(line))


class Answering:
    """Answers the requests of one path: checks the key, reads the body, calls the handler, writes errors."""

    def __init__(self, service: EmbeddingService, endpoints: Mapping[str, Endpoint]) -> None:
        self._service, self._endpoints = service, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        call: Call = scope[_CALL]
        method = "GET" if call.request.method == "HEAD" else call.request.method
        endpoint = self._endpoints.get(method)
        dialect: Dialect = (endpoint or next(iter(self._endpoints.values()))).dialect
        try:
            if endpoint is None:
                raise MethodError(f"{scope['path']} takes {' or '.join(self._endpoints)}.")
            response = await self._answer(endpoint, call)
        except RequestError as error:
            response = _error_response(error, call, dialect)
        except ClientDisconnect:
            call.error = "client_left"
            return
        except Exception:
            log.exception("request %s failed", call.id)
            response = _error_response(ServerFaultError("The server failed; its log says why."), call, dialect)
        await response(scope, receive, send)

    async def _answer(self, endpoint: Endpoint, call: Call) -> Response:
        service = self._service
        if not endpoint.is_open:
            _check_host(call.request, service.config.allow_hosts)
            _check_key(call.request, service.config.api_key)
            service.check_crowd()
        if endpoint.body is None:
            return await endpoint.handler(service, call, None)
        service.check_ready()
        if call.request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise MediaTypeError("Send the body as JSON, with the header Content-Type: application/json.")
        body = await _read_body(service, call)
        return await _in_time(service, call, _handle(endpoint, service, call, body))


_LONG_BODY = 1 << 16  # Bytes from which it is read in a thread.


async def _handle(endpoint: Endpoint, service: EmbeddingService, call: Call, body: bytes) -> Response:
    assert endpoint.body
    read = read_fields, endpoint.body, body, service.config.max_texts
    fields = await service.in_thread(*read, is_long=True) if len(body) > _LONG_BODY else read[0](*read[1:])
    return await endpoint.handler(service, call, fields)


async def _in_time(service: EmbeddingService, call: Call, handling: Coroutine[Any, Any, Response]) -> Response:
    """The answer of a handler, which is given up when the time is up or its client has left."""
    left = service.config.timeout - (time.perf_counter() - call.came)
    try:
        async with asyncio.timeout(max(left, 0)) as deadline:
            gone = asyncio.ensure_future(_await_end(call.request, deadline))
            try:
                return await handling
            finally:
                gone.cancel()
    except TimeoutError:
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect from None
    wait = service.queue.seconds_for(service.queue.num_tokens)
    raise UnavailableError(f"There are no vectors after {service.config.timeout:g} s.", retry_after=wait)


async def _await_end(request: Request, deadline: asyncio.Timeout) -> None:
    """Let the time be up when the client leaves; its whole body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    deadline.reschedule(0)


def _check_host(request: Request, allowed: tuple[str, ...]) -> None:
    given = request.headers.get("host", "")
    name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
    if allowed and name.lower() not in allowed:
        raise WrongHostError(f"This server is {' or '.join(allowed)}, not {given!r:.80}: allow that with --allow-host.")


def _check_key(request: Request, api_key: str | None) -> None:
    if api_key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        raise UnauthorizedError("The key is missing or wrong: send the header Authorization: Bearer KEY.")


def _declared_length(request: Request, max_body: int) -> int:
    if {"content-length", "transfer-encoding"} <= set(request.headers):  # A proxy may take the other one.
        raise FramingError("The request has Content-Length and Transfer-Encoding: send one of them.")
    declared = request.headers.get("content-length", "0")
    length = int(declared) if declared.isdecimal() else 0
    if length > max_body:
        raise TooLargeError(f"The body has {length} bytes, and the server reads {max_body}: send fewer texts.")
    return length


async def _read_body(service: EmbeddingService, call: Call) -> bytes:
    """The body of a request, as far as the server reads it; its room is held before that, or as it comes."""
    config, room = service.config, service.queue.reserve()
    call.room, held = room, 0

    def hold(length: int) -> None:
        nonlocal held
        room.grow(max(1, length // _BYTES_PER_TOKEN))
        if length > held:
            service.hold(call, _COPIES * (length - held))
            held = length

    hold(_declared_length(call.request, config.max_body))
    parts, length = [], 0
    try:
        async with asyncio.timeout(config.read_seconds):
            async for part in call.request.stream():
                length += len(part)
                if length > config.max_body:
                    raise TooLargeError(f"The body has more than {config.max_body} bytes: send fewer texts.")
                hold(length)
                parts.append(part)
    except TimeoutError as error:
        raise SlowClientError(f"The body was not there after {config.read_seconds:g} s.") from error
    if not length:
        raise MalformedError("The body is empty: send a JSON object.")
    return b"".join(parts)


def _error_response(error: RequestError, call: Call, dialect: Dialect) -> Response:
    call.error = error.code
    headers = dict(error.headers)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.closes:
        headers["connection"] = "close"
    return json_response(error.body(dialect), error.status, headers)


async def _unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    message = "There is no such path; /docs lists them."
    response = _error_response(UnknownPathError(message), scope[_CALL], "openai")
    await response(scope, receive, send)
