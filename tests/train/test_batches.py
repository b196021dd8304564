"""The order of the data: every row once, no text twice, the same again."""

import itertools
import math
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.errors import BellmError, BellmWarning
from bellm.train.batches import Batches, TrainBatch, pack_batches, weighted_sources
from bellm.train.dataset import Dataset, load_dataset
from bellm.train.examples import Example, mark_symmetric, text_key

SIZES = st.integers(1, 7)
SEEDS = st.integers(0, 3)
WORDS = st.sampled_from(["rain", "Rain", "snow ", "hail", "wind", "fog", "sleet", "sun"])
ROWS = st.builds(
    Example, WORDS, st.lists(WORDS, min_size=1, max_size=2).map(tuple), st.lists(WORDS, max_size=1).map(tuple)
)
DATASETS = st.lists(ROWS, min_size=1, max_size=25).map(lambda rows: Dataset("weather", rows))


def pairs(number: int, name: str = "pairs") -> Dataset:
    return Dataset(name, [Example(f"{name} {at}", (f"answer to {name} {at}",)) for at in range(number)])


def some(batches: Batches, number: int) -> list[TrainBatch]:
    return [batches[step] for step in range(number)]


def quiet(*args: object, **options: int) -> Batches:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BellmWarning)
        return Batches(*args, **options)  # type: ignore[arg-type]


@given(DATASETS, SIZES, SEEDS)
def test_every_row_comes_once_an_epoch_and_no_text_twice_in_a_batch(dataset: Dataset, size: int, seed: int) -> None:
    batches = quiet([(dataset, 1)], size, seed=seed)
    epochs = [[batch for batch in some(batches, 60) if batch.epoch == epoch] for epoch in (0, 1)]
    assert len(epochs[0]) == batches.per_epoch
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch.rows) == list(range(len(dataset)))
        for batch in epoch:
            assert 1 <= len(batch.rows) <= size
            assert batch.examples == tuple(dataset[row] for row in batch.rows)
            often = Counter(text for example in batch.examples for text in {text_key(text) for text in example.texts})
            assert set(often.values()) == {1}


@given(st.lists(st.tuples(DATASETS, st.sampled_from([0.5, 1, 1.5, 3])), min_size=1, max_size=3), SIZES, st.data())
def test_a_step_gives_the_same_batch_whatever_was_asked_before(
    sources: list[tuple[Dataset, float]], size: int, draw: st.DataObject
) -> None:
    wanted = some(quiet(sources, size, seed=5), 40)
    assert [batch.step for batch in wanted] == list(range(40))
    resumed = quiet([(Dataset("again", dataset), weight) for dataset, weight in sources], size, seed=5)
    for step in draw.draw(st.lists(st.integers(0, 39), max_size=4)):
        assert resumed[step] == wanted[step]


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=4).map(lambda texts: list(set(texts))), max_size=40),
    SIZES,
)
def test_a_row_waits_no_longer_than_it_must(texts: list[list[int]], size: int) -> None:
    """Every batch before a row's is full, or not behind all that hold one of its texts."""
    batches = pack_batches(range(len(texts)), texts, size)
    assert sorted(itertools.chain(*batches)) == list(range(len(texts)))
    place = {row: number for number, batch in enumerate(batches) for row in batch}
    for row in range(len(texts)):
        held = [place[other] for other in range(row) if set(texts[other]) & set(texts[row])]
        least = max(held, default=-1) + 1
        assert least <= place[row]
        for between in range(least, place[row]):
            assert sum(place[other] == between for other in range(row)) == size


def test_without_repeated_texts_only_the_last_batch_is_small() -> None:
    batches = Batches([(pairs(103), 1)], 10)
    assert batches.per_epoch == 11
    assert [len(batch.rows) for batch in some(batches, 22)] == 2 * [*[10] * 10, 3]


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = set()
    for seed in (0, 1):
        batches = Batches([(pairs(50), 1)], 5, seed=seed)
        steps = some(batches, 20)
        orders |= {tuple(row for batch in steps[at : at + 10] for row in batch.rows) for at in (0, 10)}
    assert len(orders) == 4
    assert tuple(range(50)) not in orders
    # A uniform order: the first row is from anywhere.
    first = [Batches([(pairs(4), 1)], 1, seed=seed)[0].rows[0] for seed in range(400)]
    assert all(70 < often < 130 for often in Counter(first).values())


def test_weights_are_passes_an_epoch() -> None:
    sources = [(pairs(40, "a"), 1), (pairs(10, "b"), 2), (pairs(20, "c"), 0.5)]
    batches = Batches(sources, 4)
    assert batches.per_epoch == 10 + 2 * 3 + 2  # 2 of 5 batches: half of them, rounded to even.
    steps = some(batches, batches.per_epoch + 10 + 6 + 3)
    assert steps[-1].epoch == 1
    often = Counter((batch.source, row) for batch in steps for row in batch.rows)
    assert {source: {often[source, row] for row in range(len(sources[source][0]))} for source in range(3)} == {
        0: {2},
        1: {4},
        2: {1},
    }
    first = [batch.source for batch in steps if batch.epoch == 0]
    assert first != sorted(first)  # Mixed.


def test_batches_are_of_one_source() -> None:
    rated = Dataset("rated", [Example(f"a {at}", (f"b {at}",), score=float(at)) for at in range(9)])
    for batch in some(Batches([(pairs(9), 1), (rated, 1)], 4), 12):
        assert {example.score is not None for example in batch.examples} == {batch.source == 1}


def test_alike_texts_take_turns_as_anchors() -> None:
    images = Dataset("images", [mark_symmetric([f"view {view} of {at}" for view in range(5)]) for at in range(6)])
    steps = some(Batches([(images, 1)], 6), 5)
    anchors = [[example.anchor for example in batch.examples] for batch in steps]
    assert len(set(itertools.chain(*anchors))) == 30  # Five epochs: each text once.
    assert len({anchor[:6] for anchor in anchors[0]}) == 5  # Within an epoch, not all from the same place.


def test_so_many_repeats_that_batches_stay_small_are_told() -> None:
    labels = Dataset("labels", [Example(f"review {at}", ("good" if at % 2 else "bad",)) for at in range(40)])
    with pytest.warns(BellmWarning, match=r"the 40 rows of labels make 20 batches of 8 or fewer, because the same"):
        batches = Batches([(labels, 1)], 8)
    assert [len(batch.rows) for batch in some(batches, 20)] == [2] * 20


def test_work_does_not_grow_with_repeats() -> None:
    assert len(pack_batches(range(200_000), [[7]] * 200_000, 64)) == 200_000  # Hours, if each row tried every batch.


@pytest.mark.parametrize(
    ("weights", "size", "seed"),
    [([], 4, 0), ([0], 4, 0), ([1, -1], 4, 0), ([math.inf], 4, 0), ([math.nan], 4, 0), ([1], 0, 0), ([1], 4, -1)],
)
def test_numbers_out_of_range(weights: list[float], size: int, seed: int) -> None:
    with pytest.raises(BellmError, match=r"weights above 0, a batch size from 1 and a seed from 0"):
        Batches([(pairs(3), weight) for weight in weights], size, seed=seed)


def test_a_batch_may_be_one_row() -> None:
    assert [len(batch.rows) for batch in some(Batches([(pairs(3), 1)], 1), 3)] == [1] * 3


def test_what_decides_the_order_is_described() -> None:
    known = Batches([(pairs(3), 1)], 2, seed=4).described()
    assert known["batch_size"] == 2
    assert known["sources"][0] == {"name": "pairs", "rows": 3, "rejected": 0, "sha256": pairs(3).digest, "weight": 1}
    others = [Batches([(pairs(4), 1)], 2, seed=4), Batches([(pairs(3), 2)], 2, seed=4), Batches([(pairs(3), 1)], 2)]
    assert all(other.described() != known for other in others)


@pytest.mark.parametrize("size", [16, 512])
def test_the_nli_triplets_fill_their_batches(data: Path, size: int) -> None:
    with pytest.warns(BellmWarning, match="not read: column 'source'"):
        triplets = load_dataset(data / "nli" / "triplets_en.csv")
    batches = Batches([(triplets, 1)], size, seed=1)
    steps = some(batches, batches.per_epoch)
    assert len(steps) <= math.ceil(len(triplets) / size) + 1
    assert sum(len(batch.rows) for batch in steps) == len(triplets)
    for batch in steps:
        often = Counter(text for example in batch.examples for text in {text_key(text) for text in example.texts})
        assert set(often.values()) == {1}


def test_a_data_set_without_a_weight_counts_once() -> None:
    first, second = pairs(3, "first"), pairs(3, "second")
    assert weighted_sources(first) == [(first, 1)]
    assert weighted_sources([first, (second, 2)]) == [(first, 1), (second, 2)]
