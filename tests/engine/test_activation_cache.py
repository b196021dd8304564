"""Batches go on from where another map's model brought them, to the same vectors bit by bit."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.packed_model import PackedModel
from bellm.engine.activation_cache import ActivationCache, active_cache, share_activations
from bellm.engine.embedding import Runner
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.types import Variant

from ..decoders import CASES, decoder, openable

VARIANTS: tuple[Variant, ...] = ("sequential", "parallel")
STEM = [7, 8, 9, 10, 11, 12]
ROWS = [[*STEM, 13], [*STEM, 14, 15, 16], [*STEM, 14, 15, 17, 18, 19], [7, 8, 30], [7, 8, 30, 31], [7, 40, 41, 42, 43]]
TOKENS = Tokens(ROWS, [(0, len(row)) for row in ROWS], 0)


def vectors(model: PreTrainedModel, layer: int = -1) -> Tensor:
    packed_model, readout = check_packing(model).packed_model, HiddenStateReadout("last", layer)
    runner: Runner = PaddedRunner(model, TOKENS, readout, 0)
    if packed_model:
        runner = PackedRunner(packed_model, TOKENS, readout, cache=active_cache.get())
    return torch.cat([runner.vectors(group) for group in runner.batches(range(len(TOKENS)), 16)])


def few_sets(numbers: Sequence[int]) -> list[Sequence[int]]:
    """From the bottom up, one that goes back, and one that is asked for again."""
    return [[], numbers[-1:], numbers[1:2], numbers[-1:]]


def many_sets(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [[], numbers, *([number] for number in numbers), numbers[-2:], numbers[1:2], numbers[-1:]]


@pytest.mark.parametrize("layer_sets", [few_sets, pytest.param(many_sets, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.inference_mode()
def test_vectors_of_every_map_are_the_same_bit_for_bit(
    name: str, attention: str, layer_sets: Callable[[Sequence[int]], list[Sequence[int]]]
) -> None:
    plain = decoder(name, attention)
    sets = layer_sets(openable(plain))
    models = [open_layers(plain, chosen, variant=variant) for variant in VARIANTS for chosen in sets]
    wanted = [vectors(model) for model in models]
    with share_activations():
        assert all(torch.equal(vectors(model), alone) for model, alone in zip(models, wanted, strict=True))
    assert active_cache.get() is None


def without_trunk(model: PreTrainedModel, layer: int) -> Tensor:
    packed_model = check_packing(model).packed_model
    assert packed_model is not None
    alone = PackedRunner(packed_model, TOKENS, HiddenStateReadout("last", layer % 5))
    return torch.cat([alone.vectors(group) for group in alone.batches(range(len(TOKENS)), 16)])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_an_earlier_state_is_pooled(tiny_model: LlamaForCausalLM, variant: Variant) -> None:
    model = open_layers(tiny_model, [3], variant=variant)
    with share_activations():
        vectors(open_layers(tiny_model, [2]))
        for layer in range(5):
            assert torch.equal(vectors(model, layer), without_trunk(model, layer))


@torch.inference_mode()
def test_layers_whose_outcome_is_known_do_not_run(tiny_model: LlamaForCausalLM) -> None:
    runs: list[int] = []
    counts: list[list[int]] = []
    with share_activations():
        for chosen in ([1], [3], [2], [3]):
            model = open_layers(tiny_model, chosen)
            packed_model = check_packing(model).packed_model
            assert packed_model is not None
            for layer in get_layers(packed_model.model):

                def count(*_: Any, number: int = layer.index) -> None:
                    runs.append(number)

                layer.module.get_submodule("mlp").register_forward_pre_hook(count)
            runs.clear()
            runner = PackedRunner(
                packed_model, TOKENS, HiddenStateReadout("mean", 4), training=True, cache=active_cache.get()
            )
            for group in runner.batches(range(len(TOKENS)), 16):
                runner.vectors(group)
            counts.append([runs.count(number) for number in range(4)])
    # Three batches; a model that goes on from another's states computes its first one both ways besides.
    assert counts == [[3, 3, 3, 3], [1, 5, 5, 5], [3, 3, 3, 3], [1, 1, 5, 5]]


@torch.inference_mode()
def test_a_model_that_remembers_more_than_states_goes_all_the_way(tiny_model: LlamaForCausalLM) -> None:
    plain = open_layers(tiny_model, [])
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + seen.pop()

    first, second, _, _ = get_layers(plain)
    first.module.register_forward_hook(keep)
    second.module.register_forward_hook(add)
    unlike = Tokens([[3, 4, 5, 6], [7, 8, 9], [10, 11]], [(0, 4), (0, 3), (0, 2)], 0)

    def found(chosen: Sequence[int], cache: ActivationCache | None) -> Tensor:
        return PackedRunner(
            PackedModel(open_layers(plain, chosen)),
            unlike,
            HiddenStateReadout("mean", 4),
            training=True,
            cache=cache,
        ).vectors(range(3))

    cache = ActivationCache()
    assert torch.equal(found([1], cache), found([1], None))
    assert torch.equal(found([3], cache), found([3], None))
