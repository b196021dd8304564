"""Matrix arithmetic that an exact encoder cannot avoid, and the rate at which this machine multiplies.

Shapes of a Llama-like decoder; two operations (multiply, add) a weight and token.
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """Widths of a decoder's matrices."""

    layers: int
    width: int
    query: int
    key: int
    inner: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Shape":
        """Read a Llama-like configuration."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        query, key = config.num_attention_heads * head, config.num_key_value_heads * head
        return cls(config.num_hidden_layers, config.hidden_size, query, key, config.intermediate_size)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's products: queries, keys and values; attention's output; MLP in and out."""
        return (
            (self.width, self.query + 2 * self.key),
            (self.query, self.width),
            (self.width, 2 * self.inner),
            (self.inner, self.width),
        )

    def keys_and_values(self, tokens: int) -> int:
        """Keys and values of tokens in one layer."""
        return 2 * tokens * self.width * 2 * self.key

    def rest(self, tokens: int) -> int:
        """All else that a layer multiplies with weights for tokens: queries, attention's output, MLP."""
        return 2 * tokens * (2 * self.width * self.query + 3 * self.width * self.inner)

    def attention(self, pairs: int) -> int:
        """Scores and sums of values for pairs of tokens in one layer."""
        return 4 * pairs * self.query


def needed_flops(rows: Sequence[Sequence[int]], shape: Shape, *, first_open: int | None, last_only: bool) -> int:
    """Operations of the matrix products that an exact encoder has to do for these texts, once and without padding.

    Equal texts count once. Below the first open layer a token depends only on what comes before it, so that a prefix
    which texts share counts once; from there on every token of every distinct text counts. Where only last tokens are
    pooled, the last layer needs keys and values of all tokens, and the rest only of the last ones.

    Args:
        rows: Token ids of the texts.
        shape: Widths of the model.
        first_open: The first bidirectional layer; it and all above it see every token.
        last_only: Whether last-token pooling reads the vectors.
    """
    distinct = sorted({tuple(row) for row in rows})
    lengths = [len(row) for row in distinct]
    shared = [0, *(common_prefix(a, b) for a, b in pairwise(distinct))]
    prefixes = sum(lengths) - sum(shared)
    below = sum(triangle(length) - triangle(start) for length, start in zip(lengths, shared, strict=True))
    flops = 0
    for layer in range(shape.layers):
        is_open = first_open is not None and layer >= first_open
        tokens = sum(lengths) if is_open else prefixes
        pairs = sum(length**2 for length in lengths) if is_open else below
        flops += shape.keys_and_values(tokens)
        if last_only and layer == shape.layers - 1:
            tokens, pairs = len(distinct), sum(lengths)
        flops += shape.rest(tokens) + shape.attention(pairs)
    return flops


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts begin with together."""
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def triangle(length: int) -> int:
    """Pairs of tokens that meet in causal attention."""
    return length * (length + 1) // 2


@torch.inference_mode()
def matrix_rate(shape: Shape, dtype: torch.dtype, tokens: int, seconds: float = 0.15) -> float:
    """Operations a second of the four products of a layer at this number of tokens, each as often as in the model."""
    operands = [
        (torch.randn(tokens, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype))
        for inputs, outputs in shape.products
    ]
    for states, weights in operands:
        functional.linear(states, weights)
    passes, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for states, weights in operands:
            functional.linear(states, weights)
        passes += 1
    elapsed = time.perf_counter() - started
    return 2 * tokens * sum(inputs * outputs for inputs, outputs in shape.products) * passes / elapsed


def machine() -> str:
    """Processor, cores and torch, in words."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
