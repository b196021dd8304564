"""A decoder of which it is known what opening each layer does."""

import copy

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.layers import decoder_of


def mixing_in(layer: int, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """An encoder of the first token, the BOS, in which one layer alone mixes tokens, all alike.

    While the layer is causal, every text has the vector of its BOS. Open, it has the mean of what the text says.
    """
    planted = copy.deepcopy(model)
    with torch.no_grad():
        for number, decoder_layer in enumerate(decoder_of(planted).layers):
            attention = decoder_layer.self_attn
            attention.q_proj.weight.zero_()
            if number != layer:
                attention.o_proj.weight.zero_()
            else:
                attention.o_proj.weight.mul_(20)
    return Encoder.load(planted, tokenizer=tokenizer, prompt="raw", pooling="first")
