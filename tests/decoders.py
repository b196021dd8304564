"""Tiny random decoders and token ids that several test files read."""

import random
from collections.abc import Sequence
from functools import cache

import torch
from tiny import EAGER_ONLY, configuration, tiny
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bellm.backbone.architecture import get_layers
from bellm.backbone.states import token_states
from bellm.engine.padded import pad_rows

REPRESENTATIVE = [
    "bloom",
    "codegen",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "gptj",
    "jamba",
    "lfm2",
    "llama",
    "llama4_text",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo3",
    "olmoe",
    "opt",
    "phi3",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "stablelm",
    "starcoder2",
]
"""Every way of masking that transformers ships: windows, chunks, ALiBi, sinks, experts, recurrent neighbours."""

CASES = [
    (name, how) for name in REPRESENTATIVE for how in ("eager", "sdpa") if how == "eager" or name not in EAGER_ONLY
]


def _texts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 99) for _ in range(length)] for length in (9, 6, 11, 1)]


TEXTS = _texts()
"""Token ids of four texts of different lengths, one of a single token; each longer than the tiny windows of 4."""

CPU = torch.device("cpu")


@cache
@torch.inference_mode(False)  # Whoever asks first: its weights could not be used outside inference mode.
def decoder(name: str, attention: str = "sdpa") -> PreTrainedModel:
    """A causal model that tests share: open twins of it, never the model."""
    return tiny(name, attention=attention)


def attention_of(name: str) -> str:
    return "eager" if name in EAGER_ONLY else "sdpa"


def with_tokens_of(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedModel:
    """A tiny model that knows the tokens of the tests' tokenizer."""
    model = tiny(name, attention=attention_of(name))
    model.resize_token_embeddings(len(tokenizer))
    return model


def openable(model: PreTrainedModel) -> list[int]:
    return [layer.index for layer in get_layers(model) if layer.can_open]


@torch.inference_mode()
def alone(model: PreTrainedModel, text: Sequence[int], layer: int = -1) -> Tensor:
    """States (L, D) of one text without padding."""
    ids_1L, mask_1L = pad_rows([text], 0, CPU)
    return token_states(model, ids_1L, mask_1L, layer)[0]


@torch.inference_mode()
def together(
    model: PreTrainedModel, texts: Sequence[Sequence[int]], *, left: bool = False, pad_id: int = 0
) -> list[Tensor]:
    """States of the real tokens of each text, run as one padded batch."""
    ids_BL, mask_BL = pad_rows(texts, pad_id, CPU, left=left)
    hidden_BLD = token_states(model, ids_BL, mask_BL)
    return [hidden_LD[mask_L.bool()] for hidden_LD, mask_L in zip(hidden_BLD, mask_BL, strict=True)]


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest ‖a - b‖ / ‖b‖ over all tokens; infinite where a value is missing."""
    distances = [(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in zip(found, wanted, strict=True)]
    return torch.cat(distances).nan_to_num(nan=torch.inf).max().item()


def longrope(context: int) -> PreTrainedModel:
    """A tiny model whose rotary frequencies are halved when a text is longer than its context."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = configuration("llama")
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": context,
        **factors,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()
