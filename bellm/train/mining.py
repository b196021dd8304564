"""Hard-negative mining: texts near to an anchor that are not among its positives, guarded against false negatives.

Shapes: B anchors of a block, N candidate texts, K of them taken, D width.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bellm.errors import BellmError
from bellm.io import atomic
from bellm.run_dir import CHECKPOINT, MINED, MODEL, refuse_other_config
from bellm.tensors.similarity import normalize_rows
from bellm.train.batches import describe_sources
from bellm.train.dataset import Dataset
from bellm.train.examples import Example, text_key
from bellm.train.recipe import Recipe
from bellm.train.trainable import load_untrained
from bellm.types import Vectors

Encode = Callable[[Sequence[str]], Vectors]
"""Embeds texts: float32 of shape (texts, D)."""

Mask = NDArray[np.bool_]

_SCORES = 2**25  # Cosines held at once.


@dataclass(frozen=True)
class MiningResult:
    """Examples with mined negatives, and counts."""

    examples: list[Example]
    """All examples in their order, with new negatives after those that they had."""
    num_found: int
    num_guarded: int
    """Texts that were near enough to be taken, and left out as likely false negatives."""
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
    encode_anchors: Encode | None = None,
    guide: Encode | None = None,
    passages: Iterable[str] = (),
) -> MiningResult:
    """Give each example the texts nearest to its anchor that no example pairs with it, by exhaustive cosine search.

    The candidates are the positives of all examples, and `passages`. As a guard against false negatives, with s the
    cosine of the anchor and the least similar of its positives, a negative's cosine is below s - margin |s| and below
    s - absolute_margin. The margin of 0.05 is TopK-PercPos of NV-Retriever (arXiv 2407.15831).

    >>> angle = {"north": 0.0, "up": 0.1, "upward": 0.2, "east": 1.5, "right": 1.4}
    >>> rows = [Example("north", ("up",)), Example("east", ("right",)), Example("north", ("upward",))]
    >>> embed = lambda texts: np.float32([[np.cos(angle[text]), np.sin(angle[text])] for text in texts])
    >>> mined = mine_hard_negatives(rows, embed)
    >>> [row.negatives for row in mined.examples]
    [('right',), ('upward',), ('right',)]

    Args:
        examples: Without ratings.
        encode: Embeds the candidates.
        num_negatives: Most negatives of an example, nearest first.
        range_min: How many of the nearest are skipped, whatever the guard says.
        margin: How far below its positive a negative must be, as a share of the positive's cosine.
        absolute_margin: How far below in cosine.
        encode_anchors: Embeds the anchors, for models with a prompt for queries; None for `encode`.
        guide: An encoder by whose cosines the guard must hold as well (GISTEmbed, arXiv 2402.16829).
        passages: More candidates.

    Raises:
        BellmError: There are no examples, some have ratings, a number is out of range, or vectors are not finite.
    """
    rows = list(examples)
    if not rows or any(row.score is not None for row in rows):
        raise BellmError("Negatives are mined for examples with positives and without scores; give one or more.")
    if num_negatives < 1 or min(range_min, margin, absolute_margin) < 0:
        raise BellmError(
            f"num_negatives={num_negatives} must be 1 or more; range_min and the margins must not be below 0."
        )
    pool = _Pool(rows, passages)
    spaces = [_Space(pool, encode, encode_anchors)] + ([_Space(pool, guide)] if guide else [])
    mined: list[list[int]] = []
    num_guarded = 0
    size = max(1, _SCORES // len(pool.texts))
    for block in (rows[start : start + size] for start in range(0, len(rows), size)):
        cosines = [space.cosines(block) for space in spaces]
        free_BN = pool.unpaired(block)
        for free_N, skipped_K in zip(free_BN, _nearest(cosines[0], free_BN, range_min), strict=True):
            free_N[skipped_K] = False
        own = [[pool.index[text_key(text)] for text in row.positives] for row in block]
        below_BN = np.logical_and.reduce([_below(space_BN, own, margin, absolute_margin) for space_BN in cosines])
        wanted = _nearest(cosines[0], free_BN, num_negatives)
        num_guarded += sum(int((~below_N[near_K]).sum()) for below_N, near_K in zip(below_BN, wanted, strict=True))
        mined += _nearest(cosines[0], free_BN & below_BN, num_negatives)
    with_negatives = [
        replace(row, negatives=row.negatives + tuple(pool.texts[index] for index in indices))
        for row, indices in zip(rows, mined, strict=True)
    ]
    counts = [len(indices) for indices in mined]
    return MiningResult(with_negatives, sum(counts), num_guarded, sum(count < num_negatives for count in counts))


def write_mined_negatives(recipe: Recipe, sources: Sequence[tuple[Dataset, float]], run_dir: Path) -> str:
    """Mine `recipe.mine` hard negatives per anchor with the untrained encoder, and keep them in the run directory.

    Each source is mined among its own positives; rated sources are left as they are. Returns what was done in a
    sentence, or an empty one: where the folder, which is locked, holds the negatives of this config, nothing is done.
    """
    path = run_dir / MINED
    described = recipe.described()
    config = {name: described[name] for name in ("model", "encoder_options", "mine")}
    config = json.loads(json.dumps({**config, "data": describe_sources(sources)}))
    known = _read_lines(path)[0] if path.exists() else {}
    if known == config:
        return ""
    if (run_dir / CHECKPOINT).exists() or (run_dir / MODEL).exists():
        refuse_other_config(run_dir, "run", known, config)
    encoder = load_untrained(recipe)
    lines: list[Any] = [config]
    counts = np.zeros(4, dtype=int)
    for dataset in [dataset for dataset, _ in sources if not dataset.rated] or [sources[0][0]]:
        rows = list(dataset)
        exchangeable = all(row.symmetric for row in rows)
        result = mine_hard_negatives(
            rows,
            encoder.encode if exchangeable else encoder.encode_document,
            num_negatives=recipe.mine or 0,
            encode_anchors=None if exchangeable else encoder.encode_query,
        )
        lines += [mined.negatives[len(row.negatives) :] for row, mined in zip(rows, result.examples, strict=True)]
        counts += [result.num_found, len(rows), result.num_guarded, result.num_short]
    atomic.write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return (
        "mined {} hard negatives for {} rows with the untrained encoder; {} near texts left out as likely answers, "
        "{} rows got fewer than asked for.".format(*counts)
    )


def read_mined_negatives(sources: Sequence[tuple[Dataset, float]], run_dir: Path) -> list[tuple[Dataset, float]]:
    """The sources with the negatives that `write_mined_negatives` kept."""
    lines = iter(_read_lines(run_dir / MINED)[1:])
    mined = []
    for dataset, weight in sources:
        source = dataset
        if not dataset.rated:
            rows = (replace(row, negatives=(*row.negatives, *next(lines))) for row in dataset)
            source = Dataset(dataset.name, rows)
            source.rejections, source.num_rejected = dataset.rejections, dataset.num_rejected
        mined.append((source, weight))
    return mined


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class _Pool:
    """The candidate texts, each once, and which of them are paired with an anchor."""

    def __init__(self, rows: Sequence[Example], passages: Iterable[str]) -> None:
        positives = [text for row in rows for text in row.positives]
        texts = {text_key(text): text for text in (*positives, *passages)}
        self.texts = list(texts.values())
        self.index = {key: index for index, key in enumerate(texts)}
        self.anchors = list({text_key(row.anchor): row.anchor for row in rows}.values())
        self._paired: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            anchor, *others = map(text_key, row.texts)
            self._paired[anchor].update([anchor, *others])
            for positive in others[: len(row.positives)]:
                self._paired[positive].add(anchor)

    def unpaired(self, block: Sequence[Example]) -> Mask:
        """True where no example pairs a text with an anchor, (B, N)."""
        free_BN = np.ones((len(block), len(self.texts)), dtype=bool)
        for free_N, row in zip(free_BN, block, strict=True):
            free_N[[self.index[key] for key in self._paired[text_key(row.anchor)] if key in self.index]] = False
        return free_BN


class _Space:
    """Unit vectors of candidates and anchors by one encoder."""

    def __init__(self, pool: _Pool, encode: Encode, encode_anchors: Encode | None = None) -> None:
        # With one function for both, a text that is both is embedded once.
        shared = [] if encode_anchors else pool.anchors
        texts = {text_key(text): text for text in pool.texts + shared}
        vectors_TD, keys = _unit_vectors(encode, list(texts.values())), list(texts)
        self._texts_ND = vectors_TD[: len(pool.texts)]
        if encode_anchors:
            vectors_TD, keys = _unit_vectors(encode_anchors, pool.anchors), list(map(text_key, pool.anchors))
        self._anchors_TD = vectors_TD
        self._index = {key: index for index, key in enumerate(keys)}

    def cosines(self, block: Sequence[Example]) -> Vectors:
        """Of every anchor with every candidate, (B, N)."""
        return self._anchors_TD[[self._index[text_key(row.anchor)] for row in block]] @ self._texts_ND.T


def _unit_vectors(encode: Encode, texts: list[str]) -> Vectors:
    vectors_TD = encode(texts)
    if len(vectors_TD) != len(texts) or not np.isfinite(vectors_TD).all():
        raise BellmError("The vectors to mine with are not one a text, or not finite.")
    return normalize_rows(vectors_TD)


def _nearest(scores_BN: Vectors, free_BN: Mask, num_negatives: int) -> list[list[int]]:
    """Indices of each row's highest scores among those that are free, from the highest down."""
    if not num_negatives:
        return [[]] * len(scores_BN)
    open_BN = np.where(free_BN, scores_BN, -np.inf)
    last = min(num_negatives, open_BN.shape[1])
    best_BK = np.argpartition(-open_BN, np.arange(last), axis=1)[:, :last]
    return [best_K[free_N[best_K]].tolist() for best_K, free_N in zip(best_BK, free_BN, strict=True)]


def _below(scores_BN: Vectors, own: Sequence[list[int]], margin: float, absolute_margin: float) -> Mask:
    """True where a text is less similar to the anchor than each of its positives by the margins."""
    least_B = np.array([scores_N[indices].min() for scores_N, indices in zip(scores_BN, own, strict=True)])
    limit_B = least_B - np.maximum(margin * np.abs(least_B), absolute_margin)
    return np.asarray(scores_BN < limit_B[:, None])
