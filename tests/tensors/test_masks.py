"""Masks that look both ways: what they open, and what they never open."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bellm.tensors.masks import bidirectional_mask

LENGTH = 9


def causal(*, window: int = LENGTH, chunk: int = LENGTH, left: int = 0, right: int = 0) -> Tensor:
    """A causal mask with a window, chunks and padding on either side, as transformers makes it."""
    q, k = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    real = (k >= left) & (k < LENGTH - right)
    return ((k <= q) & (q - k < window) & (q // chunk == k // chunk) & real)[None, None]


shapes = st.fixed_dictionaries(
    {
        "window": st.integers(1, LENGTH),
        "chunk": st.integers(1, LENGTH),
        "left": st.integers(0, 4),
        "right": st.integers(0, 4),
    }
)


@given(shapes)
def test_two_real_tokens_see_each_other_where_one_saw_the_other(shape: dict[str, int]) -> None:
    before, after = causal(**shape), bidirectional_mask(causal(**shape))
    real = before.diagonal(dim1=-2, dim2=-1)[0, 0]
    pairs = real[:, None] & real[None, :]
    assert torch.equal(after & pairs, (before | before.mT) & pairs)


@given(shapes)
def test_padding_is_never_seen_and_no_row_is_empty(shape: dict[str, int]) -> None:
    before, after = causal(**shape), bidirectional_mask(causal(**shape))
    padding = ~before.diagonal(dim1=-2, dim2=-1)[0, 0]
    assert not after[..., padding].any()
    assert after.any(-1).all()


@given(shapes, st.booleans())
def test_opening_twice_is_opening_once(shape: dict[str, int], keep: bool) -> None:
    once = bidirectional_mask(causal(**shape), keep_window=keep)
    assert torch.equal(bidirectional_mask(once, keep_window=keep), once)


@given(shapes)
def test_an_open_window_lets_every_real_pair_meet(shape: dict[str, int]) -> None:
    before = causal(**shape)
    real = before.diagonal(dim1=-2, dim2=-1)[:, :, None, :]
    assert torch.equal(bidirectional_mask(before, keep_window=False), real.expand_as(before))


@given(shapes, st.booleans())
def test_additive_masks_open_as_boolean_ones_do(shape: dict[str, int], keep: bool) -> None:
    boolean = causal(**shape)
    lowest = torch.finfo(torch.float32).min
    after = bidirectional_mask(torch.where(boolean, 0.0, lowest), keep_window=keep)
    assert torch.equal(after, torch.where(bidirectional_mask(boolean, keep_window=keep), 0.0, lowest))


def test_a_bias_of_the_key_rides_along() -> None:
    bias = torch.arange(LENGTH, dtype=torch.float32)
    lowest = torch.finfo(torch.float32).min
    mask = torch.where(causal(right=2), bias, lowest)
    after = bidirectional_mask(mask)[0, 0]
    assert torch.equal(after[0, : LENGTH - 2], bias[: LENGTH - 2])
    assert (after[:, LENGTH - 2 :] == lowest).all()


def test_packed_documents_stay_apart() -> None:
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    same = document[:, None] == document[None, :]
    assert torch.equal(bidirectional_mask((same & causal()[0, 0])[None, None])[0, 0], same)
