"""Steps with gradients of their own against autograd's of the same step, written plainly."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from bellm.backbone.fused_modules import GatedSiLUFunction, LoRALinearFunction, RMSNormFunction


def numbers(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()


def plain_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return states / torch.sqrt((states**2).mean(-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_norm_and_its_gradient(scale: float) -> None:
    states, weight = numbers(2, 3, 8), numbers(8, seed=1)
    small = (states * scale).detach().requires_grad_()
    torch.testing.assert_close(RMSNormFunction.apply(small, weight, 1e-6), plain_norm(small, weight, 1e-6))
    assert gradcheck(RMSNormFunction.apply, (small, weight, 1e-6), atol=1e-4 / scale)
    frozen = weight.detach()
    (found,) = torch.autograd.grad(RMSNormFunction.apply(small, frozen, 1e-6).sin().sum(), small)
    (wanted,) = torch.autograd.grad(plain_norm(small, frozen, 1e-6).sin().sum(), small)
    torch.testing.assert_close(found, wanted)


def test_the_gate_and_its_gradient() -> None:
    gate, up = numbers(2, 3, 8), numbers(2, 3, 8, seed=1)
    torch.testing.assert_close(GatedSiLUFunction.apply(gate, up), functional.silu(gate) * up)
    assert gradcheck(GatedSiLUFunction.apply, (gate, up))


@pytest.mark.parametrize("biased", [True, False])
def test_the_adapted_product_and_its_gradient(biased: bool) -> None:
    states, down, up = numbers(2, 3, 8), numbers(2, 8, seed=1), numbers(5, 2, seed=2)
    weight, bias = numbers(5, 8, seed=3).detach(), numbers(5, seed=4).detach() if biased else None
    wanted = functional.linear(states, weight, bias) + states @ down.T @ up.T
    torch.testing.assert_close(LoRALinearFunction.apply(states, weight, bias, down, up), wanted)
    assert gradcheck(LoRALinearFunction.apply, (states, weight, bias, down, up))


def test_the_first_layer_asks_for_no_gradient_of_what_it_got() -> None:
    states, down, up = numbers(3, 8).detach(), numbers(2, 8, seed=1), numbers(5, 2, seed=2)
    LoRALinearFunction.apply(states, numbers(5, 8, seed=3).detach(), None, down, up).sum().backward()
    assert states.grad is None
    assert down.grad is not None


def test_half_precision_comes_back_in_the_dtypes_that_came() -> None:
    states = numbers(4, 8).detach().bfloat16().requires_grad_()
    down, up = (each.detach().float().requires_grad_() for each in (numbers(2, 8, seed=1), numbers(5, 2, seed=2)))
    answer = LoRALinearFunction.apply(states, numbers(5, 8, seed=3).detach().bfloat16(), None, down, up)
    RMSNormFunction.apply(answer, torch.ones(5, dtype=torch.bfloat16), 1e-6).sum().backward()
    assert answer.dtype == states.grad.dtype == torch.bfloat16
    assert down.grad.dtype == up.grad.dtype == torch.float32
