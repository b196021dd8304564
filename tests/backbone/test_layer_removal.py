"""Models without some of their layers."""

import pytest
import torch
from transformers import LlamaForCausalLM

from bellm import BellmError
from bellm.backbone.architecture import get_layers
from bellm.backbone.layer_removal import keep_layers
from bellm.backbone.states import all_layer_states, token_states, with_early_exits
from tests.decoders import REPRESENTATIVE, decoder

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_the_first_layers_are_those_of_the_degradation_curve(name: str) -> None:
    model = decoder(name, "eager")
    smaller = keep_layers(model, [0, 1])
    with torch.no_grad():
        states = token_states(smaller, IDS, torch.ones_like(IDS))
        wanted = all_layer_states(with_early_exits(model), IDS, torch.ones_like(IDS))[2]
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)


def test_layers_in_the_middle_go(tiny_model: LlamaForCausalLM) -> None:
    smaller = keep_layers(tiny_model, [0, 3])
    assert smaller.config.num_hidden_layers == len(smaller.model.layers) == 2
    assert tiny_model.config.num_hidden_layers == len(tiny_model.model.layers) == 4
    pointers = {weight.data_ptr() for weight in tiny_model.parameters()}
    assert all(weight.data_ptr() in pointers for weight in smaller.parameters())
    layers = tiny_model.model.layers
    with torch.no_grad():
        states, positions = tiny_model.model.embed_tokens(IDS), torch.arange(6)[None]
        rotary = tiny_model.model.rotary_emb(states, positions)
        for index in (0, 3):
            states = layers[index](states, position_embeddings=rotary)
        torch.testing.assert_close(token_states(smaller, IDS, torch.ones_like(IDS)), tiny_model.model.norm(states))


def test_layers_that_a_configuration_cannot_name_are_refused() -> None:
    """Of Jamba's layers every so-many-th has attention, wherever the others went."""
    kinds = [layer.kind for layer in get_layers(decoder("jamba", "eager"))]
    assert len(set(kinds)) > 1
    with pytest.raises(BellmError, match=r"cannot say which of them are left|cannot be built"):
        keep_layers(decoder("jamba", "eager"), [kinds.index("full"), *range(kinds.index("full") + 1, len(kinds))])
