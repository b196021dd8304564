"""Weights shared out among processes, for a model that one device does not hold (FSDP, arXiv 2304.11277).

Each process keeps a part of every weight, of its gradient and of what the optimiser remembers of it. A layer is whole
while it computes.
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
    """Computes with a model whose weights are shared out; what is outside its layers is whole in each computation."""

    def __init__(self, model: PreTrainedModel, distributed: Distributed) -> None:
        """Leave this process its part of each weight, on its device; the model itself is changed.

        Raises:
            BellmError: Torch is too old.
        """
        super().__init__()
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise BellmError(f"sharded=True needs a newer torch than {torch.__version__}: pip install -U torch.")
        self.model = model
        self._processes = distributed
        mesh = init_device_mesh(distributed.device.type, (distributed.world_size,))
        for module in (*(layer.module for layer in get_layers(model)), self):
            unit = fully_shard(module, mesh=mesh, reshard_after_forward=True)
            unit.set_gradient_divide_factor(1.0)  # Gradients add up to that of the batch; the usual is their mean.
            unit.set_force_sum_reduction_for_comms(True)

    def forward(self, chunk: Chunk) -> Tensor:
        """Compute a chunk of the model's work."""
        return chunk()

    def chunks(self, own: Sequence[Chunk]) -> list[Chunk]:
        """One's own chunks, and the last of them again until all processes have equally many.

        A layer is made whole by all processes at once: they have to compute equally often.
        """
        idle = self._processes.most(len(own)) - len(own)
        return [partial(self, chunk) for chunk in (*own, *[own[-1]] * idle)]


def gather_parameters(tensors: Mapping[str, Tensor], distributed: Distributed) -> dict[str, Tensor]:
    """Tensors whose parts lie on all processes, whole and in main memory; any others as they are.

    Every process makes this call; the first alone is given something.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if distributed.is_main:
            found[name] = whole
    return found


def local_shard(whole: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor that is shared out as another one is, on that one's device."""
    there = whole.to(like.device)
    if not isinstance(like, DTensor):
        return there
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
