"""How much goes through the model at once, and what need not go through at all."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers, get_text_config
from bellm.backbone.states import hidden_size, input_device
from bellm.engine.tokenization import Tokens

Item = TypeVar("Item")
_END = object()

_CACHE = 6 << 20
"""Bytes that a layer's widest states may take on a processor.

Larger ones fall out of its caches, and the C library gives their pages back after each use and asks for them anew.
"""

_SHARE_OF_MEMORY = 0.25


def chunk_texts(
    texts: Sequence[str], *, max_texts: int = 8192, max_characters: int = 4_000_000
) -> Iterator[Sequence[str]]:
    """Cut a long list of texts into parts whose tokens fit in memory easily."""
    start = characters = 0
    for end, text in enumerate(texts):
        if end - start == max_texts or (characters > max_characters and end > start):
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Make the next item in a thread while this one is used."""
    with ThreadPoolExecutor(1, "bellm") as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield cast(Item, item)


def split_by_length(numbers: Sequence[int], lengths: Sequence[int], context: int | None) -> list[list[int]]:
    """Rows that are longer than a context, and the others; what there is of both. All in one without a context."""
    longer = [number for number in numbers if context is not None and lengths[number] > context]
    within = [number for number in numbers if context is None or lengths[number] <= context]
    return [part for part in (longer, within) if part]


def deduplicate(tokens: Tokens, *, by_span: bool) -> tuple[Tokens, list[int]]:
    """Each different row once, and for every row where it is among them.

    Args:
        tokens: Rows.
        by_span: Whether rows of equal ids but other text spans are different.
    """
    places: dict[object, int] = {}
    where: list[int] = []
    first: list[int] = []
    for number, (ids, span) in enumerate(zip(tokens.ids, tokens.spans, strict=True)):
        place = places.setdefault((tuple(ids), span if by_span else None), len(first))
        if place == len(first):
            first.append(number)
        where.append(place)
    rows = Tokens([tokens.ids[number] for number in first], [tokens.spans[number] for number in first], 0)
    return rows, where


def default_batch_tokens(model: PreTrainedModel) -> int:
    """How many tokens one forward pass should have on this model's hardware.

    On a processor as many as its caches hold; on an accelerator as many as a quarter of its free memory holds.
    """
    device, width = input_device(model), hidden_size(model)
    widest = int(getattr(get_text_config(model), "intermediate_size", None) or 4 * width)
    bytes_per_token: int = 2 * widest * model.dtype.itemsize
    if device.type == "cpu":
        return min(max(_CACHE // bytes_per_token, 256), 4096)
    free: int = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 32
    # Up, gate, their product, queries, keys, values and residuals are alive at once.
    return min(max(int(free * _SHARE_OF_MEMORY) // (4 * bytes_per_token), 1024), 65_536)


def max_graph_tokens(model: PreTrainedModel) -> int:
    """How many tokens' graphs a quarter of the free memory holds, for training."""
    device, width = input_device(model), hidden_size(model)
    widest = int(getattr(get_text_config(model), "intermediate_size", None) or 4 * width)
    bytes_per_token = count_layers(model) * (16 * width + 4 * widest) * 2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_bytes()
    return int(free * _SHARE_OF_MEMORY) // bytes_per_token


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Not every system tells.
        return 1 << 32
