"""Steps of a decoder layer with gradients of their own, which take fewer passes over memory than autograd's.

Shapes: N tokens, D width of the input, E width of the output, R rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RMSNormFunction(Function):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Keep the states and one number a token."""
        scale = torch.rsqrt(_wide(states).square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(states, weight, scale)
        return functional.rms_norm(states, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With y = x * scale: (g - y * mean(g * y)) * scale, where g is the gradient times the weight."""
        states, weight, scale = ctx.saved_tensors
        unit = _wide(states) * scale
        gradient = _wide(gradient)
        for_weight = (gradient * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        gradient = gradient * weight
        along = (gradient * unit).mean(-1, keepdim=True)
        return gradient.addcmul_(unit, along, value=-1).mul_(scale).to(states.dtype), for_weight, None


class GatedSiLUFunction(Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Keep gate and up, but not silu(gate)."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Compute silu(gate) again: a pass is cheaper than its room."""
        gate, up = ctx.saved_tensors
        for_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return for_gate, functional.silu(gate).mul_(gradient)


class LoRALinearFunction(Function):
    """x W^T + (x A^T) (scale B)^T + bias: a frozen product and its low-rank adapter."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        """Add the adapter's product to the frozen one where it lies.

        Args:
            ctx: Of autograd.
            states: (..., D).
            weight: Frozen, (E, D).
            bias: Frozen, (E,).
            down: A, (R, D).
            up: B times its scale, (E, R).
        """
        states_ND = states.flatten(0, -2)
        down_RD, up_ER = down.to(states.dtype), up.to(states.dtype)
        inner_NR = states_ND @ down_RD.T
        answer_NE = functional.linear(states_ND, weight, bias).addmm_(inner_NR, up_ER.T)
        ctx.save_for_backward(states_ND, inner_NR, weight, down_RD, up_ER)
        ctx.dtypes = down.dtype, up.dtype
        return answer_NE.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As for a product and a sum; the frozen weight takes none."""
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
