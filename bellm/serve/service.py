"""What all dialects ask for: texts of a request to vectors, within the limits of the server."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from bellm.engine.tokenization import chunk_texts
from bellm.errors import BellmError
from bellm.serve.batch_queue import BatchQueue, Ticket
from bellm.serve.request_errors import RequestError, UnavailableError, UnknownModelError
from bellm.serve.serve_config import ServeConfig
from bellm.serve.serve_metrics import ServeMetrics
from bellm.serve.served_model import ServedModel, TokenRow
from bellm.types import InputType, Vectors

if TYPE_CHECKING:
    from bellm.corpus import Index


_TOKENIZED, _CHARACTERS = 128, 50_000  # Of texts that are tokenized in one go.

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
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    embed_seconds: float = 0.0
    error: str | None = None
    """Code of the error that it ended with."""

    def headers(self) -> dict[str, str]:
        """Counts, and times in milliseconds, under the names of text-embeddings-inference."""
        if not self.num_texts:
            return {}
        seconds = time.perf_counter() - self.came, self.tokenize_seconds, self.queue_seconds, self.embed_seconds
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
        plain = {each.name: each for each in map(ServedModel.causal, models.values()) if each}
        self.models = {**models, **plain}
        self.default = next(iter(models.values()))
        self.queue = BatchQueue(
            max_tokens=config.max_queue_tokens,
            max_batch_tokens=config.max_batch_tokens,
            timeout=config.timeout,
            cache_bytes=config.cache_megabytes << 20,
            on_batch=metrics.count_batch,
        )
        self.is_draining = False
        self.num_calls = 0
        """Requests that are being answered."""

    async def __aenter__(self) -> "EmbeddingService":
        """Start the worker and wait until it is warm."""
        self._tokenizing = ThreadPoolExecutor(1, "bellm-tokenize")
        self.queue.start(list(self.models.values()))
        await self.queue.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_draining = True
        await self.queue.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

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

    def get_model(self, name: str | None, field: str = "model") -> ServedModel:
        """The model of a name; the first where a request names none."""
        if name is None:
            return self.default
        if name not in self.models:
            raise UnknownModelError(f"{name!r:.100} is not served here: {', '.join(self.models)}.", field)
        return self.models[name]

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        """Run what takes long in the thread that tokenizes, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function, *arguments)

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
        rows: list[TokenRow] = []
        num_truncated = 0
        try:
            for part in chunk_texts(texts, max_texts=_TOKENIZED, max_characters=_CHARACTERS):  # Others come in between.
                found, cut = await self.in_thread(model.rows, part, input_type)
                rows, num_truncated = rows + found, num_truncated + cut
            if num_truncated and not truncate:
                index = await self.in_thread(_first_truncated, model, texts, input_type)
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
        call.tokenize_seconds += time.perf_counter() - began
        return Prepared(model, rows)

    async def embed(self, call: Call, prepared: Prepared) -> Vectors:
        """Vectors of prepared texts, as soon as the worker has them.

        Raises:
            RequestError: There is no room, the time is up, or the model fails.
            ClientDisconnect: Nobody waits for the answer any more.
        """
        ticket = self.queue.submit(prepared.model, prepared.rows)
        gone = asyncio.ensure_future(_disconnected(call.request))
        left = self.config.timeout - (time.perf_counter() - call.came)
        try:
            ends: set[asyncio.Future[Any]] = {ticket.future, gone}
            await asyncio.wait(ends, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if ticket.future.done():
                self._time(call, ticket)
                return ticket.future.result()
        finally:
            gone.cancel()
            if not ticket.future.done():
                self.queue.cancel(ticket)
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect
        wait = self.queue.seconds_for(self.queue.num_tokens)
        raise UnavailableError(f"There are no vectors after {self.config.timeout:g} s.", retry_after=wait)

    def _time(self, call: Call, ticket: Ticket) -> None:
        now, began = time.perf_counter(), ticket.began or ticket.came
        call.queue_seconds += began - ticket.came
        call.embed_seconds += now - began if ticket.began else 0.0


async def _disconnected(request: Request) -> None:
    """Wait until the client has left; its whole body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _first_truncated(model: ServedModel, texts: Sequence[str], input_type: InputType) -> int:
    return next(index for index, text in enumerate(texts) if model.rows([text], input_type)[1])
