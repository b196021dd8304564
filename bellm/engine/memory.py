"""How many tokens go through the model at once: memory budgets for inference and training."""

import os

import torch
from transformers import PreTrainedModel

from bellm.backbone.architecture import count_layers, get_text_config
from bellm.backbone.states import hidden_size, input_device

_CACHE = 6 << 20
"""Bytes that a layer's widest states may take on a processor.

Larger ones fall out of its caches, and the C library gives their pages back after each use and asks for them anew.
"""

_SHARE_OF_MEMORY = 0.25


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
