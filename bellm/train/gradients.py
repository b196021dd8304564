"""Gradients of a loss on many vectors, a chunk of texts in memory at a time.

Gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983): embed all chunks without a graph, take the loss and its
gradient with respect to the vectors, then embed chunk after chunk again and hand each its vectors' gradient. The sum is
the gradient of the whole batch, for whatever chunks; memory is that of one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Chunk = Callable[[], Tensor]
"""Computes some of the numbers that the loss is made of; twice alike, but for dropout, which is seeded here."""


def accumulate(
    chunks: Sequence[Chunk],
    loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    seed: int,
    cached: bool,
) -> Tensor:
    """Add the gradient of the loss to every parameter that the chunks used.

    Args:
        chunks: What gives the loss its numbers, in parts.
        loss: Takes the answers of all chunks, in order, and gives a scalar.
        seed: Of dropout; each chunk has its own, and the same both times.
        cached: Compute each chunk twice and hold one graph at a time, rather than once and hold all.

    Returns:
        The loss, without a graph.
    """
    with _kept_randomness():
        with torch.set_grad_enabled(not cached):
            answers = [_seeded(chunk, seed, number) for number, chunk in enumerate(chunks)]
        leaves = [answer.detach().requires_grad_() for answer in answers]
        value = loss(leaves)
        value.backward()  # type: ignore[no-untyped-call]
        for number, (chunk, leaf) in enumerate(zip(chunks, leaves, strict=True)):
            answer = _seeded(chunk, seed, number) if cached else answers[number]
            answers[number] = leaf  # Its graph may go.
            # Also where the loss makes no use of it: processes that share weights compute equally often.
            answer.backward(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)  # type: ignore[no-untyped-call]
    return value.detach()


def _seeded(chunk: Chunk, seed: int, number: int) -> Tensor:
    torch.manual_seed(seed + number)
    return chunk()


@contextmanager
def _kept_randomness() -> Iterator[None]:
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
