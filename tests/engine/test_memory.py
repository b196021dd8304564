"""Windows of texts, work one ahead, doubles, and how much suits the hardware."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from bellm.engine.concurrency import prefetch
from bellm.engine.memory import default_batch_tokens
from bellm.engine.tokenization import Tokens, chunk_texts, deduplicate

from ..decoders import decoder


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


def test_wider_models_get_fewer_tokens(tiny_model: LlamaForCausalLM) -> None:
    assert default_batch_tokens(tiny_model) == 4096
    wide = decoder("llama")
    width, wide.config.intermediate_size = wide.config.intermediate_size, 2048
    try:
        assert default_batch_tokens(wide) == 384
        assert default_batch_tokens(wide.to(torch.bfloat16)) == 768
    finally:
        wide.to(torch.float32).config.intermediate_size = width
