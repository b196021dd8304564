"""Fully sharded data parallel (FSDP, arXiv 2304.11277), for a model that one device does not hold.

Each process keeps a shard of every weight, of its gradient and of its optimizer state. A layer is gathered while it
computes.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.errors import BellmError
from bellm.train.distributed import Distributed
from bellm.train.gradients import Chunk


class FSDPRoot(nn.Module):
    """Root module that runs chunks with a sharded model; weights outside its layers are gathered for each chunk."""

    def __init__(self, model: PreTrainedModel, distributed: Distributed) -> None:
        """Shard the model in place, each process on its device.

        Raises:
            BellmError: torch is too old.
        """
        super().__init__()
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise BellmError(f"sharded=True needs a newer torch than {torch.__version__}: pip install -U torch.")
        self.model = model
        self._distributed = distributed
        mesh = init_device_mesh(distributed.device.type, (distributed.world_size,))
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
        missing = self._distributed.max(len(own)) - len(own)
        return [partial(self, chunk) for chunk in (*own, *[own[-1]] * missing)]


def gather_parameters(tensors: Mapping[str, Tensor], distributed: Distributed) -> dict[str, Tensor]:
    """Sharded tensors gathered into main memory, any others unchanged; for the main process, empty in the others.

    Every process makes this call.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if distributed.is_main:
            gathered[name] = whole
    return gathered


def local_shard(whole: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, placed and sharded as `like`."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
