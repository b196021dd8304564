"""Layers that run one by one give what the model gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bellm import BellmError
from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.layerwise import LayerwisePass, equal_length_batches
from bellm.backbone.weight_matrices import find_matrices
from tests.decoders import REPRESENTATIVE, TEXTS, alone, decoder, openable


def test_batches_hold_different_rows_of_one_length() -> None:
    rows = [[1, 2], [3], [4, 5], [1, 2], [6, 7], [8, 9, 10]]
    batches = equal_length_batches(rows, 4)
    assert [batch.tolist() for batch in batches] == [[[3]], [[1, 2], [4, 5]], [[6, 7]], [[8, 9, 10]]]


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_states_are_those_of_the_model(name: str) -> None:
    model = decoder(name, "eager")
    opened = open_layers(model, openable(model)[:2])
    forward = LayerwisePass(opened, equal_length_batches(TEXTS, 100))
    states: list[Tensor] = []
    depth = len(get_layers(model))
    for index in range(depth):
        collected: list[Tensor] = []
        forward.advance(lambda before, after, kept=collected: kept.append(after))  # type: ignore[misc]
        assert forward.index == index + 1
        states = collected
    wanted: dict[int, Tensor] = {}

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        last = output if isinstance(output, Tensor) else output[0]
        wanted[last.shape[1]] = last

    hook = get_layers(opened)[-1].module.register_forward_hook(keep)
    for text in TEXTS:
        alone(opened, text)
    hook.remove()
    for state in states:
        torch.testing.assert_close(state, wanted[state.shape[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_inputs_of_matrices_are_those_that_count(tiny_model: LlamaForCausalLM, variant: Any) -> None:
    """In the parallel variant a layer works on two branches, and its output counts in its own alone."""
    opened = open_layers(tiny_model, [1, 3], variant=variant)
    matrices = find_matrices(opened)
    forward = LayerwisePass(opened, [torch.tensor([[5, 6, 7], [8, 9, 10]])])
    for index, layer in enumerate(matrices):
        found: dict[str, Tensor] = {}
        forward.observe(layer, found.__setitem__)
        assert forward.index == index
        assert all(
            rows.shape == (6, matrix.weight_OI.shape[1]) for matrix in layer if (rows := found[matrix.name]) is not None
        )
        if variant == "parallel" and index == 1:  # The open branch begins with the embeddings.
            embeddings = tiny_model.get_input_embeddings()(torch.tensor([5, 6, 7, 8, 9, 10]))
            torch.testing.assert_close(
                found["self_attn.q_proj"], get_layers(opened)[1].module.input_layernorm(embeddings)
            )
        forward.advance()


def test_layers_that_hand_on_more_than_states_are_refused(tiny_model: LlamaForCausalLM) -> None:
    model = open_layers(tiny_model, [])
    layers = get_layers(model)
    seen: list[Tensor] = []
    layers[0].module.register_forward_hook(lambda module, args, output: seen.append(output))
    own = layers[2].module.forward
    layers[2].module.forward = lambda states, *args, **kwargs: own(states + seen.pop(), *args, **kwargs)  # type: ignore[method-assign]
    with pytest.raises(BellmError, match="cannot be run one by one"):
        LayerwisePass(model, [torch.tensor([[5, 6, 7]])])
