"""Run batches concurrently on a CPU, each on a share of its threads, and prefetch items in a thread."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar, cast

import torch
from transformers import PreTrainedModel

from bellm.backbone.architecture import has_dynamic_frequencies
from bellm.backbone.states import input_device
from bellm.errors import context_for_thread

Result = TypeVar("Result")
Item = TypeVar("Item")

_END = object()
CONCURRENT_BATCHES = 2
"""How many batches run at once on a CPU."""


class ParallelMap(Protocol):
    """`map`, or one that runs several calls at once."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Results in order."""
        ...


def num_concurrent_batches(model: PreTrainedModel) -> int:
    """How many batches to run at once on a model's device; one where a forward pass changes rotary frequencies."""
    return CONCURRENT_BATCHES if input_device(model).type == "cpu" and not has_dynamic_frequencies(model) else 1


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

    def call(function: Callable[[Item], Result], item: Item) -> Result:
        # The autocast cache is shared by all threads and cleared when one of them leaves.
        with torch.inference_mode(infers), torch.autocast("cpu", dtype, enabled=casts, cache_enabled=False):
            return function(item)

    pool = ThreadPoolExecutor(concurrent, "bellm", torch.set_num_threads, (threads // concurrent,))
    try:
        yield lambda function, items: pool.map(partial(call, function), items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Compute the next item in a thread while the caller uses this one."""
    context, take = context_for_thread(), partial(next, items, _END)
    with ThreadPoolExecutor(1, "bellm") as thread:
        following = thread.submit(context.run, take)
        while (item := following.result()) is not _END:
            following = thread.submit(context.run, take)
            yield cast(Item, item)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Items in order, each once the next one was begun: a device computes that meanwhile."""
    following = next(items, _END)
    while (item := following) is not _END:
        following = next(items, _END)
        yield cast(Item, item)
