"""Several batches at once: the same answers in order, and threads and modes as they were."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from bellm.backbone.packed_model import PackedModel
from bellm.engine.concurrency import num_concurrent_batches, parallel_map
from bellm.engine.embedding import embed_tokens
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens
from bellm.types import Vectors

from ..decoders import decoder, longrope


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_answers_come_in_order_with_modes_and_threads_as_outside() -> None:
    def found(number: int) -> tuple[int, int, bool, torch.dtype]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled(), product.dtype

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), parallel_map(2) as each:
        assert list(each(found, range(5))) == [(number, 1, True, torch.bfloat16) for number in range(5)]
    assert torch.get_num_threads() == 2
    with parallel_map(2) as each:
        assert list(each(found, [7])) == [(7, 1, False, torch.float32)]


def test_one_thread_has_nothing_to_share() -> None:
    torch.set_num_threads(1)
    with parallel_map(2) as each:
        assert each is map


def test_two_batches_at_once_are_computed_as_one_by_one(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 90, length).tolist() for length in draw.integers(2, 30, 40)]
    tokens, packed_model = Tokens(rows, [(0, len(row)) for row in rows], 0), PackedModel(tiny_model)

    def vectors() -> Vectors:
        return embed_tokens(
            tiny_model,
            tokens,
            packed=packed_model,
            readout=HiddenStateReadout("mean", -1),
            max_batch_tokens=64,
            pad_id=0,
            done=lambda _: None,
        )

    two = vectors()
    monkeypatch.setattr("bellm.engine.concurrency._CONCURRENT_BATCHES", 1)
    torch.set_num_threads(1)
    assert (vectors() == two).all()


def test_frequencies_that_change_with_the_batch_are_not_shared() -> None:
    assert num_concurrent_batches(decoder("llama")) == 2
    assert num_concurrent_batches(longrope(16)) == 1
