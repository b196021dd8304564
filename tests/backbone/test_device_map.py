"""Models whose layers accelerate has spread over devices: its hooks replace the forward of every module."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import dispatch_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.errors import SourceError

TEXTS = ["A heron.", "Snow fell all night in the street.", "", "Why does it rise?"]


@pytest.mark.parametrize("settings", [{}, {"variant": "parallel"}, {"pooling": "mean", "layer": 3}], ids=str)
def test_a_spread_model_gives_the_vectors_of_a_whole_one(
    tiny_encoder: Encoder,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    settings: dict[str, Any],
) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "cpu" for index in range(4)}
    model = dispatch_model(copy.deepcopy(tiny_model), places, main_device="cpu", force_hooks=True)
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="last:2", **settings)
    wanted = tiny_encoder.replace(**settings)
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted.encode(TEXTS), atol=1e-5)
    closed, causal = encoder.replace(bidirectional="none"), wanted.replace(bidirectional="none")
    np.testing.assert_allclose(closed.encode(TEXTS), causal.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}], ids=str)
def test_a_device_map_is_handed_on(tiny_encoder: Encoder, tiny_folder: Path, device_map: Any) -> None:
    encoder = Encoder.from_pretrained(tiny_folder, device_map=device_map, dtype="float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), tiny_encoder.encode(TEXTS), atol=1e-4)


def test_layers_that_are_not_in_memory_are_refused_in_one_line(tiny_folder: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{index}": "disk" if index == 2 else "cpu" for index in range(4)}
    with pytest.raises(SourceError, match="not in memory") as caught:
        Encoder.from_pretrained(tiny_folder, device_map=places)
    assert "\n" not in str(caught.value)


def test_a_device_beside_a_device_map_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(SourceError, match="device='cpu' and device_map='auto' are two answers to one question"):
        Encoder.from_pretrained(tiny_folder, device="cpu", device_map="auto")


def test_a_device_map_beside_a_loaded_model_is_refused(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(SourceError, match="A loaded model keeps its dtype, device and attention"):
        Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, device_map="auto")
