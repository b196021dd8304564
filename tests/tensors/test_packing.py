"""Attention along paths against attention of each text alone."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bellm.tensors.flex import flex_attention
from bellm.tensors.packing import KernelRefusal, MaskSpec, Packing, TokenPath
from bellm.tensors.varlen import varlen_attention

from ..kernel_reference import varlen_attn, varlen_attn_210

CPU = torch.device("cpu")


def tree(draw: np.random.Generator, count: int, longest: int) -> list[TokenPath]:
    """Paths of texts that begin like one of those before them, each asking for its own end."""
    paths: list[TokenPath] = []
    rows = 0
    for _ in range(count):
        known: np.ndarray = np.empty(0, dtype=np.int64)
        if paths and draw.random() < 0.7:
            other = paths[draw.integers(len(paths))].keys
            known = other[: draw.integers(len(other) + 1)]
        own = np.arange(rows, rows + draw.integers(1, longest + 1))
        rows += len(own)
        paths.append(TokenPath(np.concatenate([known, own]), own))
    return paths


def alone(
    paths: Sequence[TokenPath], spec: MaskSpec, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> Tensor:
    """One text and one head at a time, straight from the formula."""
    answer = query.new_empty(*query.shape[:2], value.shape[-1])
    folds = query.shape[1] // key.shape[1]
    for path in paths:
        depth = len(path.keys)
        for head in range(query.shape[1]):
            for position, row in enumerate(path.queries.tolist(), depth - len(path.queries)):
                ahead = torch.arange(depth) - position
                seen = torch.ones(depth, dtype=torch.bool)
                seen &= ahead <= 0 if spec.causal else True
                seen &= ahead.abs() < spec.window if spec.window else True
                keys = path.keys[seen.numpy()]
                weights = (key[keys, head // folds] @ query[row, head] * scaling).softmax(0)
                answer[row, head] = weights @ value[keys, head // folds]
    return answer


def drawn(seed: int, count: int, longest: int) -> tuple[list[TokenPath], tuple[Tensor, Tensor, Tensor]]:
    paths = tree(np.random.default_rng(seed), count, longest)
    rows = sum(len(path.queries) for path in paths)
    torch.manual_seed(seed)
    return paths, (torch.randn(rows, 6, 8), torch.randn(rows, 2, 8), torch.randn(rows, 2, 5))


SPECS = st.builds(MaskSpec, causal=st.booleans(), window=st.sampled_from([None, 1, 3, 70]))


@settings(max_examples=60)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9), spec=SPECS)
def test_paths_attend_as_texts_alone(seed: int, count: int, spec: MaskSpec) -> None:
    paths, tables = drawn(seed, count, 7)
    found = Packing(paths, CPU).attend(spec, *tables, 0.3)
    torch.testing.assert_close(found, alone(paths, spec, *tables, 0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [varlen_attn, varlen_attn_210], ids=lambda kernel: kernel.__name__)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), count=st.integers(1, 9), spec=SPECS)
def test_a_kernel_for_texts_of_any_length_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], seed: int, count: int, spec: MaskSpec
) -> None:
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", kernel)
    paths, (query, key, _) = drawn(seed, count, 7)
    tables = query, key, torch.randn_like(key)
    if spec.window and kernel is varlen_attn_210:
        with pytest.raises(KernelRefusal, match="has no windows"):
            varlen_attention(Packing(paths, CPU), spec, *tables, 0.3)
        return
    found = varlen_attention(Packing(paths, CPU), spec, *tables, 0.3)
    torch.testing.assert_close(found, alone(paths, spec, *tables, 0.3), atol=1e-5, rtol=0)


def test_what_the_kernel_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, tables = drawn(1, 3, 7)
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", varlen_attn)
    with pytest.raises(KernelRefusal, match="keys and values differ in width"):
        varlen_attention(Packing(paths, CPU), MaskSpec(True), *tables, 0.3)
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", None)
    with pytest.raises(KernelRefusal, match=r"torch before 2\.10 has no kernel"):
        varlen_attention(Packing(paths, CPU), MaskSpec(True), *tables, 0.3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("longest", [7, 200])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9), spec=SPECS)
def test_flex_attention_gives_the_same(longest: int, seed: int, count: int, spec: MaskSpec) -> None:
    paths, (query, key, _) = drawn(seed, count, longest)
    tables = query, key, torch.randn_like(key)
    packing = Packing(paths, CPU)
    found = flex_attention(packing, spec, *tables, 0.3)
    torch.testing.assert_close(found, packing.attend(spec, *tables, 0.3), atol=1e-5, rtol=0)


def test_keys_are_copied_only_where_paths_share_them() -> None:
    apart = [TokenPath(np.arange(3), np.arange(3)), TokenPath(np.arange(3, 8), np.arange(3, 8))]
    sequences = Packing(apart, CPU).sequences
    assert sequences.keys_K is None
    assert (sequences.query_starts.tolist(), sequences.key_starts.tolist()) == ([0, 3, 8], [0, 3, 8])
    shared = [TokenPath(np.arange(3), np.arange(3)), TokenPath(np.array([0, 1, 3]), np.array([3]))]
    sequences = Packing(shared, CPU).sequences
    assert sequences.keys_K is not None
    assert sequences.keys_K.tolist() == [0, 1, 2, 0, 1, 3]
    assert (sequences.query_starts.tolist(), sequences.key_starts.tolist()) == ([0, 3, 4], [0, 3, 6])
    assert (sequences.most_queries, sequences.most_keys) == (3, 3)


@pytest.mark.parametrize("spec", [MaskSpec(True), MaskSpec(False), MaskSpec(True, 20), MaskSpec(False, 20)])
def test_texts_longer_than_a_block_attend_as_alone(spec: MaskSpec) -> None:
    paths, tables = drawn(3, 3, 300)
    assert max(len(path.queries) for path in paths) > 128
    found = Packing(paths, CPU).attend(spec, *tables, 0.3)
    torch.testing.assert_close(found, alone(paths, spec, *tables, 0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", [MaskSpec(True), MaskSpec(False), MaskSpec(True, 3)])
def test_a_function_for_padded_texts_gives_the_same(spec: MaskSpec) -> None:
    paths, (query, key, value) = drawn(5, 8, 9)
    packing = Packing(paths, CPU)

    def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
        return answer.transpose(1, 2)

    found = packing.attend_with(padded, spec, query, key, value)
    torch.testing.assert_close(found, packing.attend(spec, query, key, value, 0.3), atol=1e-5, rtol=0)


def test_keys_behind_a_block_are_left_out() -> None:
    (blocks,) = Packing([TokenPath(np.arange(150), np.arange(150))], CPU).blocks(MaskSpec(True), torch.float32)
    assert [block.num_keys for block in blocks] == [64, 128, 160]
    assert [block.first_masked for block in blocks] == [1, 65, 129]
    (blocks,) = Packing([TokenPath(np.arange(150), np.arange(150))], CPU).blocks(MaskSpec(False), torch.float32)
    assert all(block.num_keys == 160 and block.first_masked == 150 for block in blocks)
    (blocks,) = Packing([TokenPath(np.arange(160), np.arange(160))], CPU).blocks(MaskSpec(False), torch.float32)
    assert all(block.mask_B1QK is None and block.num_keys == 160 for block in blocks)
