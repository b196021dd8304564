"""Hard negatives: texts that lie close to an anchor and do not answer it.

Shapes: B anchors of a block, N texts to choose from, K of them taken, D width.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError
from bellm.tensors.similarity import normalize_rows
from bellm.train.examples import Example, text_key
from bellm.types import Vectors

Encode = Callable[[Sequence[str]], Vectors]
"""Embeds texts: float32 of shape (texts, D)."""

Mask = NDArray[np.bool_]

_SCORES = 2**25  # Cosines held at once.


@dataclass(frozen=True)
class MiningResult:
    """What was found."""

    examples: list[Example]
    """All examples in their order, with new negatives behind those that they had."""
    num_found: int
    num_guarded: int
    """Texts that were near enough to be taken, and that the guard held for answers nobody had marked."""
    num_short: int
    """Examples that got fewer negatives than were asked for."""


def mine_hard_negatives(
    examples: Iterable[Example],
    encode: Encode,
    *,
    num_negatives: int = 1,
    range_min: int = 0,
    margin: float = 0.05,
    absolute_margin: float = 0.0,
    guide: Encode | None = None,
    passages: Iterable[str] = (),
) -> MiningResult:
    """Give each example the nearest texts that are not its own, by the cosine of every anchor with every text.

    The texts are the positives of all examples, and `passages`. An anchor's own are the texts that any example pairs
    with it. As a guard against answers that nobody marked, with s the cosine of the anchor and the least similar of its
    positives, a negative's cosine is below s - margin |s| and below s - absolute_margin. The margin of 0.05 is
    TopK-PercPos of NV-Retriever (arXiv 2407.15831).

    >>> angle = {"north": 0.0, "up": 0.1, "upward": 0.2, "east": 1.5, "right": 1.4}
    >>> rows = [Example("north", ("up",)), Example("east", ("right",)), Example("north", ("upward",))]
    >>> mined = mine(rows, lambda texts: np.float32([[np.cos(angle[text]), np.sin(angle[text])] for text in texts]))
    >>> [row.negatives for row in mined.examples]
    [('right',), ('upward',), ('right',)]

    Args:
        examples: Without ratings.
        encode: Embeds anchors and texts.
        num_negatives: Most negatives of an example, nearest first.
        range_min: So many of the nearest are passed over, whatever the guard says.
        margin: How far below its positive a negative must be, as a share of the positive's cosine.
        absolute_margin: How far below in cosine.
        guide: An encoder by whose cosines the guard must hold as well (GISTEmbed, arXiv 2402.16829).
        passages: More texts to choose from.

    Raises:
        BellmError: There are no examples, some have ratings, a number is out of range, or vectors are not finite.
    """
    rows = list(examples)
    _check(rows, num_negatives, range_min, margin, absolute_margin)
    pool = _Pool(rows, passages)
    spaces = [_Space(pool, each) for each in (encode, guide) if each]
    found: list[list[int]] = []
    num_guarded = 0
    for block in _blocks(rows, len(pool.texts)):
        cosines = [space.cosines(block) for space in spaces]
        free_BN = pool.strangers(block)
        for free_N, passed_K in zip(free_BN, _nearest(cosines[0], free_BN, range_min), strict=True):
            free_N[passed_K] = False
        own = [[pool.number[text_key(text)] for text in row.positives] for row in block]
        below_BN = np.logical_and.reduce([_below(each_BN, own, margin, absolute_margin) for each_BN in cosines])
        wanted = _nearest(cosines[0], free_BN, num_negatives)
        num_guarded += sum(int((~below_N[near_K]).sum()) for below_N, near_K in zip(below_BN, wanted, strict=True))
        found += _nearest(cosines[0], free_BN & below_BN, num_negatives)
    mined = [
        replace(row, negatives=row.negatives + tuple(pool.texts[number] for number in numbers))
        for row, numbers in zip(rows, found, strict=True)
    ]
    counts = [len(numbers) for numbers in found]
    return MiningResult(mined, sum(counts), num_guarded, sum(each < num_negatives for each in counts))


class _Pool:
    """The texts to choose from, each once, and which of them are an anchor's own."""

    def __init__(self, rows: Sequence[Example], passages: Iterable[str]) -> None:
        found = {text_key(text): text for row in rows for text in row.positives} | {
            text_key(text): text for text in passages
        }
        self.texts = list(found.values())
        self.number = {each: number for number, each in enumerate(found)}
        self.anchors = list({text_key(row.anchor): row.anchor for row in rows}.values())
        self._own: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            anchor, *others = map(text_key, row.texts)
            self._own[anchor].update([anchor, *others])
            for positive in others[: len(row.positives)]:
                self._own[positive].add(anchor)

    def strangers(self, block: Sequence[Example]) -> Mask:
        """Which texts no example pairs with an anchor."""
        free_BN = np.ones((len(block), len(self.texts)), dtype=bool)
        for free_N, row in zip(free_BN, block, strict=True):
            free_N[[self.number[text] for text in self._own[text_key(row.anchor)] if text in self.number]] = False
        return free_BN


class _Space:
    """Texts and anchors as one encoder sees them."""

    def __init__(self, pool: _Pool, encode: Encode) -> None:
        different = {text_key(text): text for text in pool.texts + pool.anchors}
        vectors_TD = encode(list(different.values()))
        if len(vectors_TD) != len(different) or not np.isfinite(vectors_TD).all():
            raise BellmError("The vectors to mine with are not one a text, or not finite.")
        self._vectors_TD = normalize_rows(vectors_TD)
        self._number = {each: number for number, each in enumerate(different)}
        self._texts_ND = self._vectors_TD[: len(pool.texts)]

    def cosines(self, block: Sequence[Example]) -> Vectors:
        """Of every anchor with every text."""
        return self._vectors_TD[[self._number[text_key(row.anchor)] for row in block]] @ self._texts_ND.T


def _check(rows: Sequence[Example], num_negatives: int, range_min: int, margin: float, absolute_margin: float) -> None:
    if not rows or any(row.score is not None for row in rows):
        raise BellmError("Negatives are mined for examples with positives and without scores; give one or more.")
    if num_negatives < 1 or min(range_min, margin, absolute_margin) < 0:
        raise BellmError(f"count={num_negatives} must be 1 or more; rank_from and the margins must not be below 0.")


def _blocks(rows: Sequence[Example], num_texts: int) -> Iterator[Sequence[Example]]:
    step = max(1, _SCORES // num_texts)
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _nearest(scores_BN: Vectors, free_BN: Mask, num_negatives: int) -> list[list[int]]:
    """Numbers of each row's `count` highest scores among those that are free, from the highest down."""
    if not num_negatives:
        return [[]] * len(scores_BN)
    open_BN = np.where(free_BN, scores_BN, -np.inf)
    last = min(num_negatives, open_BN.shape[1])
    best_BK = np.argpartition(-open_BN, np.arange(last), axis=1)[:, :last]
    return [best_K[free_N[best_K]].tolist() for best_K, free_N in zip(best_BK, free_BN, strict=True)]


def _below(scores_BN: Vectors, own: Sequence[list[int]], margin: float, absolute_margin: float) -> Mask:
    """Which texts are so much less similar to the anchor than each of its positives that they cannot be meant."""
    least_B = np.array([scores_N[numbers].min() for scores_N, numbers in zip(scores_BN, own, strict=True)])
    limit_B = least_B - np.maximum(margin * np.abs(least_B), absolute_margin)
    return np.asarray(scores_BN < limit_B[:, None])
