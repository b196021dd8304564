"""What all dialects ask for: texts of a request to vectors, within the limits of the server."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from bellm.engine.tokenization import chunk_texts
from bellm.errors import BellmError
from bellm.extras import require_extra
from bellm.serve.batch_queue import BatchQueue, Reservation, Ticket
from bellm.serve.request_errors import (
    CrowdedError,
    QueueFullError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)
from bellm.serve.serve_config import ServeConfig
from bellm.serve.serve_metrics import STAGES, ServeMetrics
from bellm.serve.served_model import ServedModel, TokenRow, with_causal
from bellm.types import InputType, Vectors

if TYPE_CHECKING:
    from bellm.corpus import Index
    from bellm.serve.request_traces import RequestTraces


_TOKENIZED, _CHARACTERS = 128, 50_000  # Of texts that are tokenized in one go.
_NUMBER_BYTES = 16  # Of a number of a vector, as float32 and as JSON.

CALL_HEADERS = (
    "x-request-id",
    "retry-after",
    "x-compute-characters",
    "x-compute-tokens",
    "x-truncated-texts",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)
"""What answers say in their headers; the last four are milliseconds."""


@dataclass(kw_only=True)
class Call:
    """A request on its way, and what is known of it for headers, log and metrics."""

    request: Request
    id: str
    came: float
    """By `time.perf_counter`."""
    model: str | None = None
    num_texts: int = 0
    num_characters: int = 0
    num_tokens: int = 0
    num_truncated: int = 0
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """What was done with it (tokenize, queue, embed), from when to when."""
    room: Reservation | None = None
    """Room in the queue until its rows are there."""
    held_bytes: int = 0
    """Memory of its body and its answer."""
    error: str | None = None
    """Code of the error that it ended with."""

    def seconds(self, stage: str) -> float:
        """How long a stage took."""
        return sum(ended - began for name, began, ended in self.stages if name == stage)

    def headers(self) -> dict[str, str]:
        """Counts, and times in milliseconds, under the names of text-embeddings-inference."""
        if not self.num_texts:
            return {}
        seconds = time.perf_counter() - self.came, *map(self.seconds, STAGES)
        counts = self.num_characters, self.num_tokens, self.num_truncated, *(round(1000 * each) for each in seconds)
        return dict(zip(CALL_HEADERS[2:], map(str, counts), strict=True))


@dataclass(frozen=True)
class Prepared:
    """Texts of a request as rows, not yet in the queue."""

    model: ServedModel
    rows: list[TokenRow]


class EmbeddingService:
    """Models, their queue and the thread that tokenizes; entered when the server starts, left when it ends."""

    def __init__(
        self, models: Mapping[str, ServedModel], config: ServeConfig, index: "Index | None", metrics: ServeMetrics
    ) -> None:
        self.config, self.index, self.metrics = config, index, metrics
        self.models = with_causal(models)
        self.default = next(iter(models.values()))
        self.queue = BatchQueue(
            max_tokens=config.max_queue_tokens,
            max_batch_tokens=config.max_batch_tokens,
            timeout=config.timeout,
            cache_bytes=config.cache_megabytes << 20,
            on_batch=metrics.count_batch,
        )
        self.traces = _make_traces(config.traces_to)
        self.is_draining = False
        self.num_calls = 0
        """Requests that are being answered."""
        self.held_bytes = 0
        """Memory of their bodies and answers."""
        self.count_connections: Callable[[], int] = lambda: self.num_calls

    async def __aenter__(self) -> "EmbeddingService":
        """Start the worker and wait until it is warm."""
        self._tokenizing = ThreadPoolExecutor(1, "bellm-tokenize")
        self._tokenizing_long = ThreadPoolExecutor(1, "bellm-tokenize-long")
        self.queue.start(list(self.models.values()))
        await self.queue.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_draining = True
        await self.queue.close()
        for threads in (self._tokenizing, self._tokenizing_long):
            threads.shutdown(wait=False, cancel_futures=True)
        if self.traces:
            await asyncio.to_thread(self.traces.close)

    def check_alive(self) -> None:
        """Raise an UnavailableError where only a new start helps."""
        if self.queue.fault:
            raise UnavailableError("The worker has crashed. The server must be started again.")
        if self.queue.is_stalled:
            raise UnavailableError(f"A batch has taken more than {self.config.timeout:g} s.")

    def check_ready(self) -> None:
        """Raise an UnavailableError where the server takes no requests."""
        self.check_alive()
        if self.is_draining:
            raise UnavailableError("The server is shutting down.")

    def check_crowd(self) -> None:
        """Raise a CrowdedError where there are more connections than the server takes."""
        if self.count_connections() > self.config.max_connections:
            limit = self.config.max_connections
            raise CrowdedError(f"There are more connections than the {limit} that the server takes.", retry_after=1)

    def get_model(self, name: str | None, field: str = "model") -> ServedModel:
        """The model of a name; the first where a request names none."""
        if name is None:
            return self.default
        if name not in self.models:
            raise UnknownModelError(f"{name!r:.100} is not served here: {', '.join(self.models)}.", field)
        return self.models[name]

    def hold(self, call: Call, num_bytes: int) -> None:
        """Count memory of a request until it is answered; a QueueFullError where requests hold too much already."""
        limit = self.config.requests_megabytes << 20
        others = self.held_bytes - call.held_bytes
        if others and self.held_bytes + num_bytes > limit:
            raise QueueFullError(
                f"Requests and their answers take {others >> 20} MiB, and the server has "
                f"{self.config.requests_megabytes} MiB for all: send it again later.",
                retry_after=self.queue.seconds_for(self.queue.num_tokens),
            )
        self.held_bytes += num_bytes
        call.held_bytes += num_bytes

    def release(self, call: Call) -> None:
        """Count a request no more."""
        self.held_bytes -= call.held_bytes
        call.held_bytes = 0
        if call.room:
            call.room.free()

    async def in_thread(self, function: Any, *arguments: Any, is_long: bool = False) -> Any:
        """Run what takes time in the thread that tokenizes, so that the event loop goes on; what is long in another."""
        thread = self._tokenizing_long if is_long else self._tokenizing
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

    async def in_parts(self, function: Any, texts: Sequence[str], *arguments: Any) -> list[Any]:
        """Call a function in these threads with a few texts at a time: those of other requests come in between."""
        parts = chunk_texts(texts, max_texts=_TOKENIZED, max_characters=_CHARACTERS)
        return [
            await self.in_thread(function, part, *arguments, is_long=sum(map(len, part)) > 2 * _CHARACTERS)
            for part in parts
        ]

    async def prepare(
        self,
        call: Call,
        model: ServedModel,
        texts: Sequence[str],
        input_type: InputType,
        *,
        truncate: bool = True,
        field: str = "input",
    ) -> Prepared:
        """Tokenize the texts of a request.

        Raises:
            RequestError: One is too long and `truncate` is false; `field` is where they stand in the body.
        """
        began = time.perf_counter()
        try:
            found = await self.in_parts(model.rows, texts, input_type)
            rows = [row for part, _ in found for row in part]
            num_truncated = sum(count for _, count in found)
            if num_truncated and not truncate:
                index = await self.in_thread(_first_truncated, model, texts, input_type, is_long=True)
                raise RequestError(
                    f"{field}[{index}] has more than {model.max_tokens} tokens, the most that {model.name} reads with "
                    "its prompt. Split it, or send truncate=true.",
                    field,
                )
        except RequestError:
            raise
        except BellmError as error:
            raise RequestError(str(error), field) from error
        call.model = model.name
        call.num_texts += len(texts)
        call.num_characters += sum(map(len, texts))
        call.num_tokens += sum(row.num_tokens for row in rows)
        call.num_truncated += num_truncated
        call.stages.append(("tokenize", began, time.perf_counter()))
        return Prepared(model, rows)

    async def embed(self, call: Call, prepared: Prepared) -> Vectors:
        """Vectors of prepared texts, as soon as the worker has them.

        Raises:
            RequestError: There is no room, or the model fails.
        """
        self.hold(call, _NUMBER_BYTES * len(prepared.rows) * prepared.model.embedder.embedding_dim)
        if call.room:
            call.room.free()
        ticket = self.queue.submit(prepared.model, prepared.rows)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self.queue.cancel(ticket)
            raise
        finally:
            self._time(call, ticket)

    def _time(self, call: Call, ticket: Ticket) -> None:
        now = time.perf_counter()
        began = ticket.began or now
        call.stages += [("queue", ticket.came, began), ("embed", began, now)]


def _first_truncated(model: ServedModel, texts: Sequence[str], input_type: InputType) -> int:
    return next(index for index, text in enumerate(texts) if model.rows([text], input_type)[1])


def _make_traces(url: str | None) -> "RequestTraces | None":
    if url is None:
        return None
    require_extra("traces", "traces_to", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
    from bellm.serve.request_traces import RequestTraces, otlp_exporter

    return RequestTraces(otlp_exporter(url))
