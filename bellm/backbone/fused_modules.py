"""Fused modules: transformers' RMSNorm, gated MLP and LoRA linear with fewer passes over memory, also backward.

transformers computes an RMSNorm in seven element-wise steps, and a gated MLP allocates its widest states four times. On
a CPU with fast matrix products an encoder is bound by these passes.

Shapes: N tokens, D width of the input, E width of the output, R rank.
"""

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers import PreTrainedModel

_SCALES = (1.0, 1e-3)
"""Sizes of the states on which modules are compared; at the small one the epsilon of a norm shows."""


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RMSNormFunction(Function):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension of x."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Save the states and one scale for each token."""
        scale = torch.rsqrt(_at_least_float32(states).square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(states, weight, scale)
        return functional.rms_norm(states, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With y = x * scale: (g - y * mean(g * y)) * scale, where g is the gradient times the weight."""
        states, weight, scale = ctx.saved_tensors
        unit = _at_least_float32(states) * scale
        gradient = _at_least_float32(gradient)
        for_weight = (gradient * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        gradient = gradient * weight
        along = (gradient * unit).mean(-1, keepdim=True)
        return gradient.addcmul_(unit, along, value=-1).mul_(scale).to(states.dtype), for_weight, None


class GatedSiLUFunction(Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Save gate and up, but not silu(gate)."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute silu(gate): a pass is cheaper than its memory."""
        gate, up = ctx.saved_tensors
        for_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return for_gate, functional.silu(gate).mul_(gradient)


class LoRALinearFunction(Function):
    """x W^T + (x A^T) (scale B)^T + bias: a frozen linear layer with its low-rank adapter.

    x is (..., D), W (E, D), A (`down`) is (R, D), scale B (`up`) is (E, R).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        """Add the adapter's product to the frozen one in place."""
        states_ND = states.flatten(0, -2)
        down_RD, up_ER = down.to(states.dtype), up.to(states.dtype)
        inner_NR = states_ND @ down_RD.T
        output_NE = functional.linear(states_ND, weight, bias).addmm_(inner_NR, up_ER.T)
        ctx.save_for_backward(states_ND, inner_NR, weight, down_RD, up_ER)
        ctx.dtypes = down.dtype, up.dtype
        return output_NE.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the states, A and B; the frozen weight and bias have none."""
        states_ND, inner_NR, weight, down_RD, up_ER = ctx.saved_tensors
        gradient_NE = gradient.flatten(0, -2)
        inner_NR_gradient = gradient_NE @ up_ER
        for_states = None
        if ctx.needs_input_grad[0]:
            for_states = (gradient_NE @ weight).addmm_(inner_NR_gradient, down_RD)
            for_states = for_states.view(*gradient.shape[:-1], -1)
        for_down = (inner_NR_gradient.T @ states_ND).to(ctx.dtypes[0])
        for_up = (gradient_NE.T @ inner_NR).to(ctx.dtypes[1])
        return for_states, None, None, for_down, for_up


class _GatedMLP(nn.Module):
    """A gated MLP that overwrites the output of its gate projection."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, states: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # Backward needs what would be overwritten.
            states = GatedSiLUFunction.apply(self.gate_proj(states), self.up_proj(states))  # type: ignore[no-untyped-call]
            return cast(Tensor, self.down_proj(states))
        gate = functional.silu(self.gate_proj(states), inplace=True)
        return cast(Tensor, self.down_proj(gate.mul_(self.up_proj(states))))


class _Norm(nn.RMSNorm):
    """RMSNorm in one step, forward and backward."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__(weight.shape, eps, elementwise_affine=False)
        self.weight = weight

    def forward(self, states: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(states)
        return cast(Tensor, RMSNormFunction.apply(states, self.weight, self.eps))  # type: ignore[no-untyped-call]


class _AdaptedLinear(nn.Module):
    """A frozen linear layer with one LoRA adapter, in place of PEFT's module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        layer = self.layer
        (name,) = layer.active_adapters
        drops_out = layer.lora_dropout[name].training and not isinstance(layer.lora_dropout[name], nn.Identity)
        if layer.disable_adapters or drops_out:
            return cast(Tensor, layer(states))
        base, up = layer.base_layer, layer.lora_B[name].weight * layer.scaling[name]
        return cast(Tensor, LoRALinearFunction.apply(states, base.weight, base.bias, layer.lora_A[name].weight, up))  # type: ignore[no-untyped-call]


def fuse_modules(model: PreTrainedModel) -> None:
    """Replace modules, in place, by fused ones on the same weights where these give the same numbers.

    On the meta device, where nothing has numbers, every module that looks like it is replaced.
    """
    for fuse in (_fuse_norm, _fuse_mlp, _fuse_lora):
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if (fused := fuse(child)) is not None and not (child._forward_hooks or child._forward_pre_hooks):
                    setattr(module, name, fused)


def _fuse_norm(norm: nn.Module) -> nn.Module | None:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or list(norm._parameters) != ["weight"] or eps is None:
        return None
    weight = norm.get_parameter("weight")
    fused = _Norm(weight, eps)
    return fused if _equal(norm, fused, weight.shape[0], weight) else None


def _fuse_mlp(mlp: nn.Module) -> nn.Module | None:
    children = dict(mlp.named_children())
    children.pop("act_fn", None)
    gate: Any = children.get("gate_proj")
    if set(children) != {"gate_proj", "up_proj", "down_proj"} or not hasattr(gate, "in_features"):
        return None
    fused = _GatedMLP(**children)
    return fused if gate.weight.is_floating_point() and _equal(mlp, fused, gate.in_features, gate.weight) else None


def _fuse_lora(layer: Any) -> nn.Module | None:
    """Fuse a linear layer with its one plain adapter; None for other layers."""
    # Not compared with the original: a new adapter adds zeros, a trained one perhaps less than rounding.
    lora = sys.modules.get("peft.tuners.lora.layer")
    if lora is None or type(layer) is not lora.Linear:
        return None
    name, *others = layer.active_adapters
    plain = not (others or name not in layer.lora_A or layer.lora_variant or layer.merged or layer.lora_bias.get(name))
    frozen = type(layer.base_layer) is nn.Linear and not layer.base_layer.weight.requires_grad
    return _AdaptedLinear(layer) if plain and frozen else None


@torch.inference_mode()
def _equal(module: nn.Module, fused: nn.Module, width: int, like: Tensor) -> bool:
    if like.is_meta:  # Without numbers there are sizes alone to be right about.
        return True
    states = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(like)
    for scale in _SCALES:
        try:
            expected, output = module(states * scale), fused(states * scale)
        except (RuntimeError, TypeError):  # It takes other arguments, or other shapes.
            return False
        rounding = 4 * torch.finfo(like.dtype).eps * expected.abs() + 1e-6 * scale
        if not bool(((expected - output).abs() <= rounding).all()):
            return False
    return True
