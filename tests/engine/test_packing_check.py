"""A model is packed only while its packed copy gives the same vectors."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from bellm import Encoder
from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.engine.packing_check import check_packing
from bellm.tensors.similarity import tolerances

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_leaks_from_text_to_text_runs_padded(tiny_model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    model = open_layers(copy.deepcopy(tiny_model).to(dtype), [])

    def leak(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output + output.mean(1, keepdim=True) if isinstance(output, torch.Tensor) else output

    get_layers(model)[1].module.register_forward_hook(leak)
    check = check_packing(model)
    assert check.packed_model is None
    assert "packed vectors differ from padded ones by" in check.reason


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
