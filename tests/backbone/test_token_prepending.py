"""Token Prepending against a loop over the layers of a Llama, written out."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.states import all_layer_states, token_states
from bellm.backbone.token_prepending import PLACEHOLDER, with_token_prepending
from bellm.engine.padded import pad_rows
from bellm.errors import LayerError
from tests.decoders import CPU, REPRESENTATIVE, TEXTS, alone, apart, decoder, together

PLACES = (3, 0, 5)
ROWS = [[*ids[:place], PLACEHOLDER, *ids[place:]] for ids, place in zip(TEXTS, PLACES, strict=False)]
"""Texts of different lengths whose placeholder stands elsewhere in each."""

STAND_IN = 2


def filled_in(rows: list[list[int]], stand_in: int = STAND_IN) -> list[list[int]]:
    return [[stand_in if token == PLACEHOLDER else token for token in ids] for ids in rows]


@torch.inference_mode()
def by_hand(model: LlamaForCausalLM, ids: list[int], depth: int, stand_in: int = STAND_IN) -> list[Tensor]:
    """The embeddings of one row and its states after each layer, the last of them normed, each (L, D)."""
    llama = model.model
    hidden_1LD = llama.embed_tokens(torch.tensor(filled_in([ids], stand_in)))
    rope = llama.rotary_emb(hidden_1LD, torch.arange(len(ids))[None])
    causal_11LL = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
    states = [hidden_1LD[0]]
    for number, layer in enumerate(llama.layers, 1):
        if 2 <= number <= depth:
            before, after = ids.index(PLACEHOLDER), ids.index(PLACEHOLDER) + 1
            hidden_1LD = torch.cat([hidden_1LD[:, :before], hidden_1LD[:, -1:], hidden_1LD[:, after:]], 1)
        hidden_1LD = layer(hidden_1LD, attention_mask=causal_11LL, position_embeddings=rope)
        states.append(hidden_1LD[0])
    return [*states[:-1], llama.norm(hidden_1LD)[0]]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_states_are_those_of_the_loop(depth: int) -> None:
    model = decoder("llama")
    found = with_token_prepending(model, depth, STAND_IN)
    for ids in ROWS:
        for number, wanted_LD in enumerate(by_hand(model, ids, depth)):
            assert apart([alone(found, ids, number)], [wanted_LD]) <= 1e-6


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "bloom"])
def test_in_one_layer_it_is_the_causal_model_and_in_more_it_is_not(name: str) -> None:
    model = decoder(name, "eager")
    wanted = together(model, filled_in(ROWS))
    assert apart(together(with_token_prepending(model, 1, STAND_IN), ROWS), wanted) == 0
    assert apart(together(with_token_prepending(model, 2, STAND_IN), ROWS), wanted) > 1e-2


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_padding_and_batch_mates_do_not_matter(name: str) -> None:
    model = with_token_prepending(decoder(name, "eager"), 3, STAND_IN)
    rows = [*ROWS, TEXTS[3]]
    wanted = [alone(model, ids) for ids in rows]
    assert apart(together(model, rows, pad_id=50), wanted) <= 5e-6
    if name != "llama4_text":  # Its chunks are cut by place in the row, in the untouched model too.
        assert apart(together(model, rows, left=True), wanted) <= 5e-6


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_rows_without_a_placeholder_are_causal(name: str, left: bool) -> None:
    model = decoder(name, "eager")
    found = together(with_token_prepending(model, 4, STAND_IN), [ROWS[0], *TEXTS], left=left)[1:]
    assert apart(found, together(model, [filled_in(ROWS)[0], *TEXTS], left=left)[1:]) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "olmo3"])
@torch.inference_mode()
def test_tokens_behind_the_placeholder_hear_of_the_last_one_and_those_before_do_not(name: str) -> None:
    model = with_token_prepending(decoder(name, "eager"), 3, STAND_IN)
    ids = ROWS[0]
    batches = [pad_rows([row], 0, CPU) for row in (ids, [*ids[:-1], ids[-1] + 1])]
    one, other = (all_layer_states(model, *batch) for batch in batches)
    moved = [(a - b).norm(dim=-1)[0] > 1e-4 for a, b in zip(one, other, strict=True)]
    place, last = PLACES[0], len(ids) - 1
    told = {1: [last], 2: [*range(place, last + 1)], 3: [*range(place, last + 1)], 4: [*range(place, last + 1)]}
    for number, wanted in told.items():
        assert moved[number].nonzero()[:, 0].tolist() == wanted


def test_calls_in_several_threads_do_not_mix() -> None:
    model = with_token_prepending(decoder("llama"), 4, STAND_IN)
    wanted = [alone(model, ids) for ids in ROWS]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda ids: alone(model, ids), ROWS * 20))
    finally:
        sys.setswitchinterval(interval)
    assert apart(found, wanted * 20) <= 1e-6


@torch.inference_mode()
def test_the_model_is_left_alone_and_an_open_one_is_closed() -> None:
    model = decoder("llama")
    batch = pad_rows(TEXTS, 0, CPU)
    wanted = token_states(model, *batch)
    both_ways = open_layers(model, (1, 2))
    closed = together(with_token_prepending(both_ways, 3, STAND_IN), ROWS)
    assert apart(closed, together(with_token_prepending(model, 3, STAND_IN), ROWS)) == 0
    assert torch.equal(token_states(model, *batch), wanted)
    assert (
        with_token_prepending(model, 3, STAND_IN).get_input_embeddings().weight is model.get_input_embeddings().weight
    )
    assert not any(layer.module._forward_pre_hooks for layer in get_layers(model))
    with pytest.raises(IndexError):
        together(model, ROWS)


@pytest.mark.parametrize("depth", [0, 5])
def test_a_depth_that_does_not_fit_is_refused(depth: int) -> None:
    with pytest.raises(LayerError, match="so give 1 to 4"):
        with_token_prepending(decoder("llama"), depth, STAND_IN)
