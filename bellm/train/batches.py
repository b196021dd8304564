"""Batch sampling as a pure function of the seed, the step and the data.

There is no state to save: a run that resumes at step n builds the epoch of step n again and continues inside it.

With AMR graphs every text of a row is read, or its graph, at even odds (MSE-AMR, arXiv 2210.09773).

A batch holds rows of one source, because rated pairs and triplets take different losses. No text is in two of its rows:
a copy of an anchor's positive, or of the anchor itself, would be counted as its negative. So would an equal graph.

Shapes: R rows, T texts of all rows.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bellm.data.amr import Graphs
from bellm.errors import BellmError, BellmWarning, warn
from bellm.train.dataset import Dataset
from bellm.train.examples import Example, text_key

_GRAPH_SHARE = 0.5  # Of the texts that have a graph.


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """The rows of one step, of all processes together: which rows of which source."""

    step: int
    epoch: int
    source: int
    rows: tuple[int, ...]
    examples: tuple[Example, ...]


class _Planned(NamedTuple):
    source: int
    turn: int
    """How often the source had been gone through before."""
    rows: list[int]


class Batches:
    """Batches of weighted sources, epoch after epoch without end.

    In an epoch of a source of weight 1 every row comes once. Weight 2 goes through the source twice an epoch; 0.5
    gives half of its batches in one epoch and the other half in the next. Batches of all sources come in random order.
    The last batches of a source may be smaller, of rows that fitted into none before.

    >>> pairs = Dataset("pairs", [Example(f"question {n}", (f"answer {n}",)) for n in range(5)])
    >>> batches = Batches([(pairs, 1)], batch_size=2, seed=0)
    >>> [len(batches[step].examples) for step in range(2 * batches.per_epoch)]
    [2, 2, 1, 2, 2, 1]
    """

    def __init__(
        self,
        sources: Sequence[tuple[Dataset, float]],
        batch_size: int,
        seed: int = 0,
        graphs: Graphs | None = None,
    ) -> None:
        """Plan the first epoch of data sets with weights; the batch size is that of all processes together.

        With `graphs` every text of a batch is itself or its graph.

        Warns where texts come again so often that batches are less than half full.
        """
        if batch_size < 1 or seed < 0 or not sources or any(not 0 < weight < math.inf for _, weight in sources):
            raise BellmError("Give one source or more, weights above 0, a batch size from 1 and a seed from 0.")
        self.sources = tuple(sources)
        self.batch_size = batch_size
        self.seed = seed
        self.graphs = graphs
        self._texts = [_texts_of_rows(dataset, graphs) for dataset, _ in sources]
        self._sizes: list[int] = []
        self._last: tuple[int, list[_Planned]] = (-1, [])
        for source in range(len(sources)):
            self._warn_of_small_batches(source)

    @property
    def per_epoch(self) -> int:
        """Batches of the first epoch; where texts repeat, another may have a few more or fewer."""
        return len(self._epoch(0))

    def __getitem__(self, step: int) -> TrainBatch:
        """The batch of a step, counted from 0; steps go on without end."""
        first = 0
        for epoch in itertools.count():
            if epoch == len(self._sizes):
                self._sizes.append(len(self._epoch(epoch)))
            if step < first + self._sizes[epoch]:
                return self._batch(step, epoch, self._epoch(epoch)[step - first])
            first += self._sizes[epoch]
        raise AssertionError

    def described(self) -> dict[str, Any]:
        """All that decides the batches, as plain values: a run may resume where they are still the same."""
        graphs = {"graphs": self.graphs.digest} if self.graphs else {}
        return {"sources": describe_sources(self.sources), "batch_size": self.batch_size, "seed": self.seed, **graphs}

    def _batch(self, step: int, epoch: int, planned: _Planned) -> TrainBatch:
        dataset = self.sources[planned.source][0]
        # Each row starts from another of its symmetric texts, and takes the next one each epoch.
        examples = tuple(dataset[row].rotate(row + planned.turn) for row in planned.rows)
        if self.graphs:
            draw = np.random.default_rng(np.random.SeedSequence([self.seed, step, 0, 1]))  # The others have 3 numbers.
            examples = tuple(_draw_views(example, self.graphs, draw) for example in examples)
        return TrainBatch(step, epoch, planned.source, tuple(planned.rows), examples)

    def _epoch(self, number: int) -> list[_Planned]:
        if self._last[0] != number:
            shares = [list(self._share(source, number)) for source in range(len(self.sources))]
            turns = np.repeat(np.arange(len(shares)), list(map(len, shares)))
            order = self._draw(number, len(shares)).permutation(turns)
            streams = [iter(share) for share in shares]
            self._last = number, [next(streams[source]) for source in order]
        return self._last[1]

    def _share(self, source: int, epoch: int) -> Iterator[_Planned]:
        """A source's batches of an epoch, which spans as many turns as its weight says."""
        weight = self.sources[source][1]
        start, end = epoch * weight, (epoch + 1) * weight
        for turn in range(math.floor(start), math.ceil(end)):
            batches = self._turn(source, turn)
            first, last = (round(len(batches) * min(1.0, max(0.0, time - turn))) for time in (start, end))
            yield from (_Planned(source, turn, rows) for rows in batches[first:last])

    def _turn(self, source: int, turn: int) -> list[list[int]]:
        texts = self._texts[source]
        return pack_batches(self._draw(turn, source).permutation(len(texts)).tolist(), texts, self.batch_size)

    def _draw(self, number: int, source: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, number, source]))

    def _warn_of_small_batches(self, source: int) -> None:
        dataset = self.sources[source][0]
        batches = self._turn(source, 0)
        if len(batches) > 2 * math.ceil(len(dataset) / self.batch_size):
            message = (
                f"the {len(dataset)} rows of {dataset.name} make {len(batches)} batches of {self.batch_size} or fewer, "
                "because the same texts stand in many rows and a batch has each text once."
            )
            warn(message, BellmWarning)


def weighted_sources(data: Dataset | Sequence[Dataset | tuple[Dataset, float]]) -> list[tuple[Dataset, float]]:
    """Data sets with their weights, of which 1 may be left out."""
    try:
        given = [data] if isinstance(data, Dataset) else list(data)
        pairs = [(each, 1.0) if isinstance(each, Dataset) else (each[0], float(each[1])) for each in given]
    except (TypeError, ValueError, IndexError, KeyError):
        pairs = []
    if not pairs or not all(isinstance(dataset, Dataset) for dataset, _ in pairs):
        raise BellmError(
            f"{data!r:.60} is no data: give load_dataset(FILE), or a list of such, or of (dataset, weight)."
        )
    return pairs


def describe_sources(sources: Sequence[tuple[Dataset, float]]) -> list[dict[str, Any]]:
    """Name, size, content and weight of each source, as plain values."""
    return [
        {
            "name": dataset.name,
            "rows": len(dataset),
            "rejected": dataset.num_rejected,
            "sha256": dataset.digest,
            "weight": weight,
        }
        for dataset, weight in sources
    ]


def pack_batches(order: Iterable[int], texts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Pack rows into batches of at most `size` in which no text occurs twice, given the ids of every row's texts.

    A row goes into the first batch that has room and comes after all that hold one of its texts: first fit, in time
    linear in the number of texts, however often one is repeated.

    >>> pack_batches([0, 1, 2, 3], [[7, 8], [7, 9], [5], [6]], size=2)
    [[0, 2], [1, 3]]
    """
    batches: list[list[int]] = []
    free_from: dict[int, int] = {}  # The first batch that may hold a text.
    first = 0  # The first batch with room.
    for row in order:
        at = max([first, *(free_from.get(text, 0) for text in texts[row])])
        while at < len(batches) and len(batches[at]) == size:
            at += 1
        batches.extend([] for _ in range(at + 1 - len(batches)))
        batches[at].append(row)
        free_from.update(dict.fromkeys(texts[row], at + 1))
        while first < len(batches) and len(batches[first]) == size:
            first += 1
    return batches


def _draw_views(example: Example, graphs: Graphs, draw: np.random.Generator) -> Example:
    """A row in which every text is itself or its graph; a negative with the graph of another text stays a text."""

    def view(text: str) -> str:
        return graphs(text) if draw.random() < _GRAPH_SHARE else text

    anchor, positives = view(example.anchor), tuple(map(view, example.positives))
    same = {graphs(text) for text in (example.anchor, *example.positives)}
    negatives = tuple(text if graphs(text) in same else view(text) for text in example.negatives)
    return replace(example, anchor=anchor, positives=positives, negatives=negatives)


def _texts_of_rows(dataset: Dataset, graphs: Graphs | None) -> list[list[int]]:
    """For every row, ids of those of its texts, and graphs, that occur more than once; the others cannot collide."""
    keys_T, key_ends_R = dataset.keys_T, dataset.key_ends_R
    if graphs:
        keys = [text_key(graphs(text)) for example in dataset for text in example.texts]
        keys_T, key_ends_R = np.stack([keys_T, np.array(keys)], 1).ravel(), 2 * key_ends_R
    _, number_T, count_T = np.unique(keys_T, return_inverse=True, return_counts=True)
    numbers, often = number_T.tolist(), (count_T[number_T] > 1).tolist()
    ends = [0, *key_ends_R.tolist()]
    return [[numbers[at] for at in range(*span) if often[at]] for span in itertools.pairwise(ends)]
