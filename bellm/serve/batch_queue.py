"""Texts of all requests wait in one queue, bounded in tokens; one thread owns the models and embeds batch after batch.

Requests share the worker fairly (start-time fair queueing): a text's turn is the queue's clock when its request came
plus the tokens of that request up to it, the earliest turn is next, and the clock is the turn of the text that was
taken last. So a request waits for about as many tokens of every other one as it has itself, however long others are,
and none waits forever.
"""

import asyncio
import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bellm.errors import BellmError, MemoryLimitError
from bellm.serve.request_errors import QueueFullError, RequestError, ServerFaultError, TooLargeError, UnavailableError
from bellm.serve.served_model import ServedModel, TokenRow
from bellm.types import Vectors

_LAST_BATCH = 10.0  # Seconds that a worker has to end its batch, when the server ends.
_MEMORY = 0.8  # Weight of what is known of the speed against the batch that has just ended.
_STALE = 1000  # Places in the queue whose text is embedded or given up, before they are cleared.

Delivered = list[Vectors | Exception]
"""The vector of each row of a batch, or why it has none."""


@dataclass(eq=False)
class Ticket:
    """A request in the queue; its vectors come one by one."""

    vectors: Vectors
    future: "asyncio.Future[Vectors]"
    missing: int
    rows: "list[QueuedRow]" = field(default_factory=list)
    came: float = field(default_factory=time.perf_counter)
    began: float | None = None
    """When the first batch with a text of it began."""


@dataclass(eq=False, slots=True)
class QueuedRow:
    """A text that waits or is being embedded, for one or more places in requests."""

    model: ServedModel
    row: TokenRow
    waiters: dict[Ticket, list[int]] = field(default_factory=dict)
    is_taken: bool = False


@dataclass(frozen=True)
class BatchRecord:
    """What the worker did in one go."""

    num_rows: int
    num_tokens: int
    budget: int
    seconds: float


class Reservation:
    """Room in the queue for a request whose tokens are not known yet."""

    def __init__(self, queue: "BatchQueue") -> None:
        self._queue, self._num_tokens = queue, 0

    def grow(self, num_tokens: int) -> None:
        """Hold room for so many tokens in all, or for what the queue has in all; a QueueFullError where it is taken."""
        more = min(num_tokens, self._queue.max_tokens) - self._num_tokens
        if more > 0:
            self._queue.check_room(more)
            self._queue.count(more)
            self._num_tokens += more

    def free(self) -> None:
        """Hold nothing any more."""
        self._queue.count(-self._num_tokens)
        self._num_tokens = 0


class VectorMemory:
    """Vectors of the texts that came last, in so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Vectors, int]] = OrderedDict()

    def get(self, key: Hashable) -> Vectors | None:
        """The vector of a key, which becomes the youngest."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, vector: Vectors, num_bytes: int) -> None:
        """Keep a vector, and forget the oldest where there is no more room; `num_bytes` is what the key takes."""
        if key in self._kept:
            return
        size = vector.nbytes + num_bytes + 400
        self._kept[key] = vector.copy(), size
        self._left -= size
        while self._left < 0:
            self._left += self._kept.popitem(last=False)[1][1]


class BatchQueue:
    """The queue and its worker. All methods but those of the worker are called on the event loop's thread."""

    def __init__(
        self,
        *,
        max_tokens: int,
        max_batch_tokens: int | None,
        timeout: float,
        cache_bytes: int = 0,
        on_batch: Callable[[BatchRecord], object] = lambda _: None,
    ) -> None:
        self.max_tokens, self._max_batch_tokens, self._timeout = max_tokens, max_batch_tokens, timeout
        self._on_batch = on_batch
        self._memory = VectorMemory(cache_bytes) if cache_bytes else None
        self._open_rows: dict[Hashable, QueuedRow] = {}
        self._heaps: dict[str, list[tuple[int, int, QueuedRow]]] = {}
        self._order, self._clock = itertools.count(), 0
        self._waiting = threading.Condition()
        self._is_closing, self._busy_since = False, None  # type: bool, float | None
        self._speed: float | None = None
        self.num_tokens = 0
        """Tokens that wait, are embedded, or are expected of requests that are being read."""
        self.fault: BaseException | None = None
        """What ended the worker."""

    def start(self, models: Sequence[ServedModel]) -> None:
        """Start the worker, which embeds two texts with every model, so that the first request finds it warm."""
        self._loop = asyncio.get_running_loop()
        self._probes = {model.name: model.rows(["A heron waits.", "Snow fell."], "text")[0] for model in models}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, args=[list(models)], name="bellm-serve", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Wait until every model has embedded its first texts; raises what a model raised."""
        await self._ready

    async def close(self) -> None:
        """Let the worker end after its batch; what waits then is refused."""
        with self._waiting:
            self._is_closing = True
            self._waiting.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, _LAST_BATCH)
        self._refuse_all(UnavailableError("The server is shutting down."))

    @property
    def is_stalled(self) -> bool:
        """Whether a batch takes longer than any request may."""
        since = self._busy_since
        return since is not None and time.perf_counter() - since > self._timeout

    def seconds_for(self, num_tokens: int) -> float:
        """How long the worker takes for tokens, as measured; 0 before the first batch."""
        return num_tokens / self._speed if self._speed else 0.0

    def check_room(self, num_tokens: int) -> None:
        """Raise a QueueFullError unless there is room for so many tokens, and time to embed what is before them."""
        surplus = self.num_tokens + num_tokens - self.max_tokens
        late = self.seconds_for(self.num_tokens) - self._timeout
        if self.num_tokens and (surplus > 0 or late > 0):
            wait = max(self.seconds_for(max(surplus, 0)), late)
            raise QueueFullError(
                f"{self.num_tokens} tokens wait or are embedded, and the server takes {self.max_tokens}, or what it "
                f"embeds in {self._timeout:g} s: send it again in {max(1, round(wait))} s.",
                retry_after=wait,
            )

    def reserve(self) -> Reservation:
        """A place for a request that is being read and tokenized; it holds nothing yet."""
        return Reservation(self)

    def count(self, num_tokens: int) -> None:
        """Count tokens that are expected, or no more."""
        with self._waiting:
            self.num_tokens += num_tokens

    def submit(self, model: ServedModel, rows: Sequence[TokenRow]) -> Ticket:
        """Queue the texts of a request; equal ones, also of other requests, are embedded once.

        Raises:
            RequestError: There is no room, or no worker.
        """
        self._check_running()
        vectors = np.empty((len(rows), model.embedder.embedding_dim), dtype=np.float32)
        ticket = Ticket(vectors, self._loop.create_future(), len(rows))
        fresh: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            key: Hashable = (model.name, row.key)
            if self._memory and (vector := self._memory.get(key)) is not None:
                vectors[index] = vector
                ticket.missing -= 1
            else:
                fresh.setdefault(key, []).append(index)
        added = sum(rows[places[0]].num_tokens for key, places in fresh.items() if key not in self._open_rows)
        if added > self.max_tokens:
            raise TooLargeError(f"{added} tokens are more than the server embeds at once: {self.max_tokens}. Split.")
        self.check_room(added)
        with self._waiting:
            turn = self._clock
            for key, places in fresh.items():
                row = rows[places[0]]
                turn += row.num_tokens
                if (queued := self._open_rows.get(key)) is None:
                    queued = self._open_rows[key] = QueuedRow(model, row)
                queued.waiters[ticket] = places
                ticket.rows.append(queued)
                if not queued.is_taken:  # Perhaps once more, where it now comes earlier.
                    heapq.heappush(self._heaps.setdefault(model.name, []), (turn, next(self._order), queued))
            self.num_tokens += added
            self._clear_stale()
            self._waiting.notify()
        if not ticket.missing:
            ticket.future.set_result(vectors)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give up a request: texts that nobody else waits for, and that are not being embedded, are dropped."""
        ticket.future.cancel()
        with self._waiting:
            for queued in ticket.rows:
                queued.waiters.pop(ticket, None)
                if not queued.waiters and not queued.is_taken:
                    queued.is_taken = True  # The heap drops it when its turn comes.
                    self._forget(queued)

    def _check_running(self) -> None:
        if self.fault:
            raise UnavailableError("The worker has crashed. The server must be started again.")
        if self._is_closing:
            raise UnavailableError("The server is shutting down.")

    def _clear_stale(self) -> None:
        """Give up places of texts that are embedded or given up, and second ones of a text, once they are the most."""
        if sum(map(len, self._heaps.values())) <= 2 * len(self._open_rows) + _STALE:
            return
        for heap in self._heaps.values():
            earliest = {id(entry[2]): entry for entry in sorted(heap, reverse=True) if not entry[2].is_taken}
            heap[:] = sorted(earliest.values())  # Which is a heap.

    def _forget(self, queued: QueuedRow) -> None:
        key = queued.model.name, queued.row.key
        if self._open_rows.get(key) is queued:
            del self._open_rows[key]
            self.num_tokens -= queued.row.num_tokens

    def _deliver(self, batch: Sequence[QueuedRow], results: Delivered, began: float, record: BatchRecord) -> None:
        self._on_batch(record)
        with self._waiting:
            for queued in batch:
                self._forget(queued)
        for queued, result in zip(batch, results, strict=True):
            if self._memory and not isinstance(result, Exception):
                self._memory.put((queued.model.name, queued.row.key), result, queued.row.num_bytes)
            for ticket, places in queued.waiters.items():
                ticket.began = ticket.began or began
                if ticket.future.done():
                    continue
                if isinstance(result, Exception):
                    ticket.future.set_exception(_refusal(result))
                    continue
                ticket.vectors[places] = result
                ticket.missing -= len(places)
                if not ticket.missing:
                    ticket.future.set_result(ticket.vectors)
            queued.waiters = {}  # A later place of the text may still stand in the queue.

    def _refuse_all(self, error: RequestError) -> None:
        with self._waiting:
            waiting = list(self._open_rows.values())
            for queued in waiting:
                queued.is_taken = True
                self._forget(queued)
            self._heaps.clear()
        for queued in waiting:
            for ticket in queued.waiters:
                if not ticket.future.done():
                    ticket.future.set_exception(error)

    # What follows runs in the worker's thread.

    def _work(self, models: Sequence[ServedModel]) -> None:
        try:
            self._warm_up(models)
            while batch := self._take():
                self._compute(batch)
        except BaseException as error:
            self._tell(self._crash, error)

    def _warm_up(self, models: Sequence[ServedModel]) -> None:
        for model in models:
            rows = self._probes[model.name]
            model.embed(rows)
            began = time.perf_counter()
            model.embed(rows)
            self._measure(sum(row.num_tokens for row in rows), time.perf_counter() - began)
        self._tell(self._ready.set_result, None)

    def _take(self) -> list[QueuedRow]:
        """The next batch, of one model; none where the worker is to end."""
        with self._waiting:
            while not self._is_closing:
                heads = [heap for heap in self._heaps.values() if _drop_taken(heap)]
                if heads:
                    return self._fill(min(heads))
                self._waiting.wait()
        return []

    def _fill(self, heap: list[tuple[int, int, QueuedRow]]) -> list[QueuedRow]:
        left = self._budget(heap[0][2].model)
        batch: list[QueuedRow] = []
        while heap and (not batch or heap[0][2].row.num_tokens <= left):
            self._clock, _, queued = heapq.heappop(heap)
            queued.is_taken = True
            batch.append(queued)
            left -= queued.row.num_tokens
            _drop_taken(heap)
        return batch

    def _budget(self, model: ServedModel) -> int:
        return self._max_batch_tokens or model.batch_tokens

    def _compute(self, batch: Sequence[QueuedRow]) -> None:
        model, num_tokens = batch[0].model, sum(queued.row.num_tokens for queued in batch)
        self._busy_since = began = time.perf_counter()
        results = self._embed(model, [queued.row for queued in batch])
        seconds, self._busy_since = time.perf_counter() - began, None
        self._measure(num_tokens, seconds)
        self._tell(
            self._deliver, batch, results, began, BatchRecord(len(batch), num_tokens, self._budget(model), seconds)
        )

    def _embed(self, model: ServedModel, rows: Sequence[TokenRow]) -> Delivered:
        """Vectors of rows; where that fails, halves are tried, so that a text fails no other than itself."""
        try:
            return list(model.embed(rows))
        except Exception as error:
            if not isinstance(error, BellmError):
                model.embed(self._probes[model.name])  # Where this fails too, it is not a text that was wrong.
            if len(rows) == 1:
                return [error]
        half = len(rows) // 2
        return [*self._embed(model, rows[:half]), *self._embed(model, rows[half:])]

    def _measure(self, num_tokens: int, seconds: float) -> None:
        speed = num_tokens / max(seconds, 1e-6)
        self._speed = _MEMORY * self._speed + (1 - _MEMORY) * speed if self._speed else speed

    def _tell(self, function: Callable[..., object], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _crash(self, error: BaseException) -> None:
        self.fault, self._busy_since = error, None
        if not self._ready.done():
            self._ready.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._refuse_all(UnavailableError("The worker has crashed. The server must be started again."))


def _drop_taken(heap: list[tuple[int, int, QueuedRow]]) -> bool:
    """Drop texts that are embedded or given up from the head of a heap; whether any other is left."""
    while heap and heap[0][2].is_taken:
        heapq.heappop(heap)
    return bool(heap)


def _refusal(error: Exception) -> RequestError:
    """What a request is told of the failure of a text."""
    if isinstance(error, MemoryLimitError):
        return TooLargeError(str(error))
    if isinstance(error, BellmError):
        return ServerFaultError(str(error))
    return ServerFaultError(f"A text of this request makes the model fail: {type(error).__name__}.")
