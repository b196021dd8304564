"""How many tokens suit the hardware."""

import torch
from transformers import LlamaForCausalLM

from bellm.engine.memory_budget import default_batch_tokens

from ..decoders import decoder


def test_wider_models_get_fewer_tokens(tiny_model: LlamaForCausalLM) -> None:
    assert default_batch_tokens(tiny_model) == 4096
    wide = decoder("llama")
    width, wide.config.intermediate_size = wide.config.intermediate_size, 2048
    try:
        assert default_batch_tokens(wide) == 384
        assert default_batch_tokens(wide.to(torch.bfloat16)) == 768
        wide.config.intermediate_size = 1 << 20
        assert default_batch_tokens(wide) == 256
    finally:
        wide.to(torch.float32).config.intermediate_size = width
