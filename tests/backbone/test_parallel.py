"""The parallel reading against the paper's equation, written out by hand."""

import pytest
import torch
from tiny import tiny
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.leakage import measure_leakage
from bellm.backbone.states import token_states
from bellm.engine.padded import pad_rows
from tests.decoders import CPU, TEXTS, alone, apart, decoder, together


@torch.inference_mode()
def by_hand(model: PreTrainedModel, chosen: set[int]) -> list[Tensor]:
    """norm(causal branch + bidirectional branch), each a stack of its own layers on the embeddings, for a llama."""
    llama = model.model
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    real_B11L = mask_BL.bool()[:, None, None, :]
    length = ids_BL.shape[1]
    causal_B1LL = real_B11L & torch.ones(length, length, dtype=torch.bool).tril()
    full_B1LL = real_B11L.expand(-1, 1, length, -1)
    positions_BL = torch.arange(length).expand_as(ids_BL)
    embedded_BLD = llama.embed_tokens(ids_BL)
    rope = llama.rotary_emb(embedded_BLD, positions_BL)
    causal_BLD = bidirectional_BLD = embedded_BLD
    for number, layer in enumerate(llama.layers):
        if number in chosen:
            bidirectional_BLD = layer(bidirectional_BLD, attention_mask=full_B1LL, position_embeddings=rope)
        else:
            causal_BLD = layer(causal_BLD, attention_mask=causal_B1LL, position_embeddings=rope)
    hidden_BLD = llama.norm(causal_BLD + bidirectional_BLD)
    return [hidden_LD[mask_L.bool()] for hidden_LD, mask_L in zip(hidden_BLD, mask_BL, strict=True)]


@pytest.mark.parametrize("chosen", [(3,), (2, 3), (0,), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_parallel_reading_is_the_equation(chosen: tuple[int, ...]) -> None:
    model = decoder("llama")
    branched = open_layers(model, chosen, variant="parallel")
    assert apart(together(branched, TEXTS), by_hand(model, set(chosen))) <= 1e-6
    assert apart(together(branched, TEXTS), together(open_layers(model, chosen), TEXTS)) > 1e-2


@pytest.mark.parametrize("chosen", [(), range(4)], ids=["none", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_branch_without_layers_adds_nothing(name: str, chosen: tuple[int, ...]) -> None:
    model = decoder(name)
    for text in TEXTS:
        sequential, parallel = (open_layers(model, chosen, variant=variant) for variant in ("sequential", "parallel"))
        assert torch.equal(alone(parallel, text), alone(sequential, text))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "bloom", "qwen3_moe", "falcon", "qwen3_next"])
def test_padding_and_batch_mates_do_not_matter(name: str) -> None:
    model = open_layers(decoder(name, "eager"), (1, 3), variant="parallel")
    wanted = [alone(model, text) for text in TEXTS]
    for left in (False, True):
        assert apart(together(model, TEXTS, left=left, pad_id=50), wanted) <= 5e-6


def test_each_layer_sees_what_its_branch_sees() -> None:
    model = decoder("llama")
    measured = measure_leakage(open_layers(model, (0, 2), variant="parallel"))
    assert [leakage.future > 1e-2 for leakage in measured] == [True, False, True, False]


def test_states_between_the_layers_are_the_sum_of_both_branches() -> None:
    model = decoder("llama")
    branched = open_layers(model, (1, 3), variant="parallel")
    ids_1L, mask_1L = pad_rows(TEXTS[:1], 0, CPU)
    with torch.inference_mode():
        embedded_1LD = model.get_input_embeddings()(ids_1L)
        assert torch.equal(token_states(branched, ids_1L, mask_1L, 0), 2 * embedded_1LD)
        first_1LD = token_states(model, ids_1L, mask_1L, 1)
        assert apart([token_states(branched, ids_1L, mask_1L, 1)], [first_1LD + embedded_1LD]) <= 1e-6


def test_embeddings_can_go_in_and_logits_come_out_in_the_callers_batch() -> None:
    model = open_layers(decoder("llama"), (1, 3), variant="parallel")
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    with torch.inference_mode():
        from_ids = model(ids_BL, attention_mask=mask_BL).logits
        embedded = model.get_input_embeddings()(ids_BL)
        from_embeddings = model(inputs_embeds=embedded, attention_mask=mask_BL).logits
        by_position = get_decoder(model)(ids_BL, mask_BL).last_hidden_state
    assert from_ids.shape == (*ids_BL.shape, 99)
    assert torch.equal(from_embeddings, from_ids)
    assert torch.equal(by_position, get_decoder(model)(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state)


def test_users_model_does_not_branch() -> None:
    model = tiny("llama")
    open_layers(model, (1, 3), variant="parallel")
    assert not get_decoder(model)._forward_pre_hooks
    assert not any(layer.module._forward_hooks for layer in get_layers(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_states_do_not_depend_on_what_was_recorded_before_opening(name: str) -> None:
    used = tiny(name)
    alone(used, TEXTS[0], layer=1)  # transformers leaves hooks that record states in the layers, and twins keep them.
    late, fresh = (open_layers(model, (1, 3), variant="parallel") for model in (used, tiny(name)))
    for layer in range(5):
        assert torch.equal(alone(late, TEXTS[0], layer), alone(fresh, TEXTS[0], layer))
