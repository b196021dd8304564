"""Gradients in chunks against autograd of the whole batch.

Shapes: B rows, W width.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bellm.train.gradients import Chunk, chunk_outputs

ROWS_BW = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Two layers with dropout between them, and a beginning that all rows share."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            self.beginning_W = nn.Parameter(torch.randn(6, dtype=dtype))
            self.first = nn.Linear(6, 16, dtype=dtype)
            self.second = nn.Linear(16, 4, dtype=dtype)
        self.dropout = dropout

    def forward(self, rows_BW: Tensor, kept: Tensor | None = None) -> Tensor:
        states = torch.tanh(self.first(rows_BW.to(self.beginning_W.dtype) * self.beginning_W))
        states = functional.dropout(states, self.dropout) if kept is None else states * kept
        answer: Tensor = self.second(states)
        return answer

    def chunks(self, size: int) -> list[Chunk]:
        return [partial(self, part_BW) for part_BW in torch.split(ROWS_BW, size)]

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]


def accumulate_gradients(chunks: Sequence[Chunk], loss: Callable[[Sequence[Tensor]], Tensor], **options: Any) -> Tensor:
    with chunk_outputs(chunks, **options) as outputs:
        value = loss(outputs)
        value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def apart(answers: Sequence[Tensor]) -> Tensor:
    """A loss in which every row meets every other."""
    vectors_BW = functional.normalize(torch.cat(list(answers)), dim=1)
    others = torch.eye(len(vectors_BW), dtype=torch.bool)
    scores_BB = (vectors_BW @ vectors_BW.T / 0.05).masked_fill(others, -torch.inf)
    return functional.cross_entropy(scores_BB, torch.arange(len(vectors_BW)).roll(1))


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_whole_batch(dtype: torch.dtype, size: int, cached: bool) -> None:
    whole, parts = Network(dtype=dtype), Network(dtype=dtype)
    wanted = apart([whole(ROWS_BW)])
    wanted.backward()  # type: ignore[no-untyped-call]
    found = accumulate_gradients(parts.chunks(size), apart, seed=0, cached=cached)
    assert not found.requires_grad
    assert float(found) == pytest.approx(wanted.item(), rel=1e-6)
    assert len(parts.gradients()) == 5
    assert relative(parts.gradients(), whole.gradients()) < (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_dropout_is_the_same_both_times_and_another_for_each_chunk(size: int) -> None:
    kept = []
    for number, part_BW in enumerate(torch.split(ROWS_BW, size)):
        torch.manual_seed(70 + number)
        kept.append(functional.dropout(torch.ones(len(part_BW), 16, dtype=torch.float64), 0.5))
    assert size == 8 or not torch.equal(kept[0], kept[1])
    whole, cached, held = Network(), Network(0.5), Network(0.5)
    apart([whole(ROWS_BW, torch.cat(kept))]).backward()  # type: ignore[no-untyped-call]
    for network, runner in ((cached, True), (held, False)):
        accumulate_gradients(network.chunks(size), apart, seed=70, cached=runner)
        assert relative(network.gradients(), whole.gradients()) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_and_held_are_equal_bit_for_bit(dropout: float) -> None:
    cached, held = Network(dropout, torch.float32), Network(dropout, torch.float32)
    losses = [
        accumulate_gradients(network.chunks(3), apart, seed=5, cached=runner)
        for network, runner in ((cached, True), (held, False))
    ]
    assert torch.equal(*losses)
    assert all(map(torch.equal, cached.gradients(), held.gradients()))


def test_gradients_are_added_to_those_that_are_there() -> None:
    network = Network()
    accumulate_gradients(network.chunks(3), apart, seed=0, cached=True)
    once = [gradient.clone() for gradient in network.gradients()]
    accumulate_gradients(network.chunks(3), apart, seed=0, cached=False)
    assert relative(network.gradients(), [2 * gradient for gradient in once]) < 1e-12


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_loss_does_not_use_has_no_part(cached: bool) -> None:
    whole, parts = Network(), Network()
    apart([whole(ROWS_BW[:6])]).backward()  # type: ignore[no-untyped-call]
    accumulate_gradients(parts.chunks(3), lambda answers: apart(answers[:2]), seed=0, cached=cached)
    assert relative(parts.gradients(), whole.gradients()) < 1e-12


def test_the_generator_of_everyone_else_is_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    accumulate_gradients(Network(0.5).chunks(3), apart, seed=0, cached=True)
    assert torch.equal(torch.rand(2), wanted)


# Chunks at once


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("casts", [True, False])
def test_two_at_once_are_equal_to_one_after_the_other_bit_for_bit(two_threads: None, cached: bool, casts: bool) -> None:
    ours, theirs = Network(dtype=torch.float32), Network(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        for _ in range(2):  # The second adds to what is there.
            found = accumulate_gradients(
                ours.chunks(1), apart, seed=0, cached=cached, num_concurrent=2, parameters=list(ours.parameters())
            )
            wanted = accumulate_gradients(theirs.chunks(1), apart, seed=0, cached=cached)
    assert torch.equal(found, wanted)
    assert len(ours.gradients()) == 5
    assert all(map(torch.equal, ours.gradients(), theirs.gradients()))


@pytest.mark.parametrize("cached", [True, False])
def test_two_are_computed_at_once_on_half_the_threads_each(two_threads: None, cached: bool) -> None:
    network, met, threads = Network(), threading.Barrier(2), set()

    def waiting(chunk: Chunk) -> Tensor:
        met.wait(timeout=60)
        threads.add((threading.get_ident(), torch.get_num_threads()))
        return chunk()

    chunks = [partial(waiting, chunk) for chunk in network.chunks(2)]
    accumulate_gradients(chunks, apart, seed=0, cached=cached, num_concurrent=2, parameters=list(network.parameters()))
    assert len(threads) == 2
    assert {number for _, number in threads} == {1}
    assert torch.get_num_threads() == 2


def test_two_at_once_leave_weights_without_a_part_alone(two_threads: None) -> None:
    network, other = Network(), nn.Parameter(torch.zeros(3))
    accumulate_gradients(
        network.chunks(3), apart, seed=0, cached=True, num_concurrent=2, parameters=[*network.parameters(), other]
    )
    assert other.grad is None


def test_what_goes_wrong_in_one_of_two_is_told(two_threads: None) -> None:
    def broken() -> Tensor:
        raise RuntimeError("no room")

    network = Network()
    with pytest.raises(RuntimeError, match="no room"):
        accumulate_gradients([*network.chunks(3), broken], apart, seed=0, cached=True, num_concurrent=2)
    assert torch.get_num_threads() == 2


class _Kept:
    """What a graph keeps of the forward pass; it goes when the graph goes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def most_kept(run: Callable[[], object]) -> int:
    """The most numbers that graphs held at once."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def pack(tensor: Tensor) -> _Kept:
        nonlocal most
        kept = _Kept(tensor)
        alive.add(kept)
        most = max(most, sum(each.tensor.numel() for each in alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run()
    return most


def test_a_cached_step_holds_the_graph_of_one_chunk_at_a_time() -> None:
    network = Network()

    def loss(answers: Sequence[Tensor]) -> Tensor:
        return torch.stack([answer.sum() for answer in answers]).sum()

    held = [
        most_kept(
            lambda size=size, cached=cached: accumulate_gradients(network.chunks(size), loss, seed=0, cached=cached)
        )  # type: ignore[misc]
        for size, cached in ((1, True), (8, True), (1, False))
    ]
    assert held[0] < held[1] / 2
    assert held[0] < held[2] / 5
