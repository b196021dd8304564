"""The queue in front of the worker: who comes next, what is computed once or not at all, whom a failure concerns."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from bellm.serve.batch_queue import BatchQueue, Ticket
from bellm.serve.request_errors import QueueFullError, ServerFaultError, TooLargeError, UnavailableError
from bellm.serve.served_model import ServedModel
from tests.processes import LIMIT
from tests.serve.planted import Planted

Scene = Callable[["Line", Planted], Coroutine[Any, Any, None]]


class Line:
    """A queue of one model, to which texts are sent."""

    def __init__(self, queue: BatchQueue, model: ServedModel) -> None:
        self.queue, self._model = queue, model

    def send(self, *texts: str) -> Ticket:
        return self.queue.submit(self._model, self._model.rows(texts, "text")[0])


@asynccontextmanager
async def working(planted: Planted, **options: Any) -> AsyncIterator[Line]:
    model = ServedModel("planted", planted)
    queue = BatchQueue(**{"max_tokens": 1000, "max_batch_tokens": 10, "timeout": LIMIT, **options})
    queue.start([model])
    await queue.ready()
    planted.batches.clear()
    try:
        yield Line(queue, model)
    finally:
        planted.open.set()
        await queue.close()


def play(scene: Scene, **options: Any) -> Planted:
    """Play a scene with a queue and its worker."""
    planted = Planted()

    async def act() -> None:
        async with working(planted, **options) as line:
            await asyncio.wait_for(scene(line, planted), LIMIT)

    asyncio.run(act())
    return planted


async def hold(line: Line, planted: Planted) -> Ticket:
    """Let the worker begin a batch, and hold it there."""
    planted.open.clear()
    ticket = line.send("zzz")
    while not planted.batches:
        await asyncio.sleep(0.001)
    return ticket


async def refusal(waiting: Awaitable[Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        await waiting
    return str(caught.value)


def words(letter: str, count: int) -> list[str]:
    return [f"{letter}{number:02}" for number in range(count)]


def test_a_short_request_is_in_the_next_batch_beside_a_long_one() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        long, short = line.send(*words("l", 100)), line.send(*words("s", 2))
        planted.open.set()
        vectors = await short.future
        assert vectors.tolist() == [[3, ord("s")]] * 2
        assert set(words("s", 2)) < set(planted.batches[1])
        assert len(await long.future) == 100

    play(scene)


def test_requests_of_one_size_get_the_same_share() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        tickets = [line.send(*words(letter, 40)) for letter in "abc"]
        planted.open.set()
        await asyncio.gather(*(ticket.future for ticket in tickets))
        done = dict.fromkeys("abc", 0)
        for batch in planted.batches[1:]:
            for text in batch:
                done[text[0]] += 1
            assert max(done.values()) - min(done.values()) <= 1, planted.batches

    play(scene)


def test_a_long_text_waits_for_no_more_than_its_own_length_of_others() -> None:
    """Four clients send short requests all the time, so that there is always one that came later."""

    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        long = line.send("l" * 119)  # 30 tokens, more than a batch takes.
        planted.seconds = 0.02  # Longer than it takes to send the next.
        others = {letter: line.send(*words(letter, 5)).future for letter in "abcd"}
        planted.open.set()
        for round_ in range(100):
            if long.future.done():
                break
            await asyncio.wait(others.values(), return_when=asyncio.FIRST_COMPLETED)
            for letter in [letter for letter, future in others.items() if future.done()]:
                others[letter] = line.send(*words(chr(ord(letter) + 4 * (round_ % 4)), 5)).future
        assert long.future.done()
        before = planted.batches.index(["l" * 119])
        assert sum(map(len, planted.batches[1:before])) <= 4 * 30 + 10  # Each client as many as itself.

    play(scene)


def test_equal_texts_are_computed_once() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        first = await hold(line, planted)
        tickets = [line.send("aaa", "bbb", "aaa"), line.send("bbb", "zzz"), line.send("bbb")]
        assert line.queue.num_tokens == 3
        line.queue.cancel(tickets[2])
        planted.open.set()
        assert (await first.future).tolist() == [[3, ord("z")]]
        assert (await tickets[0].future)[:, 1].tolist() == [97, 98, 97]
        assert (await tickets[1].future)[:, 1].tolist() == [98, 122]
        assert planted.batches == [["zzz"], ["aaa", "bbb"]]
        assert line.queue.num_tokens == 0

    play(scene)


def test_a_text_comes_earlier_where_a_shorter_request_has_it_too() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        line.send(*words("l", 60))
        short = line.send("l59")
        planted.open.set()
        await short.future
        assert "l59" in planted.batches[1]

    play(scene)


def test_what_nobody_waits_for_is_dropped() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        first = await hold(line, planted)
        gone, kept = line.send("aaa", "bbb"), line.send("bbb", "ccc")
        line.queue.cancel(gone)
        line.queue.cancel(first)  # It is being computed, and comes to an end.
        assert line.queue.num_tokens == 3
        again = line.send("aaa")
        line.queue.cancel(again)
        planted.open.set()
        assert (await kept.future)[:, 1].tolist() == [98, 99]
        assert planted.batches == [["zzz"], ["bbb", "ccc"]]
        assert line.queue.num_tokens == 0

    play(scene)


def test_what_was_given_up_does_not_pile_up_in_the_queue() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        kept = line.send("kkk")
        for _ in range(100):
            line.queue.cancel(line.send(*words("a", 100)))
        tickets = [line.send("kkk") for _ in range(3000)]
        assert sum(map(len, line.queue._heaps.values())) < 1200
        planted.open.set()
        for ticket in (kept, *tickets):
            assert (await ticket.future).tolist() == [[3, ord("k")]]
        assert planted.batches == [["zzz"], ["kkk"]]

    play(scene)


def test_a_full_queue_says_when_there_will_be_room() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        line.queue._speed = 5.0
        line.send(*words("a", 19))
        assert line.queue.num_tokens == 20
        with pytest.raises(QueueFullError, match="20 tokens wait or are embedded, and the server takes 30") as full:
            line.send(*words("b", 30))
        assert full.value.headers == {"retry-after": "4"}  # 20 tokens too many, 5 a second.
        room = line.queue.reserve()
        room.grow(10)
        with pytest.raises(QueueFullError):
            line.send("ccc")
        room.free()
        line.send(*words("b", 10))
        with pytest.raises(QueueFullError):
            line.queue.check_room(1)
        with pytest.raises(TooLargeError, match="31 tokens are more than the server embeds at once: 30"):
            line.send(*words("c", 31))

    play(scene, max_tokens=30)


def test_what_would_come_too_late_is_refused_at_once() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        await hold(line, planted)
        line.queue._speed = 5.0
        line.send(*words("a", 60))
        with pytest.raises(QueueFullError) as late:
            line.send("bbb")
        assert late.value.headers == {"retry-after": "3"}  # 61 tokens take 12.2 s.

    play(scene, timeout=10.0)


def test_the_speed_is_measured() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        before = line.queue._speed
        assert before
        await line.send(*words("a", 30)).future
        assert line.queue._speed != before
        assert line.queue.seconds_for(100) == 100 / line.queue._speed

    play(scene)


def test_a_text_fails_no_request_but_its_own() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        planted.faults["bad"] = lambda: 1 / 0
        await hold(line, planted)
        good, bad, nan = line.send(*words("a", 3)), line.send("bbb", "bad"), line.send("nan")
        planted.open.set()
        assert len(await good.future) == 3
        assert "makes the model fail: ZeroDivisionError" in await refusal(bad.future, ServerFaultError)
        assert "not finite" in await refusal(nan.future, ServerFaultError)
        assert not line.queue.fault
        assert len(await line.send("ccc").future) == 1

    play(scene)


@pytest.mark.parametrize("end", ["exit", "every call fails"])
def test_a_crash_ends_all_requests(end: str) -> None:
    async def scene(line: Line, planted: Planted) -> None:
        planted.faults["bad"] = sys.exit if end == "exit" else lambda: 1 / 0
        if end != "exit":
            planted.faults["Snow fell."] = lambda: 1 / 0  # The text of the worker itself.
        await hold(line, planted)
        tickets = [line.send("bad"), *(line.send(word) for word in words("a", 50))]
        planted.open.set()
        for ticket in tickets[:1] + tickets[-1:]:
            assert "The worker has crashed" in await refusal(ticket.future, UnavailableError)
        assert line.queue.fault
        assert line.queue.num_tokens == 0
        with pytest.raises(UnavailableError, match="The worker has crashed"):
            line.send("ccc")

    play(scene)


def test_a_model_that_fails_on_its_first_texts_is_said() -> None:
    planted = Planted()
    planted.faults["Snow fell."] = lambda: 1 / 0

    async def act() -> None:
        queue = BatchQueue(max_tokens=10, max_batch_tokens=10, timeout=1)
        queue.start([ServedModel("planted", planted)])
        with pytest.raises(ZeroDivisionError):
            await queue.ready()

    asyncio.run(act())


def test_vectors_of_the_last_texts_are_kept() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        first = await line.send("aaa", "bbb").future
        again = line.send("bbb", "aaa", "ccc")
        assert (await again.future)[:2].tolist() == first[::-1].tolist()
        assert (await line.send("ccc").future).tolist() == [[3, 99]]
        for start in range(0, 3000, 100):
            await line.send(*(f"{number:04}" for number in range(start, start + 100))).future
        planted.batches.clear()
        await line.send("2999", "aaa").future
        assert planted.batches == [["aaa"]]

    play(scene, cache_bytes=1 << 20, max_batch_tokens=1000)


def test_vectors_are_not_shared_with_those_who_may_change_them() -> None:
    async def scene(line: Line, planted: Planted) -> None:
        (await line.send("aaa").future)[:] = 0
        assert np.array_equal(await line.send("aaa").future, [[3, 97]])

    play(scene, cache_bytes=1 << 20)
