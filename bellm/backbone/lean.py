"""The same arithmetic in fewer passes over memory.

transformers writes a root-mean-square norm as seven element-wise steps, each of which reads and writes every state;
torch has it as one. A gated MLP needs room for its widest states once where it takes it four times. On a processor that
multiplies matrices fast, such passes and such room are what an encoder waits for.
"""

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from bellm.backbone.fused import GatedSiLUFunction, LoRALinearFunction, RMSNormFunction

_SCALES = (1.0, 1e-3)
"""Sizes of the states on which modules are compared; at the small one the epsilon of a norm shows."""


class _GatedMLP(nn.Module):
    """A gated MLP that works in the room of its first product."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, states: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # A gradient needs what would be overwritten.
            states = GatedSiLUFunction.apply(self.gate_proj(states), self.up_proj(states))  # type: ignore[no-untyped-call]
            return cast(Tensor, self.down_proj(states))
        gate: Tensor = functional.silu(self.gate_proj(states), inplace=True)
        down: Tensor = self.down_proj(gate.mul_(self.up_proj(states)))
        return down


class _Norm(nn.RMSNorm):
    """A root-mean-square norm in one step, forwards and backwards."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__(weight.shape, eps, elementwise_affine=False)
        self.weight = weight

    def forward(self, states: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(states)
        return cast(Tensor, RMSNormFunction.apply(states, self.weight, self.eps))  # type: ignore[no-untyped-call]


class _AdaptedLinear(nn.Module):
    """A frozen linear layer and one low-rank adapter, in PEFT's place."""

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
        answer = LoRALinearFunction.apply(states, base.weight, base.bias, layer.lora_A[name].weight, up)  # type: ignore[no-untyped-call]
        return cast(Tensor, answer)


def fuse_modules(model: PreTrainedModel) -> None:
    """Put a leaner module, on the same weights, in the place of every one that it equals; the model changes."""
    for leaner in (_norm, _mlp, _adapted):
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if (found := leaner(child)) is not None and not (child._forward_hooks or child._forward_pre_hooks):
                    setattr(module, name, found)


def _norm(norm: nn.Module) -> nn.Module | None:
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or list(norm._parameters) != ["weight"] or eps is None:
        return None
    assert isinstance(weight, nn.Parameter)
    fused = _Norm(weight, eps)
    return fused if _equal(norm, fused, weight.shape[0], weight) else None


def _mlp(mlp: nn.Module) -> nn.Module | None:
    children = dict(mlp.named_children())
    children.pop("act_fn", None)
    gate: Any = children.get("gate_proj")
    if set(children) != {"gate_proj", "up_proj", "down_proj"} or not hasattr(gate, "in_features"):
        return None
    found = _GatedMLP(**children)
    return found if gate.weight.is_floating_point() and _equal(mlp, found, gate.in_features, gate.weight) else None


def _adapted(layer: Any) -> nn.Module | None:
    """Nothing to compare: at first an adapter adds nothing, and later it may add what rounding hides."""
    lora = sys.modules.get("peft.tuners.lora.layer")
    if lora is None or type(layer) is not lora.Linear:
        return None
    name, *others = layer.active_adapters
    plain = not others and name in layer.lora_A and not layer.lora_variant and not layer.merged
    biased = layer.lora_bias.get(name, False)
    frozen = type(layer.base_layer) is nn.Linear and not layer.base_layer.weight.requires_grad
    return _AdaptedLinear(layer) if plain and frozen and not biased else None


@torch.inference_mode()
def _equal(module: nn.Module, leaner: nn.Module, width: int, like: Tensor) -> bool:
    states = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(like)
    for scale in _SCALES:
        try:
            wanted, found = module(states * scale), leaner(states * scale)
        except (RuntimeError, TypeError):  # It wants other arguments, or other shapes.
            return False
        rounding = 4 * torch.finfo(like.dtype).eps * wanted.abs() + 1e-6 * scale
        if not bool(((wanted - found).abs() <= rounding).all()):
            return False
    return True
