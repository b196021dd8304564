"""A tiny encoder that takes long prompts: the tokenizer of the tests writes letters one by one."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder


@pytest.fixture(scope="session")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.model_max_length = 2048
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return Encoder.from_pretrained(model, tokenizer=tokenizer, bidirectional="none", pooling="mean", prompt="raw")
