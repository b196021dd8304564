"""Adapters against PEFT's own arithmetic."""

import copy

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone import adapters
from bellm.backbone.fused_modules import _AdaptedLinear, _GatedMLP, fuse_modules
from bellm.errors import BellmError


def adapted(dropout: float = 0.0) -> PreTrainedModel:
    """A tiny Llama whose adapters add something."""
    torch.manual_seed(0)
    model = adapters.add_lora(tiny("llama").eval(), rank=4, alpha=8, dropout=dropout, targets="all-linear").eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def gradients(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids).logits.sin().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


IDS = torch.tensor([[5, 17, 29, 41, 8]])


def test_only_adapters_learn_and_nothing_changes_at_first() -> None:
    model = tiny("llama").eval()
    wanted = model(IDS).logits
    found = adapters.add_lora(model, rank=4, alpha=8, dropout=0.0, targets="all-linear")
    torch.testing.assert_close(found(IDS).logits, wanted, rtol=0, atol=0)
    learning = [name for name, weight in found.named_parameters() if weight.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert not any("lm_head" in name for name in learning)


def test_lean_adapters_give_pefts_answers_and_gradients() -> None:
    model = adapted()
    leaner = copy.deepcopy(model)
    fuse_modules(leaner)
    replaced = [module for module in leaner.modules() if isinstance(module, _AdaptedLinear)]
    assert len(replaced) == 7 * model.config.num_hidden_layers
    assert sum(isinstance(module, _GatedMLP) for module in leaner.modules()) == model.config.num_hidden_layers
    torch.testing.assert_close(leaner(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)
    wanted, found = gradients(model, IDS), gradients(leaner, IDS)
    found = {name.replace(".layer.", "."): value for name, value in found.items()}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name.replace(".layer.", ".")], gradient, rtol=1e-4, atol=1e-7)


def test_lean_adapters_switch_off_and_drop_out_as_pefts_do() -> None:
    model = adapted(dropout=0.5)
    leaner = copy.deepcopy(model)
    fuse_modules(leaner)
    with adapters.disable_adapters(leaner), adapters.disable_adapters(model):
        torch.testing.assert_close(leaner(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)
    with adapters.training_adapters(model, leaner):
        torch.manual_seed(1)
        wanted = model(IDS).logits
        torch.manual_seed(1)
        torch.testing.assert_close(leaner(IDS).logits, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(wanted, model(IDS).logits, atol=1e-3)


def test_at_work_only_adapters_drop_out() -> None:
    model = adapted(dropout=0.5)
    with adapters.training_adapters(model):
        dropping = [name for name, module in model.named_modules() if module.training and not list(module.children())]
    assert dropping
    assert all("lora_dropout" in name for name in dropping)
    assert not any(module.training for module in model.modules())


def test_merging_keeps_the_answers() -> None:
    model = adapted()
    wanted = model(IDS).logits
    merged = adapters.merge_adapters(model)
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-5, atol=1e-5)
    assert adapters.merge_adapters(merged) is merged


def test_targets_that_are_not_there_are_refused_in_one_line() -> None:
    with pytest.raises(BellmError, match="No adapter fits") as caught:
        adapters.add_lora(tiny("llama"), rank=4, alpha=8, dropout=0.0, targets=["nowhere"])
    assert "\n" not in str(caught.value)
