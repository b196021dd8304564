"""Gradients of a loss on many vectors, a chunk of texts in memory at a time.

Gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983): embed all chunks without a graph, take the loss and its
gradient with respect to the vectors, then embed chunk after chunk again and hand each its vectors' gradient. The sum is
the gradient of the whole batch, for whatever chunks; memory is that of one.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bellm.engine.concurrency import parallel_map

Chunk = Callable[[], Tensor]
"""Computes some of the numbers that the loss is made of; twice alike, but for dropout, which is seeded here."""


def accumulate_gradients(
    chunks: Sequence[Chunk],
    loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    seed: int,
    cached: bool,
    concurrent: int = 1,
    parameters: Sequence[nn.Parameter] = (),
) -> Tensor:
    """Add the gradient of the loss to every parameter that the chunks used.

    Args:
        chunks: What gives the loss its numbers, in parts.
        loss: Takes the answers of all chunks, in order, and gives a scalar.
        seed: Of dropout; each chunk has its own, and the same both times.
        cached: Compute each chunk twice and hold one graph at a time, rather than once and hold all.
        concurrent: How many chunks a processor computes at once, on an equal share of its threads each. More than one
            only where chunks draw nothing at random and leave nothing behind. The gradient is the same bit by bit.
        parameters: Those that get a gradient, for more than one chunk at once.

    Returns:
        The loss, without a graph.
    """

    def answer(number: int, *, graph: bool) -> Tensor:
        torch.manual_seed(seed + number)
        with torch.set_grad_enabled(graph):
            return chunks[number]()

    def again(number: int) -> tuple[Tensor, Tensor]:
        """A chunk's answer with its graph, and the gradient with respect to it."""
        leaf, found = leaves[number], answer(number, graph=True) if cached else answers[number]
        answers[number] = leaf  # Its graph may go.
        # Also where the loss makes no use of it: processes that share weights compute equally often.
        return found, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def gradients(number: int) -> Sequence[Tensor | None]:
        found, gradient = again(number)
        answer = torch.autograd.grad(found, parameters, gradient, allow_unused=True)
        give_back()
        return answer

    numbers = range(len(chunks))
    give_back = _give_back if cached else lambda: None
    with _kept_randomness(), parallel_map(concurrent) as each:
        answers = list(each(partial(answer, graph=not cached), numbers))
        leaves = [found.detach().requires_grad_() for found in answers]
        value = loss(leaves)
        value.backward()  # type: ignore[no-untyped-call]
        if concurrent == 1:
            for number in numbers:
                torch.autograd.backward(*again(number))
                give_back()
        else:
            for found in each(gradients, numbers):
                _add(found, parameters)
    return value.detach()


def _give_back() -> None:
    """Hand the system what the C library keeps of freed memory, where it keeps any.

    Chunks differ in size: what is left between the pieces of one does not fit the next, and would add up.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none.
        trim(0)


def _add(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


@contextmanager
def _kept_randomness() -> Iterator[None]:
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
