"""Run several CPU batches concurrently, each in a thread with an equal share of torch's intra-op threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar, cast

import torch
from transformers import PreTrainedModel

from bellm.backbone.rope import has_dynamic_frequencies
from bellm.backbone.states import input_device

Answer = TypeVar("Answer")
Item = TypeVar("Item")

_END = object()

_CONCURRENT_BATCHES = 2


class ParallelMap(Protocol):
    """`map`, or one that runs several calls at once."""

    def __call__(self, function: Callable[[int], Answer], numbers: Iterable[int], /) -> Iterator[Answer]:
        """Results of a function, in order."""
        ...


def num_concurrent_batches(model: PreTrainedModel) -> int:
    """How many batches to run at once on a model's device, if it has as many threads.

    One where a forward pass changes the rotary frequencies.
    """
    return _CONCURRENT_BATCHES if input_device(model).type == "cpu" and not has_dynamic_frequencies(model) else 1


@contextmanager
def parallel_map(concurrent: int) -> Iterator[ParallelMap]:
    """A `map` that runs calls concurrently, each on an equal share of the CPU threads.

    The calling thread's autocast and inference mode hold in all of them.
    """
    threads = torch.get_num_threads()
    if min(concurrent, threads) == 1:
        yield map
        return
    dtype, casts = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
    infers = torch.is_inference_mode_enabled()

    def inside(function: Callable[[int], Answer], number: int) -> Answer:
        # The autocast cache is shared by all threads and cleared when one of them leaves.
        with torch.inference_mode(infers), torch.autocast("cpu", dtype, enabled=casts, cache_enabled=False):
            return function(number)

    try:
        with ThreadPoolExecutor(concurrent, "bellm", torch.set_num_threads, (threads // concurrent,)) as pool:
            yield lambda function, numbers: pool.map(partial(inside, function), numbers)
    finally:
        torch.set_num_threads(threads)


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Make the next item in a thread while the caller uses this one."""
    with ThreadPoolExecutor(1, "bellm") as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield cast(Item, item)
