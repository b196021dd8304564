"""Rows of tokens to vectors: doubles once, order kept, batches that fit."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bellm.backbone.packed_model import PackedModel
from bellm.engine.embedding import embed_tokens
from bellm.engine.packed import PackedRunner
from bellm.engine.padded import PaddedRunner
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.errors import MemoryLimitError, MemoryWarning
from bellm.types import Vectors

from ..decoders import longrope

ROWS = [[7, 8, 9, 10], [7, 8, 11], [12], [7, 8, 9, 10], [7, 8, 9, 10, 13, 14, 15], [12]]
TOKENS = Tokens(ROWS, [(0, len(row)) for row in ROWS], 0)


def embedded(model: LlamaForCausalLM, *, packed: bool, budget: int | None = None) -> Vectors:
    counts: list[int] = []
    vectors = embed_tokens(
        model,
        TOKENS,
        packed=PackedModel(model) if packed else None,
        readout=HiddenStateReadout("mean", -1),
        max_batch_tokens=budget,
        pad_id=0,
        done=counts.append,
    )
    assert sum(counts) == len(ROWS)
    return vectors


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [1, 9, None])
def test_vectors_are_those_of_each_row_alone(tiny_model: LlamaForCausalLM, packed: bool, budget: int | None) -> None:
    runner = PaddedRunner(tiny_model, TOKENS, HiddenStateReadout("mean", -1), 0)
    with torch.inference_mode():
        wanted = torch.cat([runner.vectors([number]) for number in range(len(ROWS))]).numpy()
    found = embedded(tiny_model, packed=packed, budget=budget)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert (found[0] == found[3]).all()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [ROWS, [row for row in ROWS if len(row) > 1]], ids=["some begin alike", "all do"])
def test_frequencies_of_a_row_are_not_those_of_its_batch_mates(rows: list[list[int]], packed: bool) -> None:
    model, tokens = longrope(3), Tokens(rows, [(0, len(row)) for row in rows], 0)
    runner = PaddedRunner(model, tokens, HiddenStateReadout("mean", -1), 0)
    with torch.inference_mode():
        wanted = torch.cat([runner.vectors([number]) for number in range(len(rows))]).numpy()
    packed_model = PackedModel(model) if packed else None
    found = embed_tokens(
        model,
        tokens,
        packed=packed_model,
        readout=HiddenStateReadout("mean", -1),
        max_batch_tokens=None,
        pad_id=0,
        done=lambda _: None,
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("runner", [PackedRunner, PaddedRunner])
def test_batches_shrink_until_memory_holds_them(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, runner: type[PackedRunner] | type[PaddedRunner]
) -> None:
    wanted = embedded(tiny_model, packed=runner is PackedRunner)
    through, asked = runner.vectors, []

    def short_of_memory(self: PackedRunner | PaddedRunner, numbers: Sequence[int]) -> Tensor:
        asked.append(len(numbers))
        if len(numbers) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return through(self, numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "vectors", short_of_memory)
    with pytest.warns(MemoryWarning, match=r"Memory does not hold \d+ tokens at once: going on with \d+"):
        found = embedded(tiny_model, packed=runner is PackedRunner)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert asked[0] > 1
    assert asked.count(1) == 4


def test_a_text_too_long_for_memory_is_named(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried")

    monkeypatch.setattr(PaddedRunner, "vectors", no_memory)
    with pytest.raises(MemoryLimitError, match=r"A text of 7 tokens does not fit in memory\. Lower"):
        embedded(tiny_model, packed=False, budget=1)


def test_other_failures_are_not_taken_for_a_shortage(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PaddedRunner, "vectors", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        embedded(tiny_model, packed=False)
