import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny import ARCHITECTURES, NO_ATTENTION, tiny
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from bellm import Encoder
from bellm.backbone.architecture import forward_parameters, get_decoder, get_layers
from bellm.errors import LayerError
from tests.decoders import CASES, decoder

NESTED = ("hrm_text",)
"""Decoders that run one stack of layers inside another."""

KINDS = {
    "llama": ["full"] * 4,
    "mistral": ["sliding:4"] * 4,
    "phi3": ["sliding:4"] * 4,
    "gemma3_text": ["sliding:4", "full", "sliding:4", "full"],
    "gpt_oss": ["sliding:4", "full", "sliding:4", "full"],
    "llama4_text": ["chunked:4", "chunked:4", "chunked:4", "full"],
    "qwen3_next": ["Qwen3NextGatedDeltaNet", "full", "Qwen3NextGatedDeltaNet", "full"],
    "lfm2": ["Lfm2ShortConv", "full", "Lfm2ShortConv", "full"],
    "jamba": ["JambaMambaMixer", "full", "JambaMambaMixer", "full"],
}


def model_of(name: str) -> PreTrainedModel:
    return decoder(name, "eager")


@pytest.mark.parametrize("name", KINDS)
def test_kind_says_what_a_layer_mixes_tokens_with(name: str) -> None:
    layers = get_layers(model_of(name))
    assert [layer.kind for layer in layers] == KINDS[name]
    assert [layer.can_open for layer in layers] == [":" in kind or kind == "full" for kind in KINDS[name]]
    assert [layer.index for layer in layers] == list(range(4))


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_each_layer_with_attention_has_one_module_that_takes_a_mask(name: str) -> None:
    for layer in get_layers(model_of(name)):
        assert len(layer.attention) == layer.can_open
        assert all("attention_mask" in forward_parameters(module) for module in layer.attention)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - NESTED))
def test_decoder_is_found_in_every_architecture(name: str) -> None:
    model = tiny(name)
    assert get_decoder(model) is not model
    assert "input_ids" in forward_parameters(get_decoder(model))
    layers = get_layers(model)
    assert len(layers) >= 2
    assert any(layer.can_open for layer in layers)


def test_decoder_is_found_without_a_head() -> None:
    bare = model_of("llama").model
    assert get_decoder(bare) is bare
    assert isinstance(get_layers(bare)[2].attention[0], LlamaAttention)


class PassesOn(LlamaModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class PassesOnAttention(LlamaAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def passing_on(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: forward(*args, **kwargs)


def test_a_forward_that_passes_everything_on_has_the_parameters_behind_it(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    options: Any = {"tokenizer": tiny_tokenizer, "bidirectional": "last:2"}
    texts = ["A heron waits.", "Snow."]
    wanted = Encoder.from_pretrained(tiny_model, **options).encode(texts)
    model = copy.deepcopy(tiny_model)
    attention = get_layers(model)[2].attention[0]
    get_decoder(model).__class__, attention.__class__ = PassesOn, PassesOnAttention
    attention = get_layers(model)[3].attention[0]
    attention.forward = passing_on(attention.forward)
    np.testing.assert_allclose(Encoder.from_pretrained(model, **options).encode(texts), wanted, atol=1e-5)
    # A function is not copied with the model that it belongs to.
    get_decoder(model).forward = passing_on(get_decoder(model).forward)
    with pytest.raises(
        LayerError, match=r"Layers 0-3 of LlamaForCausalLM did not run: a function in place of its forward"
    ):
        Encoder.from_pretrained(model, **options)


@pytest.mark.parametrize("name", [*NO_ATTENTION, *NESTED])
def test_a_purely_recurrent_or_nested_model_is_refused(name: str) -> None:
    with pytest.raises(LayerError, match="has no single list of decoder layers with attention"):
        get_layers(tiny(name))
