"""The packed way gives what one text at a time gives, and computes nothing twice."""

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from bellm.backbone.architecture import count_layers, get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.packed_model import PackedModel
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.tensors.packing import common_prefix_length
from bellm.types import PoolingName, Variant, Window

from ..decoders import CASES, decoder, openable

WINDOWS: tuple[Window, ...] = ("keep", "open")
VARIANTS: tuple[Variant, ...] = ("sequential", "parallel")
POOLINGS: tuple[PoolingName, ...] = ("last", "mean", "mean-text", "weighted-mean", "first", "max")

PADDED = {"bloom", "codegen", "falcon", "gpt2", "gptj", "jamba", "lfm2", "llama4_text", "mpt", "qwen3_next"}
"""Architectures that run padded batches; every other one is packed."""


def tokens_of(rows: Sequence[Sequence[int]]) -> Tokens:
    return Tokens([list(row) for row in rows], [(len(row) // 3, len(row)) for row in rows], 0)


def one_by_one(model: PreTrainedModel, tokens: Tokens, pooling: PoolingName, layer: int = -1) -> Tensor:
    runner = PaddedRunner(model, tokens, HiddenStateReadout(pooling, layer), 0)
    return torch.cat([runner.vectors([number]) for number in range(len(tokens))])


def together(model: PreTrainedModel, tokens: Tokens, pooling: PoolingName, layer: int, budget: int) -> Tensor:
    runner = PackedRunner(PackedModel(model), tokens, HiddenStateReadout(pooling, layer % (count_layers(model) + 1)))
    groups = runner.batches(range(len(tokens)), budget)
    assert sorted(number for group in groups for number in group) == list(range(len(tokens)))
    vectors = torch.cat([runner.vectors(group) for group in groups])
    return vectors[torch.tensor([number for group in groups for number in group]).argsort()]


def apart(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).nan_to_num(nan=torch.inf).max().item()


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Rows that often begin like one another; some are the beginning of others."""
    stem = draw(st.lists(st.integers(3, 20), max_size=6))
    ends = draw(st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=9), min_size=1, max_size=9))
    return list(dict.fromkeys(tuple(stem[: draw(st.integers(0, 6))] + end) for end in ends))


@settings(max_examples=80)
@given(
    rows=rows(),
    layers=st.sets(st.integers(0, 3)),
    pooling=st.sampled_from(POOLINGS),
    layer=st.integers(-1, 4),
    budget=st.sampled_from([1, 7, 20, 1000]),
    variant=st.sampled_from(VARIANTS),
)
@torch.inference_mode()
def test_any_rows_map_pooling_layer_and_reading(
    tiny_model: LlamaForCausalLM,
    rows: list[tuple[int, ...]],
    layers: set[int],
    pooling: PoolingName,
    layer: int,
    budget: int,
    variant: Variant,
) -> None:
    model = open_layers(tiny_model, sorted(layers), variant=variant)
    tokens = tokens_of(rows)
    wanted = one_by_one(model, tokens, pooling, layer)
    assert apart(together(model, tokens, pooling, layer, budget), wanted) <= 1e-5


STEM = [7, 8, 9, 10, 11, 12]
ROWS = tokens_of(
    [[*STEM, 13], [*STEM, 14, 15, 16], [*STEM, 14, 15, 17, 18, 19], [7, 8, 30], [7, 8, 30, 31], [7, 40, 41, 42, 43]]
)


@pytest.mark.parametrize(("name", "attention"), CASES)
@torch.inference_mode()
def test_an_architecture_is_packed_exactly_or_runs_padded(name: str, attention: str) -> None:
    plain = decoder(name, attention)
    numbers = openable(plain)
    upper = numbers[len(numbers) // 2 :]
    windows = WINDOWS if any(":" in layer.kind for layer in get_layers(plain)) else WINDOWS[:1]
    models = [open_layers(plain, chosen, window=window) for window in windows for chosen in ([], upper, numbers)]
    for model in [*models, open_layers(plain, upper, variant="parallel")]:
        check = check_packing(model)
        if name in PADDED:
            assert check.packed_model is None
            assert check.reason
            continue
        assert check.packed_model is not None, check.reason
        for pooling in POOLINGS[:2]:
            wanted = one_by_one(model, ROWS, pooling)
            assert apart(together(model, ROWS, pooling, -1, 12), wanted) <= 1e-5
            assert apart(together(model, ROWS.select([1]), pooling, -1, 12), wanted[1:2]) <= 1e-5


def test_kernels_of_their_own_run_padded() -> None:
    assert (
        "attention='flex_attention' leaves padding out in its own way"
        in check_packing(decoder("llama", "flex_attention")).reason
    )


@pytest.mark.parametrize(("rows", "budget", "passes"), [([0], 1000, 1), (range(6), 1000, 1), (range(6), 12, 5)])
@torch.inference_mode()
def test_a_prefix_has_a_pass_of_its_own_only_before_several_batches(
    tiny_model: LlamaForCausalLM, rows: Sequence[int], budget: int, passes: int
) -> None:
    packed, calls = PackedModel(open_layers(tiny_model, [2, 3])), list[None]()
    get_layers(packed.model)[0].attention[0].register_forward_hook(lambda *_: calls.append(None))
    runner = PackedRunner(packed, ROWS.select(rows), HiddenStateReadout("mean"))
    groups = runner.batches(range(len(rows)), budget)
    for group in groups:
        runner.vectors(group)
    assert len(calls) == passes == len(groups) + (len(groups) > 1)


def counted(model: PackedModel, tokens: Tokens, pooling: PoolingName, budget: int) -> list[int]:
    """How many tokens the MLP of each layer gets, in all."""
    counts = [0] * model.depth
    with ExitStack() as hooks, torch.inference_mode():
        for layer in get_layers(model.model):

            def count(_: nn.Module, args: tuple[Tensor], number: int = layer.index) -> None:
                counts[number] += args[0].shape[1]

            mlp = layer.module.get_submodule("mlp")
            hooks.callback(mlp.register_forward_pre_hook(count).remove)
        runner = PackedRunner(model, tokens, HiddenStateReadout(pooling, model.depth))
        for group in runner.batches(range(len(tokens)), budget):
            runner.vectors(group)
    return counts


def test_nothing_is_computed_twice(tiny_model: LlamaForCausalLM) -> None:
    tokens = tokens_of([[*STEM, 13], [*STEM, 13, 14], [*STEM, 13, 15], [*STEM, 16]])
    # The beginning once (6), then 13, 14, 15 and 16; in the last layer four pooled rows.
    assert counted(PackedModel(open_layers(tiny_model, [])), tokens, "last", 2) == [11, 11, 11, 10]
    assert counted(PackedModel(open_layers(tiny_model, [])), tokens, "last", 100) == [10, 10, 10, 4]
    mixed = tokens_of([[*STEM, 13, 14], [*STEM, 16], [*STEM, 13], [*STEM, 13, 15]])
    assert counted(PackedModel(open_layers(tiny_model, [])), mixed, "last", 100) == [10, 10, 10, 4]
    # From the first open layer on every token of every text.
    whole = sum(map(len, tokens.ids))
    assert counted(PackedModel(open_layers(tiny_model, [2])), tokens, "last", 100) == [10, 10, whole, 4]
    assert counted(PackedModel(open_layers(tiny_model, [0])), tokens, "mean", 100) == [whole] * 4
    # Two branches take what one stack takes.
    assert counted(PackedModel(open_layers(tiny_model, [2], variant="parallel")), tokens, "last", 100) == [
        10,
        10,
        whole,
        4,
    ]


def test_layers_above_the_pooled_one_do_not_run(tiny_model: LlamaForCausalLM) -> None:
    model = PackedModel(open_layers(tiny_model, []))
    with ExitStack() as hooks, torch.inference_mode():
        layer = get_layers(model.model)[3].module.get_submodule("mlp")

        def never(*_: object) -> None:
            raise AssertionError

        hooks.callback(layer.register_forward_pre_hook(never).remove)
        PackedRunner(model, ROWS, HiddenStateReadout("mean", 3)).vectors([0])


def test_neighbours_share_a_batch_and_budgets_hold(tiny_model: LlamaForCausalLM) -> None:
    runner = PackedRunner(PackedModel(tiny_model), ROWS, HiddenStateReadout("last", 4))
    with torch.inference_mode():
        assert runner.batches(range(6), 100) == [[0, 1, 2, 3, 4, 5]]
        assert all(len(group) == 1 for group in runner.batches(range(6), 1))
        assert sorted(n for group in runner.batches([4, 1], 100) for n in group) == [1, 4]


def test_common_is_the_length_of_the_shared_beginning() -> None:
    assert common_prefix_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix_length([1, 2], [1, 2, 3]) == 2
    assert common_prefix_length([], [1]) == 0
