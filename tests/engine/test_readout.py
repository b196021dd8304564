"""Readouts of routing weights and of several layers: packed and padded, whichever layers are open."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from bellm.backbone.attention import open_layers
from bellm.backbone.packed_model import PackedModel
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout, JoinedReadout, Readout, RoutingReadout
from bellm.engine.tokenization import Tokens
from bellm.types import PoolingName, Variant

from ..backbone.test_routing import EXPERTS
from ..decoders import attention_of, decoder

# Rows with a prefix that all share, one that some share, and one that is the beginning of another.
STEM = [5, 9, 31]
ROWS = Tokens(
    [[*STEM, *end] for end in ([7, 8, 40, 12], [7, 8, 13], [60, 61, 62, 63, 64, 65], [60, 61], [2])],
    [(3, 5), (3, 6), (4, 9), (3, 4), (3, 3)],
    0,
)
POOLINGS: tuple[PoolingName, ...] = ("last", "mean", "mean-text")
MAPS: list[tuple[tuple[int, ...], Variant]] = [
    ((), "sequential"),
    ((2, 3), "sequential"),
    ((0, 1, 2, 3), "sequential"),
    ((1, 3), "parallel"),
]


def one_by_one(model: PreTrainedModel, readout: Readout) -> Tensor:
    runner = PaddedRunner(model, ROWS, readout, 0)
    return torch.cat([runner.vectors([number]) for number in range(len(ROWS))])


def padded(model: PreTrainedModel, readout: Readout) -> Tensor:
    return PaddedRunner(model, ROWS, readout, 0).vectors(range(len(ROWS)))


def packed(model: PreTrainedModel, readout: Readout, budget: int = 14) -> Tensor:
    runner = PackedRunner(PackedModel(model), ROWS, readout)
    groups = runner.batches(range(len(ROWS)), budget)
    vectors = torch.cat([runner.vectors(group) for group in groups])
    return vectors[torch.tensor([number for group in groups for number in group]).argsort()]


@torch.inference_mode()
@pytest.mark.parametrize("layers_variant", MAPS, ids=str)
@pytest.mark.parametrize("name", EXPERTS)
def test_routing_is_the_same_alone_in_a_batch_and_packed(
    name: str, layers_variant: tuple[tuple[int, ...], Variant]
) -> None:
    opened, variant = layers_variant
    model = open_layers(decoder(name, attention_of(name)), opened, variant=variant)
    assert check_packing(model).packed_model
    for pooling in POOLINGS:
        readout = RoutingReadout(pooling)
        wanted_BF = one_by_one(model, readout)
        assert wanted_BF.shape == (len(ROWS), readout.width(model))
        sums = wanted_BF.unflatten(1, (-1, 4)).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        for found_BF in (padded(model, readout), packed(model, readout)):
            torch.testing.assert_close(found_BF, wanted_BF, rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("layers_variant", MAPS, ids=str)
@pytest.mark.parametrize("join", ["concat", "mean"])
def test_several_layers_are_the_joined_vectors_of_each(
    layers_variant: tuple[tuple[int, ...], Variant], join: str
) -> None:
    opened, variant = layers_variant
    model = open_layers(decoder("llama"), opened, variant=variant)
    for pooling in POOLINGS:
        parts = [HiddenStateReadout(pooling, layer) for layer in (-1, 0, 2, 3)]
        unit = [normalize(one_by_one(model, part)) for part in parts]
        wanted = torch.cat(unit, 1) if join == "concat" else torch.stack(unit).mean(0)
        readout = JoinedReadout(tuple(parts), "concat" if join == "concat" else "mean")
        assert readout.width(model) == wanted.shape[1]
        for found in (padded(model, readout), packed(model, readout)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@torch.inference_mode()
@pytest.mark.parametrize("name", EXPERTS)
def test_states_and_routing_come_from_one_pass(name: str) -> None:
    model = open_layers(decoder(name, attention_of(name)), (3,))
    parts = (HiddenStateReadout("mean", 2), RoutingReadout("last"))
    wanted = torch.cat([normalize(one_by_one(model, part)) for part in parts], 1)
    for found in (padded(model, JoinedReadout(parts, "concat")), packed(model, JoinedReadout(parts, "concat"))):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_joined_readouts_read_all_that_a_part_reads() -> None:
    last, mean, text = (HiddenStateReadout(pooling) for pooling in POOLINGS)
    assert JoinedReadout((last, text), "concat").needs_spans
    assert not JoinedReadout((last, mean), "concat").needs_spans
    assert not JoinedReadout((last, text), "concat").last_token_only
    assert JoinedReadout((last, RoutingReadout("last")), "concat").last_token_only
