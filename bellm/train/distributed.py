"""Collectives for data-parallel training: each process embeds its part of a batch, all compute the loss of the whole.

Vectors are gathered with a gradient for a process's own only, so the sum of all processes' gradients is that of one
process on the whole batch.

Shapes: T texts of a process, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

from bellm.errors import BellmError

Result = TypeVar("Result")


class Distributed:
    """The processes that `accelerate launch` or `torchrun` started; a single one without them."""

    def __init__(self) -> None:
        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank: int = state.process_index
        self.world_size: int = state.num_processes
        self.device: torch.device = state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def all_gather(self, own_TD: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Rows of every process, in the order of ranks; only those of this one carry a gradient.

        Args:
            own_TD: The rows of this process.
            sizes: How many each process has.
        """
        if self.world_size == 1:
            return [own_TD]
        assert len(own_TD) == sizes[self.rank]
        padded_TD = own_TD.new_zeros(max(sizes), *own_TD.shape[1:])
        padded_TD[: len(own_TD)] = own_TD.detach()
        gathered = [torch.empty_like(padded_TD) for _ in sizes]
        distributed.all_gather(gathered, padded_TD)
        others = [rows[:size] for rows, size in zip(gathered, sizes, strict=True)]
        return [own_TD if rank == self.rank else rows for rank, rows in enumerate(others)]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """All-reduce the gradients; a parameter without one in any process is left without."""
        if self.world_size == 1:
            return
        parameters = list(parameters)
        counts = torch.tensor([int(parameter.grad is not None) for parameter in parameters], device=self.device)
        distributed.all_reduce(counts)
        for parameter, count in zip(parameters, counts.tolist(), strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def sum(self, own: int) -> int:
        """The sum of an integer over all processes."""
        return sum(self._all(own))

    def max(self, own: int) -> int:
        """The largest of an integer over all processes."""
        return max(self._all(own))

    def any(self, own: object) -> bool:
        """Whether something is true in one process or more."""
        return self.sum(int(bool(own))) > 0

    def _all(self, own: int) -> list[int]:
        numbers: list[int] = torch.cat(
            self.all_gather(torch.tensor([own], device=self.device), [1] * self.world_size)
        ).tolist()
        return numbers

    def broadcast(self, call: Callable[[], Result]) -> Result:
        """Call a function in the main process alone and return its result in all of them.

        Raises:
            BellmError: The call raised one.
        """
        if self.world_size == 1:
            return call()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = call()
            except BellmError as refusal:
                outcome[1] = refusal
        distributed.broadcast_object_list(outcome)
        result, error = outcome
        if error:
            raise error
        return result  # type: ignore[no-any-return]

    @contextmanager
    def report_lost_process(self) -> Iterator[None]:
        """Turn the broken connection to a process that ended too early into one sentence.

        Raises:
            BellmError: One did.
        """
        try:
            yield
        except RuntimeError as error:
            broken = isinstance(error, distributed.DistError) or "gloo" in str(error)
            if self.world_size == 1 or not broken:
                raise
            raise BellmError(
                f"Process {self.rank} of {self.world_size} ends because another one did: see what that one says. The "
                "same command goes on from the last checkpoint."
            ) from error
