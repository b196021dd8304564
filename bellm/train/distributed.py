"""Several processes, a device each, that learn from one batch together.

Every process embeds its part of the batch, and all take the loss of the whole: vectors are gathered, with a gradient
for a process's own. The sum of all processes' gradients is that of one process on the whole batch.

Shapes: T texts of a process, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

from bellm.errors import BellmError

Answer = TypeVar("Answer")


class Distributed:
    """The processes that `accelerate launch` or `torchrun` started; one where nothing did."""

    def __init__(self) -> None:
        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank: int = state.process_index
        self.world_size: int = state.num_processes
        self.device: torch.device = state.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def all_gather(self, own_TD: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Rows of every process, in the order of their ranks; only those of this one carry a gradient.

        Args:
            own_TD: The rows of this process.
            sizes: How many each process has.
        """
        if self.world_size == 1:
            return [own_TD]
        assert len(own_TD) == sizes[self.rank]
        room_TD = own_TD.new_zeros(max(sizes), *own_TD.shape[1:])
        room_TD[: len(own_TD)] = own_TD.detach()
        gathered = [torch.empty_like(room_TD) for _ in sizes]
        distributed.all_gather(gathered, room_TD)
        others = [rows[:size] for rows, size in zip(gathered, sizes, strict=True)]
        return [own_TD if rank == self.rank else rows for rank, rows in enumerate(others)]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients; what has none anywhere is left without."""
        if self.world_size == 1:
            return
        every = list(parameters)
        counts = torch.tensor([int(each.grad is not None) for each in every], device=self.device)
        distributed.all_reduce(counts)
        for parameter in (each for each, count in zip(every, counts.tolist(), strict=True) if count):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def total(self, own: int) -> int:
        """The sum of a whole number over all processes."""
        return sum(self._all(own))

    def most(self, own: int) -> int:
        """The largest of a whole number in all processes."""
        return max(self._all(own))

    def any(self, own: object) -> bool:
        """Whether something is true in one process or more."""
        return self.total(int(bool(own))) > 0

    def _all(self, own: int) -> list[int]:
        numbers: list[int] = torch.cat(
            self.all_gather(torch.tensor([own], device=self.device), [1] * self.world_size)
        ).tolist()
        return numbers

    def broadcast(self, call: Callable[[], Answer]) -> Answer:
        """Let the first process alone do something, and give all of them its answer when it is done.

        Raises:
            BellmError: It does there.
        """
        if self.world_size == 1:
            return call()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = call()
            except BellmError as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        answer, refusal = outcome
        if refusal:
            raise refusal
        return answer  # type: ignore[no-any-return]

    @contextmanager
    def relied_on(self) -> Iterator[None]:
        """Say in one line that another process ended too early, where only a broken connection tells of it.

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
