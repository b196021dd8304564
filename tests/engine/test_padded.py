"""Padding, and batches that cover every row once and keep within their budget."""

import itertools

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from bellm.engine.padded import PaddedRunner, pad_rows
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import Tokens


def test_rows_are_padded_on_the_side_that_is_asked_for() -> None:
    ids, mask = pad_rows([[5, 6], [7]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]
    ids, mask = pad_rows([[5, 6], [7]], 0, torch.device("cpu"), left=True)
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


@example(lengths=[3, 3, 3], budget=6)
@given(lengths=st.lists(st.integers(1, 50), min_size=1), budget=st.integers(1, 120))
def test_every_row_comes_once_longest_first_in_batches_that_fill_the_budget(
    tiny_model: LlamaForCausalLM, lengths: list[int], budget: int
) -> None:
    tokens = Tokens([[3] * length for length in lengths], [(0, length) for length in lengths], 0)
    groups = PaddedRunner(tiny_model, tokens, HiddenStateReadout("mean", -1), 0).batches(range(len(lengths)), budget)
    planned = [number for group in groups for number in group]
    assert sorted(planned) == list(range(len(lengths)))
    assert [lengths[number] for number in planned] == sorted(lengths, reverse=True)
    assert all(len(group) == 1 or len(group) * lengths[group[0]] <= budget for group in groups)
    for full, _ in itertools.pairwise(groups):
        assert (len(full) + 1) * lengths[full[0]] > budget
