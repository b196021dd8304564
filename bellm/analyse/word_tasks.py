"""Analogies, and cosines of related words against random ones, as tasks that `bellm.evaluate` scores.

Shapes: N pairs, V words of a set, D width, Q questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bellm.data import WordRelation
from bellm.errors import BellmError, check_choice
from bellm.evaluate import Task, TaskResult
from bellm.report.statistics import check_items
from bellm.tensors.similarity import normalize_rows, paired_cosine_similarity
from bellm.types import InputType, Vectors

METHODS = ("3CosAdd", "3CosMul", "PairDistance", "3CosAvg")
"""Levy and Goldberg (2014) for the first three, Drozd et al. (2016) for the average of all other pairs' differences."""

_EPSILON = 1e-3  # Of 3CosMul, as published.
_BINS = 100  # Of the overlap of two distributions of cosines.


@dataclass(frozen=True)
class AnalogyTask(Task[tuple[WordRelation, ...]]):
    """As the first word is to its answer, so is the second to what? All words of the relations are candidates.

    An item is a pair whose answer is asked for: the share of its questions that are answered. The three words of a
    question are no candidates; `extra_metrics` has the accuracy where they are.
    """

    kind = "words"

    method: str = METHODS[0]

    def __post_init__(self) -> None:
        """Refuse an unknown method, and relations without questions."""
        check_choice("method", self.method, METHODS)
        super().__post_init__()

    def check(self, data: tuple[WordRelation, ...]) -> None:
        """Refuse too few pairs."""
        check_items(sum(len({*relation.questions_Q2[:, 1].tolist()}) for relation in data), name=self.name)

    def load(self, folder: Path | None, *, clean: bool = False) -> tuple[WordRelation, ...]:
        """Nothing to read: relations come with the task."""
        raise BellmError(f"{self.name} has no relations. Give it some: AnalogyTask(name, data=relations).")

    def texts(self, data: tuple[WordRelation, ...]) -> Mapping[InputType, Sequence[str]]:
        """All words of the relations."""
        return {"text": list(dict.fromkeys(word for relation in data for word in relation.words))}

    def score(self, data: tuple[WordRelation, ...], vectors: Mapping[InputType, Vectors]) -> TaskResult:
        """Answer all questions."""
        unit_VD = normalize_rows(vectors["text"])
        number = {word: at for at, word in enumerate(self.texts(data)["text"])}
        excluded, included = (
            np.concatenate([_answer_relation(one, unit_VD, number, self.method, exclude) for one in data])
            for exclude in (True, False)
        )
        extra = {"inputs included": 100 * float(included.mean()), "chance": 100 / len(number)}
        return TaskResult(self.name, f"{self.method} accuracy", excluded, extra_metrics=extra)


def _answer_relation(
    relation: WordRelation, unit_VD: Vectors, number: Mapping[str, int], method: str, exclude: bool
) -> NDArray[np.float64]:
    """Share of right answers for each pair that is asked for."""
    first = np.array([number[word] for word, _ in relation.pairs])
    second = np.array([number[answers[0]] for _, answers in relation.pairs])
    right = [{number[answer] for answer in answers} for _, answers in relation.pairs]
    first_NV, second_NV = unit_VD[first] @ unit_VD.T, unit_VD[second] @ unit_VD.T
    shares = []
    for j in np.unique(relation.questions_Q2[:, 1]).tolist():
        sources = relation.questions_Q2[relation.questions_Q2[:, 1] == j, 0]
        scores_QV = _scores(method, first_NV[sources], second_NV[sources], first_NV[j], int(first[j]))
        if exclude:
            scores_QV[:, first[j]] = -np.inf
            if method != "3CosAvg":
                rows = np.arange(len(sources))
                scores_QV[rows, first[sources]] = -np.inf
                scores_QV[rows, second[sources]] = -np.inf
        shares.append(np.mean([answer in right[j] for answer in scores_QV.argmax(axis=1).tolist()]))
    return np.array(shares, dtype=np.float64)


def _scores(method: str, first_QV: Vectors, second_QV: Vectors, target_V: Vectors, target: int) -> Vectors:
    """How well every word answers each question about a target, from cosines: (Q, V), or (1, V) for the average."""
    if method == "3CosMul":
        return np.asarray((second_QV + 1) * (target_V + 1) / (first_QV + 1 + 2 * _EPSILON))
    offset_QV = second_QV - first_QV
    if method == "3CosAdd":
        return np.asarray(offset_QV + target_V)
    if method == "3CosAvg":
        return np.asarray(offset_QV.mean(axis=0, keepdims=True) + target_V)
    # Cosine of (word - target) with the offset, whose own length is the same for all words.
    along_QV, length_V = offset_QV - offset_QV[:, [target]], np.sqrt(np.maximum(2 - 2 * target_V, 0))
    return np.divide(along_QV, length_V, out=np.full_like(along_QV, -np.inf), where=length_V > _EPSILON)


@dataclass(frozen=True)
class WordPairs:
    """Pairs of words that have to do with each other, and random ones of the same words."""

    pairs: tuple[tuple[str, str], ...]
    random: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WordPairsResult(TaskResult):
    """An area under the ROC curve with the cosines behind it; `texts` are the related pairs."""

    related_N: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    random_N: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    random_texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class WordPairsTask(Task[WordPairs]):
    """Are cosines of related words higher than those of random ones?

    The score is the area under the ROC curve; an item is a related pair: the share of random cosines below its own.
    `extra_metrics` has the mean cosine of random pairs (anisotropy), that of related ones, Cohen's d, and the overlap
    of the two distributions.
    """

    kind = "words"

    def check(self, data: WordPairs) -> None:
        """Refuse too few pairs."""
        check_items(min(len(data.pairs), len(data.random)), name=self.name)

    def load(self, folder: Path | None, *, clean: bool = False) -> WordPairs:
        """Nothing to read: pairs come with the task."""
        raise BellmError(f"{self.name} has no pairs. Give it some: WordPairsTask(name, data=pairs).")

    def texts(self, data: WordPairs) -> Mapping[InputType, Sequence[str]]:
        """Both sides of the pairs, then both sides of the random ones."""
        sides = [[pair[side] for pair in those] for those in (data.pairs, data.random) for side in (0, 1)]
        return {"text": [word for side in sides for word in side]}

    def score(self, data: WordPairs, vectors: Mapping[InputType, Vectors]) -> WordPairsResult:
        """Compare the cosines."""
        count = len(data.pairs)
        related_2ND, random_2ND = np.split(vectors["text"], [2 * count])
        related_N, random_N = (
            paired_cosine_similarity(*np.split(those, 2)).astype(np.float64) for those in (related_2ND, random_2ND)
        )
        ranks = rankdata(np.concatenate([related_N, random_N]))[:count] - rankdata(related_N)
        spread = np.sqrt((related_N.var(ddof=1) + random_N.var(ddof=1)) / 2)
        extra: dict[str, Any] = {
            "random cosine": 100 * float(random_N.mean()),
            "related cosine": 100 * float(related_N.mean()),
            "Cohen's d": float((related_N.mean() - random_N.mean()) / spread) if spread else 0.0,
            "overlap": 100 * _overlap(related_N, random_N),
        }
        return WordPairsResult(
            self.name,
            "AUC",
            ranks / len(random_N),
            texts=data.pairs,
            extra_metrics=extra,
            related_N=related_N,
            random_N=random_N,
            random_texts=data.random,
        )


def _overlap(left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    """Common area of two histograms, 0 to 1."""
    edges = np.histogram_bin_edges(np.concatenate([left_N, right_N]), _BINS)
    shares = [np.histogram(side, edges)[0] / len(side) for side in (left_N, right_N)]
    return float(np.minimum(*shares).sum())
