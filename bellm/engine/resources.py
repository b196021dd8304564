"""What goes through the model at once: tokens of a forward pass by memory, batches by the CPU's threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar, cast

import torch
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers, get_text_config, has_dynamic_frequencies
from bellm.backbone.states import hidden_size, input_device

Result = TypeVar("Result")
Item = TypeVar("Item")

_END = object()
_CONCURRENT_BATCHES = 2

_CACHE = 6 << 20
"""Bytes of a layer's widest states on a CPU.

Larger ones fall out of its caches, and the C library returns their pages after each use and requests them again.
"""

_SHARE_OF_MEMORY = 0.25


def default_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens of a forward pass: as many as fit in a CPU's caches, or in a quarter of an accelerator's free memory."""
    device = input_device(model)
    bytes_per_token: int = 2 * _widest(model) * model.dtype.itemsize
    if device.type == "cpu":
        return min(max(_CACHE // bytes_per_token, 256), 4096)
    free: int = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 32
    # Up, gate, their product, queries, keys, values and residuals are alive at once.
    return min(max(int(free * _SHARE_OF_MEMORY) // (4 * bytes_per_token), 1024), 65_536)


def max_graph_tokens(model: PreTrainedModel) -> int:
    """Tokens whose autograd graphs fit in a quarter of the free memory."""
    device = input_device(model)
    bytes_per_token = count_layers(model) * (16 * hidden_size(model) + 4 * _widest(model)) * 2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_bytes()
    return int(free * _SHARE_OF_MEMORY) // bytes_per_token


class ParallelMap(Protocol):
    """`map`, or one that runs several calls at once."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Results in order."""
        ...


def num_concurrent_batches(model: PreTrainedModel) -> int:
    """How many batches to run at once on a model's device; one where a forward pass changes rotary frequencies."""
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
    with ThreadPoolExecutor(1, "bellm") as thread:
        following = thread.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = thread.submit(next, items, _END)
            yield cast(Item, item)


def _widest(model: PreTrainedModel) -> int:
    return int(getattr(get_text_config(model), "intermediate_size", None) or 4 * hidden_size(model))


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Not every system tells.
        return 1 << 32
