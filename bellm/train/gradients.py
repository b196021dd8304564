"""Gradient caching: exact gradients of a loss on many vectors, with one chunk of texts in memory at a time.

GradCache (Gao et al. 2021, arXiv 2101.06983): embed all chunks without a graph, take the loss and its gradient with
respect to the vectors, then embed chunk after chunk again and backpropagate its vectors' gradient. The sum is the
gradient of the whole batch, however it is chunked; memory is that of one chunk.
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
"""Computes some of the loss's inputs; deterministic but for dropout, which is seeded here."""


@contextmanager
def chunk_outputs(
    chunks: Sequence[Chunk],
    *,
    seed: int,
    cached: bool,
    num_concurrent: int = 1,
    parameters: Sequence[nn.Parameter] = (),
) -> Iterator[list[Tensor]]:
    """Run chunks and give their outputs, in order; the block computes a loss of these and its backward pass.

    After the block the gradient of that loss is added to every parameter that the chunks used.

    Args:
        chunks: Compute the inputs of the loss, in parts.
        seed: Of dropout; each chunk has its own, and the same both times.
        cached: Compute each chunk twice and hold one graph at a time, rather than once and hold all.
        num_concurrent: How many chunks run at once on a CPU, each with an equal share of its threads. More than one
            only where chunks draw nothing at random and keep no state. The gradient is the same bit by bit.
        parameters: Those that get a gradient, for more than one chunk at once.
    """

    def run(index: int, *, graph: bool) -> Tensor:
        torch.manual_seed(seed + index)
        with torch.set_grad_enabled(graph):
            return chunks[index]()

    def output_and_gradient(index: int) -> tuple[Tensor, Tensor]:
        """A chunk's output with its graph, and the loss's gradient with respect to it."""
        leaf, output = leaves[index], run(index, graph=True) if cached else outputs[index]
        outputs[index] = leaf  # Release the graph.
        # Also where the loss makes no use of it: with sharded weights all processes must compute equally often.
        return output, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def parameter_gradients(index: int) -> Sequence[Tensor | None]:
        output, gradient = output_and_gradient(index)
        gradients = torch.autograd.grad(output, parameters, gradient, allow_unused=True)
        trim()
        return gradients

    indices = range(len(chunks))
    trim = _trim_memory if cached else lambda: None
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), parallel_map(num_concurrent) as run_all:
        outputs = list(run_all(partial(run, graph=not cached), indices))
        # Detached leaves cut the graph between the chunks and the loss, whose gradient then waits in `leaf.grad`.
        leaves = [output.detach().requires_grad_() for output in outputs]
        yield leaves
        if num_concurrent == 1:
            for index in indices:
                torch.autograd.backward(*output_and_gradient(index))
                trim()
        else:
            # Results come in the order of the chunks, so that sums do not depend on which thread is first.
            for gradients in run_all(parameter_gradients, indices):
                for gradient, parameter in zip(gradients, parameters, strict=True):
                    if gradient is not None:
                        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _trim_memory() -> None:
    """Return freed memory to the system: chunks differ in size, and what one leaves would not fit the next."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # Not in musl.
        malloc_trim(0)
