"""Leaner modules are those they replace, or replace nothing."""

import pytest
import torch
from tiny import tiny
from torch import nn

from bellm.backbone.fused_modules import fuse_modules


class Gated(nn.Module):
    """A gated MLP as transformers has it, with an activation to choose."""

    def __init__(self, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)
        self.act_fn = act_fn

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


class WholeRMSNorm(nn.Module):
    """A norm that looks fusible and adds one to its weight."""

    def __init__(self, eps: float = 1e-6, offset: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 16))
        self.eps, self.offset = eps, offset

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * (states.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (self.offset + self.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_models_norms_become_torchs_own_on_the_same_weights(dtype: torch.dtype) -> None:
    model = tiny("qwen3").to(dtype)
    norms = {name: module for name, module in model.named_modules() if type(module).__name__ == "Qwen3RMSNorm"}
    weights = {name: norm.weight for name, norm in norms.items()}
    states = {name: torch.randn(3, len(weight), dtype=dtype) for name, weight in weights.items()}
    wanted = {name: norm(states[name]) for name, norm in norms.items()}
    fuse_modules(model)
    for name, weight in weights.items():
        fused = model.get_submodule(name)
        assert isinstance(fused, nn.RMSNorm)
        assert fused.weight is weight
        torch.testing.assert_close(fused(states[name]), wanted[name])


def test_a_norm_that_does_something_else_stays() -> None:
    model = nn.ModuleDict({"offset": WholeRMSNorm(), "plain": WholeRMSNorm(offset=0.0), "layer": nn.LayerNorm(16)})
    model["wrong_eps"] = WholeRMSNorm(offset=0.0)
    model["wrong_eps"].variance_epsilon = 1e-5
    model["hooked"] = WholeRMSNorm(offset=0.0)
    model["hooked"].register_forward_hook(lambda *_: None)
    fuse_modules(model)  # type: ignore[arg-type]
    assert [name for name, module in model.items() if isinstance(module, nn.RMSNorm)] == ["plain"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_mlp_works_in_one_room_on_the_same_weights(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"silu": Gated(nn.SiLU()), "gelu": Gated(nn.GELU())}).to(dtype)
    before = dict(model.items())
    fuse_modules(model)  # type: ignore[arg-type]
    assert model["gelu"] is before["gelu"]
    assert model["silu"] is not before["silu"]
    assert model["silu"].down_proj is before["silu"].down_proj
    states = torch.randn(5, 8, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(model["silu"](states), before["silu"](states))


def test_the_mlps_of_a_model_are_found() -> None:
    model = tiny("llama")
    fuse_modules(model)
    assert {type(layer.mlp).__name__ for layer in model.model.layers} == {"_GatedMLP"}
