"""Open layers against an attention function of our own, whose masks come from the types of the layers and nothing else.

The reference is the untouched model. Its attention is replaced through transformers' registry, so that transformers
makes no mask; ours follows from the type that the configuration gives a layer, the map, and the choice of window.
"""

import copy
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EAGER_ONLY, tiny
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from bellm.backbone.architecture import get_text_config
from bellm.backbone.attention import open_layers
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.types import Window
from tests.decoders import TEXTS, alone, apart, openable

WINDOWED = [
    "afmoe", "beam", "cohere2", "cohere2_moe", "cohere_compass_text", "cwm", "dots1", "exaone4", "exaone_moe", "flint",
    "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "gpt_oss", "granite_swa",
    "granitemoe_swa", "inkling2_text", "inkling_text", "kolibri1", "laguna", "lfm3", "llama4_text", "mellum",
    "mimo_v2_flash", "ministral", "mistral", "modernbert-decoder", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "recurrent_gemma", "smollm3", "starcoder2", "vaultgemma", "zaya",
]  # fmt: skip
"""Architectures with windows or chunks, among them those whose position encoding differs from layer to layer."""

NOT_REPLACED = {"deepseek_v4", "dots3_note_text"}
"""Windowed too, but their attention reads the mask to compress or to choose keys: replacing its end is no reference."""

OTHERS = [
    "apertus", "arcee", "biogpt", "cohere", "deepseek_v3", "ernie4_5", "gemma", "glm4", "gpt_neox", "granite", "helium",
    "hunyuan_v1_dense", "jamba", "jais2", "lfm2", "llama", "minimax_m2", "mixtral", "nanochat", "olmo2", "olmoe", "opt",
    "phi", "qwen3_moe", "qwen3_next", "seed_oss", "stablelm",
]  # fmt: skip

WINDOWS: tuple[Window, ...] = ("keep", "open")


def window_of(config: Any, layer: int) -> tuple[str, int]:
    """Kind of a layer, by its configuration alone: full, sliding or chunked, with the width."""
    types = getattr(config, "layer_types", None) or ["sliding" if getattr(config, "sliding_window", None) else "full"]
    kind = types[layer % len(types)]
    if "chunk" in kind:
        return "chunked", config.attention_chunk_size
    if "sliding" in kind:
        return "sliding", config.sliding_window
    return "full", 0


def allowed(kind: str, width: int, length: int, is_open: bool, window: Window) -> Tensor:
    """Which keys (columns) each query may see, (L, L)."""
    offset_LL = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    seen_LL = torch.ones(length, length, dtype=torch.bool) if is_open else offset_LL <= 0
    if is_open and window == "open":
        return seen_LL
    if kind == "sliding":
        return seen_LL & (offset_LL.abs() < width)
    if kind == "chunked":
        chunk_L = torch.arange(length) // width
        return seen_LL & (chunk_L[None, :] == chunk_L[:, None])
    return seen_LL


def reference(model: PreTrainedModel, opened: Sequence[int], window: Window) -> PreTrainedModel:
    """The model with its attention function replaced by one that makes its own mask."""
    replaced = copy.deepcopy(model)
    config: Any = get_text_config(replaced)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        assert attention_mask is None
        layer = module.layer_idx
        seen_LL = allowed(*window_of(config, layer), query.shape[2], layer in opened, window)
        mask_11LL = query.new_zeros(1, 1, *seen_LL.shape).masked_fill(~seen_LL, torch.finfo(query.dtype).min)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("is_causal", "sliding_window")}
        kwargs.setdefault("dropout", 0.0)
        eager: Any = sys.modules[type(module).__module__].eager_attention_forward
        output: tuple[Tensor, Tensor | None] = eager(module, query, key, value, mask_11LL, **kwargs)
        return output

    AttentionInterface.register("bellm_reference", attention)
    config._attn_implementation_internal = "bellm_reference"
    return replaced


def layer_sets(name: str, model: PreTrainedModel) -> list[list[int]]:
    """The lowest layer that can open, all of them, and one at random."""
    layers = openable(model)
    drawn = random.Random(name).sample(layers, random.Random(name).randrange(1, len(layers) + 1))
    return [layers[:1], layers, sorted(drawn)]


def check(name: str, windows: Sequence[Window]) -> None:
    model = tiny(name, attention="eager" if name in EAGER_ONLY else "sdpa")
    try:
        model = model.double()
        alone(model, TEXTS[0])
        limit = 2e-6  # Eager functions take their softmax in float32.
    except RuntimeError:  # Experts have kernels of float32 alone.
        model, limit = model.float(), 1e-5
    for window in windows:
        for opened in layer_sets(name, model):
            wanted = [alone(reference(model, opened, window), text) for text in TEXTS[:2]]
            found = open_layers(model, opened, window=window)
            assert apart([alone(found, text) for text in TEXTS[:2]], wanted) <= limit, (window, opened)


@pytest.mark.parametrize("name", WINDOWED)
def test_windowed_layers_see_what_their_type_says(name: str) -> None:
    check(name, WINDOWS)


@pytest.mark.parametrize("name", ["cohere2", "exaone4", "gemma3_text", "kolibri1", "mistral"])
@torch.inference_mode()
def test_packed_texts_see_the_same(name: str) -> None:
    model, rows = tiny(name, attention="sdpa"), Tokens([list(text) for text in TEXTS], [(0, 1)] * len(TEXTS), 0)
    for window in WINDOWS:
        for opened in layer_sets(name, model):
            packed = check_packing(open_layers(model, opened, window=window))
            assert packed.packed_model is not None, packed.reason
            found = PackedRunner(packed.packed_model, rows, HiddenStateReadout("mean")).vectors(range(len(TEXTS)))
            replaced = reference(model, opened, window)
            assert apart([found], [torch.stack([alone(replaced, text).mean(0) for text in TEXTS])]) <= 1e-5


def test_every_windowed_architecture_is_here() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    windowed = {row[1] for row in rows if "sliding:" in row[3] or "chunked:" in row[3]}
    assert windowed == {*WINDOWED, *NOT_REPLACED}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_without_windows_see_what_the_map_says(name: str) -> None:
    check(name, WINDOWS[:1])
