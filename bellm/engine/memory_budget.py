"""How many tokens a forward pass may have: by a CPU's caches, or by the free memory."""

import os

import torch
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers, get_text_config
from bellm.backbone.states import hidden_size, input_device

_CACHE = 6 << 20
"""Bytes of a layer's widest states on a CPU.

Larger ones fall out of its caches, and the C library returns their pages after each use and requests them again.
"""

_SHARE_OF_MEMORY = 0.25


def default_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens of a forward pass: as many as fit in a CPU's caches, or in a quarter of an accelerator's free memory."""
    device = input_device(model)
    return batch_tokens(model, device.type, model.dtype, free_bytes(device) if device.type == "cuda" else 1 << 32)


def batch_tokens(model: PreTrainedModel, device: str, dtype: torch.dtype, free: int) -> int:
    """The same of a model that is not loaded, by the kind of its device, its dtype and the bytes free there."""
    bytes_per_token = 2 * _widest(model) * dtype.itemsize
    if device == "cpu":
        return min(max(_CACHE // bytes_per_token, 256), 4096)
    # Up, gate, their product, queries, keys, values and residuals are alive at once.
    return min(max(int(free * _SHARE_OF_MEMORY) // (4 * bytes_per_token), 1024), 65_536)


def max_graph_tokens(model: PreTrainedModel) -> int:
    """Tokens whose autograd graphs fit in a quarter of the free memory."""
    return graph_tokens(model, free_bytes(input_device(model)))


def graph_tokens(model: PreTrainedModel, free: int) -> int:
    """The same of a model that is not loaded, by the bytes that are free on its device."""
    bytes_per_token = count_layers(model) * (16 * hidden_size(model) + 4 * _widest(model)) * 2
    return int(free * _SHARE_OF_MEMORY) // bytes_per_token


def chunk_tokens(model: PreTrainedModel, device: str, dtype: torch.dtype, free: int) -> int:
    """Tokens of a forward pass in training: as of any, and on an accelerator no more than graphs of which fit.

    On a CPU free memory has no say, because the size of chunks decides the order of sums.
    """
    tokens = batch_tokens(model, device, dtype, free)
    return tokens if device == "cpu" else max(1, min(tokens, graph_tokens(model, free)))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; 4 GiB where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _free_bytes()


def _widest(model: PreTrainedModel) -> int:
    return int(getattr(get_text_config(model), "intermediate_size", None) or 4 * hidden_size(model))


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # Not every system tells.
        return 1 << 32
