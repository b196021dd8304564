"""Several batches at once, windows of texts, work one ahead, and doubles."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from bellm.backbone.packed_model import PackedModel
from bellm.engine.concurrency import num_concurrent_batches, parallel_map, prefetch
from bellm.engine.embedding import embed_tokens
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens, chunk_texts, deduplicate
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
        assert not torch.is_autocast_cache_enabled()  # All threads share it.
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled(), product.dtype

    others = set(threading.enumerate())  # Of servers, say.
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), parallel_map(2) as each:
        assert list(each(found, range(5))) == [(number, 1, True, torch.bfloat16) for number in range(5)]
    assert torch.get_num_threads() == 2
    with parallel_map(2) as each:
        assert list(each(found, [7])) == [(7, 1, False, torch.float32)]
        assert any(thread.name.startswith("bellm") for thread in {*threading.enumerate()} - others)
    assert not any(thread.name.startswith("bellm") for thread in {*threading.enumerate()} - others)


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
    monkeypatch.setattr("bellm.engine.concurrency.CONCURRENT_BATCHES", 1)
    torch.set_num_threads(1)
    assert (vectors() == two).all()


def test_frequencies_that_change_with_the_batch_are_not_shared() -> None:
    assert num_concurrent_batches(decoder("llama")) == 2
    assert num_concurrent_batches(longrope(16)) == 1


@given(st.lists(st.text(max_size=20)))
def test_windows_hold_every_text_once_in_order(texts: list[str]) -> None:
    parts = list(chunk_texts(texts, max_texts=5, max_characters=30))
    assert [text for part in parts for text in part] == texts
    assert all(len(part) <= 5 and sum(map(len, part[:-1])) <= 30 for part in parts)


def test_work_is_done_in_order_and_one_ahead() -> None:
    done: list[int] = []
    begun = threading.Event()

    def work(number: int) -> int:
        done.append(number)
        if number == 1:
            begun.set()
        return number * number

    found = []
    for result in prefetch(map(work, range(5))):
        if not found:
            assert begun.wait(10)  # The second item is under way while the first result is used.
        found.append(result)
    assert found == [0, 1, 4, 9, 16]
    assert done == [0, 1, 2, 3, 4]
    assert list(prefetch(iter([]))) == []


def test_an_error_ahead_arrives() -> None:
    def work(number: int) -> int:
        return 1 // (1 - number)

    with pytest.raises(ZeroDivisionError):
        list(prefetch(map(work, range(3))))


def test_rows_of_equal_ids_are_one_unless_their_spans_count() -> None:
    tokens = Tokens([[1, 2], [3], [1, 2], [1, 2]], [(0, 2), (0, 1), (0, 2), (1, 2)], 0)
    rows, where = deduplicate(tokens, by_span=False)
    assert (rows.ids, where) == ([[1, 2], [3]], [0, 1, 0, 0])
    rows, where = deduplicate(tokens, by_span=True)
    assert (rows.spans, where) == ([(0, 2), (0, 1), (1, 2)], [0, 1, 0, 2])
