"""The weight matrices of decoder layers, which compression changes one by one.

Shapes: O outputs, I inputs.
"""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bellm.backbone.architecture import get_layers
from bellm.errors import LayerError


@dataclass(frozen=True)
class WeightMatrix:
    """The matrix of a linear module in a decoder layer."""

    name: str
    """Of the module, within its layer."""
    module: nn.Module

    @property
    def weight_OI(self) -> Tensor:
        """The matrix, outputs by inputs; GPT-2's modules hold it the other way round."""
        weight = self.module.get_parameter("weight")
        return weight.T if isinstance(self.module, Conv1D) else weight

    def replace(self, weight_OI: Tensor) -> None:
        """Give the module another matrix; models that share the old one keep it."""
        old = self.module.get_parameter("weight")
        new = weight_OI.T if isinstance(self.module, Conv1D) else weight_OI
        vars(self.module)["_parameters"]["weight"] = nn.Parameter(new.to(old.dtype).contiguous(), old.requires_grad)


def find_matrices(model: PreTrainedModel) -> list[tuple[WeightMatrix, ...]]:
    """Matrices of each decoder layer, first to last.

    Raises:
        LayerError: Weights are quantized, fused into one tensor for several experts, shared by layers, or apart from
            their adapters.
    """
    check_not_quantized(model)
    layers = get_layers(model)
    found = [_matrices_in(index, layer.module) for index, layer in enumerate(layers)]
    uses = Counter(id(matrix.module.weight) for matrices in found for matrix in matrices)
    if max(uses.values(), default=0) > 1:
        raise LayerError(f"Layers of {type(model).__name__} share weights: they cannot lose them one by one.")
    return found


def check_not_quantized(model: PreTrainedModel) -> None:
    """Raise a LayerError where weights are no longer in floating point."""
    if getattr(model, "is_quantized", False):
        raise LayerError(f"The weights of {type(model).__name__} are quantized already. {_FIRST}")


_FIRST = "Give the model in floating point: weights and layers go first, and what is left is quantized after that."


def _matrices_in(index: int, layer: nn.Module) -> tuple[WeightMatrix, ...]:
    found = []
    for name, module in layer.named_modules():
        where = f"Layer {index} ({name}, {type(module).__name__})"
        if hasattr(module, "lora_A"):
            raise LayerError(f"{where} has adapters: save the encoder and load it again, which merges them.")
        if type(module) in (nn.Linear, Conv1D):
            weight = module.get_parameter("weight")
            if type(weight) is not nn.Parameter or not weight.is_floating_point():
                raise LayerError(f"{where} has quantized weights already. {_FIRST}")
            found.append(WeightMatrix(name, module))
            continue
        if isinstance(module, nn.Linear):
            raise LayerError(f"{where} is no plain linear module. {_FIRST}")
        own = [] if isinstance(module, nn.Conv1d) else list(module.named_parameters(recurse=False))
        if fused := [part for part, weight in own if weight.ndim > 2]:
            raise LayerError(
                f"{where} holds all experts in one fused tensor ({fused[0]}), which cannot be pruned or quantized "
                "matrix by matrix. Take a dense model."
            )
    if not found:
        raise LayerError(f"Layer {index} ({type(layer).__name__}) has no linear modules with weights to remove.")
    return tuple(found)
