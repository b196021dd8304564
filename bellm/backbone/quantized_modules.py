"""Linear modules and embedding tables in 8 or 4 bits, and how transformers finds them in a checkpoint.

A matrix is multiplied in the dtype of the states, to which it is expanded for each product: memory and files are
smaller, products are not faster. The codes are plain integers in safetensors, the same on every device.

Shapes: O outputs, I inputs, V tokens of the vocabulary, D width, G groups of inputs.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bellm.backbone.architecture import get_layers

Bits = Literal[8, 4]

GROUP = 32
"""Inputs that share a scale and a minimum in 4 bits, which makes 5 bits a weight."""

_METHOD = "bellm"


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _as_bits(values: Tensor) -> Tensor:
    """The bits of bfloat16, as integers: these stay what they are in a model of any dtype."""
    return values.to(torch.bfloat16).view(torch.int16)


def _from_bits(bits: Tensor) -> Tensor:
    return bits.view(torch.bfloat16).float()


def _rows_to_int8(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight.float() / scale.float()).round_().clamp_(-127, 127).to(torch.int8)


def _row_scale(weight: Tensor) -> Tensor:
    """Steps of each row; 1 for a row of zeros."""
    steps = weight.float().abs().amax(1, keepdim=True) / 127
    return torch.where(steps > 0, steps, 1.0)


class QuantizedLinear(nn.Module):
    """A linear module with codes of 8 bits and a scale a row, or of 4 bits with a scale and a minimum a group."""

    minimum: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bits: Bits, bias: Tensor | None) -> None:
        """Make room for the codes; they are 0."""
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        groups = 1 if bits == 8 else -(-in_features // GROUP)
        codes = (out_features, in_features if bits == 8 else groups * GROUP // 2)
        self.weight = _constant(torch.zeros(codes, dtype=torch.int8 if bits == 8 else torch.uint8))
        self.scale = _constant(torch.zeros(out_features, groups, dtype=torch.int16))
        self.minimum = None if bits == 8 else _constant(torch.zeros(out_features, groups, dtype=torch.int16))
        self.bias = bias

    @torch.no_grad()
    def fill(self, weight_OI: Tensor) -> "QuantizedLinear":
        """Take the nearest codes of a matrix.

        Scales are rounded first, so that the codes make up for it.
        """
        if self.bits == 8:
            scale = _as_bits(_row_scale(weight_OI))
            self.weight, self.scale = _constant(_rows_to_int8(weight_OI, _from_bits(scale))), _constant(scale)
            return self
        padded = functional.pad(weight_OI.float(), (0, -self.in_features % GROUP), mode="constant")
        groups_OGI = padded.view(self.out_features, -1, GROUP)
        low, high = groups_OGI.amin(-1), groups_OGI.amax(-1)
        minimum, steps = _as_bits(low), (high - low) / 15
        scale = _as_bits(torch.where(steps > 0, steps, 1.0))
        codes = (groups_OGI - _from_bits(minimum)[..., None]) / _from_bits(scale)[..., None]
        codes = codes.round_().clamp_(0, 15).to(torch.uint8).flatten(1)
        self.weight = _constant(codes[:, ::2] | codes[:, 1::2] << 4)
        self.scale, self.minimum = _constant(scale), _constant(minimum)
        return self

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The matrix (O, I) that the codes stand for, rounded to the dtype once."""
        if self.minimum is None:
            return self.weight.float().mul_(_from_bits(self.scale)).to(dtype)
        codes = torch.stack((self.weight & 15, self.weight >> 4), -1).view(self.out_features, -1, GROUP).float()
        groups_OGI = codes.mul_(_from_bits(self.scale)[..., None]).add_(_from_bits(self.minimum)[..., None])
        return groups_OGI.flatten(1)[:, : self.in_features].to(dtype)

    def forward(self, states: Tensor) -> Tensor:
        """Multiply with the expanded matrix."""
        return functional.linear(states, self.expanded(states.dtype), self.bias)

    def extra_repr(self) -> str:
        """Sizes and bits."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class QuantizedEmbedding(nn.Module):
    """An embedding table with codes of 8 bits and a scale a row."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype) -> None:
        """Make room for the codes; they are 0. Vectors are of the dtype."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = _constant(torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8))
        self.scale = _constant(torch.zeros(num_embeddings, 1, dtype=dtype))

    @torch.no_grad()
    def fill(self, weight_VD: Tensor) -> "QuantizedEmbedding":
        """Take the nearest codes of a table."""
        scale = _row_scale(weight_VD).to(weight_VD.dtype)
        self.weight, self.scale = _constant(_rows_to_int8(weight_VD, scale)), _constant(scale)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows."""
        return self.weight[ids].to(self.scale.dtype) * self.scale[ids]


@register_quantization_config(_METHOD)
class QuantizedWeightsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a checkpoint with such modules."""

    def __init__(self, bits: Bits = 8, **_: Any) -> None:
        """Name the method by which transformers finds the quantizer."""
        self.quant_method: Any = _METHOD
        self.bits = bits


@register_quantizer(_METHOD)
class QuantizedWeightsLoader(HfQuantizer):  # type: ignore[misc]
    """Put such modules into a model before transformers reads their codes."""

    requires_calibration = True
    is_trainable = False

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        with torch.device("meta"):
            _replace_modules(model, self.quantization_config.bits, lambda quantized, _: quantized)

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` may write the model."""
        return True


def quantize_modules(model: PreTrainedModel, bits: Bits) -> None:
    """Replace linear modules of the decoder layers, and the embedding table, by quantized ones, in place.

    The table takes 8 bits, and stays as it is where a language-model head may share it, or where it is of a model's own
    class.
    """
    _replace_modules(model, bits, lambda quantized, weight: quantized.to(weight.device).fill(weight))
    config = QuantizedWeightsConfig(bits)
    vars(model).update(is_quantized=True, quantization_method=_METHOD, hf_quantizer=QuantizedWeightsLoader(config))
    model.config.quantization_config = config


def _replace_modules(model: PreTrainedModel, bits: Bits, fill: Callable[[Any, Tensor], nn.Module]) -> None:
    for layer in get_layers(model):
        for parent in list(layer.module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in (nn.Linear, Conv1D):
                    weight = child.get_parameter("weight")
                    weight_OI = weight.T if isinstance(child, Conv1D) else weight
                    outputs, inputs = weight_OI.shape
                    bias: Any = child.bias
                    setattr(parent, name, fill(QuantizedLinear(inputs, outputs, bits, bias), weight_OI))
    table = model.get_input_embeddings()
    if type(table) is nn.Embedding and model.get_output_embeddings() is None:
        quantized = QuantizedEmbedding(table.num_embeddings, table.embedding_dim, table.weight.dtype)
        model.set_input_embeddings(fill(quantized, table.weight))
