"""The arithmetic that the speed benchmark holds systems against, counted by torch and by hand."""

import torch
from flops import Shape, needed_flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from bellm.backbone.attention import open_layers

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SHAPE = Shape.of(CONFIG)


def test_one_text_through_open_layers_needs_what_torch_counts() -> None:
    model = LlamaModel._from_config(CONFIG, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        open_layers(model, (0, 1, 2))(torch.tensor([[1, 2, 3, 4, 5]]))
    assert needed_flops([[1, 2, 3, 4, 5]], SHAPE, first_open=0, last_only=False) == counter.get_total_flops()


def test_shared_prefixes_and_equal_texts_count_once_below_the_first_open_layer() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [6], [1, 2]]
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    per_layer = SHAPE.keys_and_values(len(prefixes)) + SHAPE.rest(len(prefixes))
    causal = per_layer + SHAPE.attention(sum(map(len, prefixes)))
    assert needed_flops(rows, SHAPE, first_open=None, last_only=False) == 3 * causal
    lengths = [3, 4, 1, 2]
    open_ = SHAPE.keys_and_values(10) + SHAPE.rest(10) + SHAPE.attention(sum(length**2 for length in lengths))
    assert needed_flops(rows, SHAPE, first_open=2, last_only=False) == 2 * causal + open_


def test_last_pooling_spares_the_last_layer_all_but_keys_and_values() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5]]
    saved = needed_flops(rows, SHAPE, first_open=None, last_only=False)
    saved -= needed_flops(rows, SHAPE, first_open=None, last_only=True)
    # Five prefixes, of 1, 2, 3, 3 and 4 tokens; two texts, of 3 and 4.
    assert saved == SHAPE.rest(5 - 2) + SHAPE.attention((1 + 2 + 3 + 3 + 4) - (3 + 4))
