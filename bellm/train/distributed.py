"""Several processes that train together: collectives for data parallelism, and weights sharded over processes (FSDP).

Each process embeds its part of a batch, all compute the loss of the whole. Vectors are gathered with a gradient for a
process's own only, so the sum of all processes' gradients is that of one process on the whole batch.

Shapes: T texts of a process, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.errors import BellmError
from bellm.train.gradients import Chunk

Value = TypeVar("Value")


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
        """Rows of every process, in the order of ranks, of which each has so many; only this one's carry a gradient.

        One size alone is that of rows which every process has whole.
        """
        if len(sizes) == 1:
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
            if count:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(parameter.grad)

    def sum(self, own: int) -> int:
        """The sum of an integer over all processes."""
        return int(self._all(own).sum())

    def max(self, own: int) -> int:
        """The largest of an integer over all processes."""
        return int(self._all(own).max())

    def any(self, own: object) -> bool:
        """Whether something is true in one process or more."""
        return self.max(int(bool(own))) > 0

    def _all(self, own: int) -> Tensor:
        return torch.cat(self.all_gather(torch.tensor([own], device=self.device), [1] * self.world_size))

    def broadcast(self, call: Callable[[], Value]) -> Value:
        """Call a function in the main process alone; its result, or its `BellmError`, comes in all of them."""
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
        """Turn the broken connection to a process that ended too early into one sentence."""
        try:
            yield
        except RuntimeError as error:
            broken = isinstance(error, distributed.DistError) or "gloo" in str(error)
            if self.world_size == 1 or not broken:
                raise
            raise BellmError(
                f"Process {self.rank} of {self.world_size} ends because another one did: see what that one says. The "
                "same command resumes from the last checkpoint."
            ) from error


class FSDPRoot(nn.Module):
    """Fully sharded data parallel (arXiv 2304.11277), for a model that one device does not hold.

    Each process keeps a shard of every weight, its gradient and its optimizer state. This root module runs chunks: a
    layer is gathered while it computes, weights outside of layers for each chunk.
    """

    def __init__(self, model: PreTrainedModel, processes: Distributed) -> None:
        """Shard the model in place, each process on its device."""
        super().__init__()
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise BellmError(f"sharded=True needs a newer torch than {torch.__version__}: pip install -U torch.")
        self.model = model
        self._processes = processes
        mesh = init_device_mesh(processes.device.type, (processes.world_size,))
        for module in (*(layer.module for layer in get_layers(model)), self):
            unit = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            unit.set_gradient_divide_factor(1.0)  # The batch's gradient is their sum; the default is the mean.
            unit.set_force_sum_reduction_for_comms(True)

    def forward(self, chunk: Chunk) -> Tensor:
        """Run a chunk, with the root's weights gathered."""
        return chunk()

    def chunks(self, own: Sequence[Chunk]) -> list[Chunk]:
        """This process's chunks, the last of them repeated until all processes have equally many.

        Gathering a layer is a collective: all processes have to run it equally often.
        """
        missing = self._processes.max(len(own)) - len(own)
        return [partial(self, chunk) for chunk in (*own, *[own[-1]] * missing)]


def gather_parameters(tensors: Mapping[str, Tensor], processes: Distributed) -> dict[str, Tensor]:
    """Sharded tensors gathered into main memory, any others unchanged; for the main process, empty in the others.

    Every process makes this call.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if processes.is_main:
            gathered[name] = whole
    return gathered


def local_shard(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, placed and sharded as `like`."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
