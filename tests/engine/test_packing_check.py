"""A model is packed only while its packed copy gives the same vectors."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from bellm import Encoder
from bellm.backbone.adapters import training_adapters
from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.states import token_states
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.tensors.similarity import tolerances
from tests.decoders import decoder

TEXTS = ["A heron stands in the water.", "A heron stands still.", "Snow fell all night."]


def test_a_model_is_tried_once(tiny_model: LlamaForCausalLM) -> None:
    model = open_layers(tiny_model, [2])
    check = check_packing(model)
    assert check.packed_model is not None
    assert check.distance is not None
    assert check.limit is not None
    assert check.distance <= check.limit == tolerances(torch.float32).packing  # No rounding had to explain it.
    assert check_packing(model) is check
    assert check_packing(open_layers(tiny_model, [2])) is not check


def test_what_rounding_explains_is_no_fault(tiny_model: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny_model).to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:  # Attention so sharp that a rounding may choose another token.
            layer.self_attn.q_proj.weight.mul_(100)
    check = check_packing(model)
    assert check.packed_model is not None
    assert check.distance is not None
    assert check.limit is not None
    assert tolerances(torch.bfloat16).packing < check.distance <= check.limit


@pytest.mark.parametrize("opened", [[], [2, 3]], ids=str)
def test_a_model_that_views_the_output_of_attention_is_packed(opened: list[int]) -> None:
    check = check_packing(open_layers(decoder("afmoe"), opened))
    assert check.packed_model is not None, check.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_leaks_from_text_to_text_runs_padded(tiny_model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    model = open_layers(copy.deepcopy(tiny_model).to(dtype), [])

    def leak(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output + output.mean(1, keepdim=True) if isinstance(output, torch.Tensor) else output

    get_layers(model)[1].module.register_forward_hook(leak)
    check = check_packing(model)
    assert check.packed_model is None
    assert "packed vectors differ from padded ones by" in check.reason


@pytest.mark.parametrize("opened", [[], [2, 3], [0, 1, 2, 3]], ids=["causal", "upper", "all"])
def test_texts_are_checked_side_by_side(tiny_model: LlamaForCausalLM, opened: list[int]) -> None:
    """What looks only at the token before shows where a text has another one before it, or a prefix that lies apart."""
    model = open_layers(copy.deepcopy(tiny_model), opened)

    def shift(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)

    get_layers(model)[1].module.get_submodule("mlp").register_forward_hook(shift)
    assert "packed vectors differ from padded ones by" in check_packing(model).reason


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_a_change_to_the_model_is_noticed(tiny_encoder: Encoder) -> None:
    own = copy.deepcopy(tiny_encoder.model)  # Merging writes into weights that twins share.
    encoder = Encoder.from_pretrained(own, tokenizer=tiny_encoder.tokenizer, bidirectional="last:3")
    before = encoder.encode(TEXTS)
    adapted = get_peft_model(encoder.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    changed = encoder.encode(TEXTS)
    assert abs(changed - before).max() > 1e-3
    encoder = encoder.with_model(adapted.merge_and_unload())
    assert abs(encoder.encode(TEXTS) - changed).max() < 1e-4
    assert encoder.batching_mode == "packed"


def _merge(adapted: Any) -> None:
    adapted.merge_adapter()


def _switch(adapted: Any) -> None:
    adapted.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.set_adapter("other")


def _scale(adapted: Any) -> None:
    for module in adapted.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(10.0)


def _sharpen(adapted: Any) -> None:
    for module in adapted.modules():
        if hasattr(module, "num_key_value_groups"):
            module.scaling *= 3


def _turn(adapted: Any) -> None:
    for module in adapted.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq * 2


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("change", [_merge, _switch, _scale, _sharpen, _turn])
def test_vectors_follow_what_others_do_to_the_model(tiny_encoder: Encoder, change: Callable[[Any], None]) -> None:
    own = copy.deepcopy(tiny_encoder.model)
    encoder = Encoder.from_pretrained(own, tokenizer=tiny_encoder.tokenizer, prompt="raw", bidirectional="last:2")
    torch.manual_seed(0)
    adapted = get_peft_model(encoder.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before = encoder.encode(TEXTS)
    change(adapted)
    vectors = encoder.encode(TEXTS)
    with torch.no_grad():
        alone = [
            token_states(encoder.model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0, -1].numpy()
            for ids in encoder.tokenize(TEXTS).ids
        ]
    assert abs(vectors - np.stack(alone)).max() < 1e-4
    assert (abs(vectors - before).max() > 1e-3) == (change is not _merge)
    assert encoder.batching_mode == "packed"


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.
def test_a_training_step_is_no_change(tiny_model: LlamaForCausalLM) -> None:
    adapted: Any = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(lora_dropout=0.5, target_modules=["q_proj"]))
    check = check_packing(adapted)
    with training_adapters(adapted):
        assert check_packing(adapted) is check
    assert check_packing(adapted) is check


def test_what_a_forward_pass_leaves_in_the_model_is_no_change(tiny_model: LlamaForCausalLM) -> None:
    model = open_layers(copy.deepcopy(tiny_model), [2])

    def remember(module: Any, args: tuple[Any, ...], output: Any) -> None:
        module.num_calls = getattr(module, "num_calls", 0) + 1

    get_layers(model)[1].module.register_forward_hook(remember)
    get_layers(model)[1].module.num_calls = 0
    check = check_packing(model)
    assert check.packed_model is not None
    PaddedRunner(model, Tokens([[5, 6, 7]], [(0, 3)], 0), HiddenStateReadout("last"), 0).vectors([0])
    assert check_packing(model) is check


def test_new_weights_in_place_are_used(tiny_encoder: Encoder) -> None:
    encoder = Encoder.from_pretrained(copy.deepcopy(tiny_encoder.model), tokenizer=tiny_encoder.tokenizer)
    before = encoder.encode(TEXTS)
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight.mul_(0.5)
    assert abs(encoder.encode(TEXTS) - before).max() > 1e-3


def test_proofs_do_not_keep_models_alive(tiny_model: LlamaForCausalLM) -> None:
    model = open_layers(tiny_model, [])
    check_packing(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
