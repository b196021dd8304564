"""Several answers at once on a processor: while one waits for its threads to meet, the other computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

from bellm.backbone.rope import has_dynamic_frequencies
from bellm.backbone.states import input_device

Answer = TypeVar("Answer")

_CONCURRENT_BATCHES = 2


class ParallelMap(Protocol):
    """`map`, or one that computes several answers at once."""

    def __call__(self, function: Callable[[int], Answer], numbers: Iterable[int], /) -> Iterator[Answer]:
        """Answers of a function, in order."""
        ...


def num_concurrent_batches(model: PreTrainedModel) -> int:
    """How many batches a model's device should compute at once, if it has as many threads.

    One by one where the model sets its rotary frequencies anew for each batch.
    """
    return _CONCURRENT_BATCHES if input_device(model).type == "cpu" and not has_dynamic_frequencies(model) else 1


@contextmanager
def parallel_map(concurrent: int) -> Iterator[ParallelMap]:
    """A `map` that computes several answers at once, on an equal share of the processor's threads each.

    The calling thread's autocast and inference mode hold in all of them.
    """
    threads = torch.get_num_threads()
    if min(concurrent, threads) == 1:
        yield map
        return
    dtype, casts = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
    infers = torch.is_inference_mode_enabled()

    def inside(function: Callable[[int], Answer], number: int) -> Answer:
        # What has been cast is kept for all threads, and given up when one of them is done.
        with torch.inference_mode(infers), torch.autocast("cpu", dtype, enabled=casts, cache_enabled=False):
            return function(number)

    try:
        with ThreadPoolExecutor(concurrent, "bellm", torch.set_num_threads, (threads // concurrent,)) as pool:
            yield lambda function, numbers: pool.map(partial(inside, function), numbers)
    finally:
        torch.set_num_threads(threads)
