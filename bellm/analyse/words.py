"""Compare the word vectors of models: similarity sets, related words, analogies, with intervals and paired tests."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bellm.analyse.word_tasks import METHODS, AnalogyTask, WordPairs, WordPairsTask
from bellm.data import STSPairs, WordRelation, read_rated_words, read_relations
from bellm.errors import BellmError, BellmWarning, check_list, warn
from bellm.evaluate import EvaluatedModel, Report, STSTask, Task, evaluate
from bellm.evaluate.evaluated_model import TextEncoder
from bellm.evaluate.models import VectorFile

_BATS_PAIRS = {"morphology": "morphological pairs", "semantics": "related words"}
_FEWEST = 3  # Items of a task.


def compare_words(
    models: Sequence[EvaluatedModel | TextEncoder],
    *,
    data: str | Path | None = None,
    lowercase: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[str, str, int, int], None] = lambda *_: None,
) -> Report:
    """Score word vectors on every set in a folder; the first model is the baseline of the others.

    A word is embedded as a text of its own, with the model's prompt and pooling. All models are scored on the words
    that every file of vectors among them has.

    Args:
        models: Encoders, what `load_model` opens, `vectors:glove.txt` among it, or anything with `encode(texts)`.
        data: Folder that `bellm.data.word_sets` describes; None for `BELLM_DATA`.
        lowercase: Put all words in lower case, as many files of word vectors have them.
        resamples: Bootstrap replicates of each score.
        seed: Of the bootstrap and of random pairs.
        progress: Told the model, what is embedded, how much of it, and how much there is.

    Raises:
        BellmError: The folder has no sets, or too few of their words have vectors.

    Warns:
        BellmWarning: Some words have no vector in a file, and are left out.
    """
    check_list("models", models)
    evaluated = [EvaluatedModel.of(model) for model in models]
    folder = Path(data) if data else None
    rated, relations = read_rated_words(folder, lowercase=lowercase), read_relations(folder, lowercase=lowercase)
    known = _known_words(evaluated, rated, relations)
    if known is not None:
        rated, relations = [_known_pairs(one, known) for one in rated], [one.known(known) for one in relations]
    tasks = make_word_tasks(rated, relations, seed)
    return evaluate(evaluated, tasks, resamples=resamples, seed=seed, progress=progress)


def make_word_tasks(rated: Sequence[STSPairs], relations: Sequence[WordRelation], seed: int = 0) -> list[Task[Any]]:
    """A task for each set of three pairs or more: rated words, related against random ones, analogies by category."""
    tasks: list[Task[Any]] = [STSTask(one.name, data=one) for one in rated if len(one.left) >= _FEWEST]
    draw = np.random.default_rng(seed)
    for name in dict.fromkeys(filter(None, map(_pair_set, relations))):
        chosen = [relation for relation in relations if _pair_set(relation) == name]
        pairs = tuple((word, answers[0]) for relation in chosen for word, answers in relation.pairs)
        if len(pairs) >= _FEWEST:
            order = draw.permutation(len(pairs))  # In a circle, so that no pair meets itself.
            random = tuple((pairs[i][0], pairs[j][1]) for i, j in zip(order, np.roll(order, 1), strict=True))
            tasks.append(WordPairsTask(name, data=WordPairs(pairs, random)))
    asking = [relation for relation in relations if len(relation.questions_Q2)]
    groups = {
        category: tuple(relation for relation in asking if relation.category == category)
        for category in dict.fromkeys(relation.category for relation in asking)
    }
    tasks += [
        AnalogyTask(f"{category}, {method}", data=those, method=method)
        for category, those in groups.items()
        if len({(one.name, j) for one in those for j in one.questions_Q2[:, 1].tolist()}) >= _FEWEST
        for method in METHODS
    ]
    if not tasks:
        raise BellmError("No set has enough words that every file of vectors has. Try lowercase (--lowercase).")
    return tasks


def _pair_set(relation: WordRelation) -> str | None:
    """The task that compares a relation's pairs with random ones, if one does."""
    source, _, kind = relation.category.partition(" ")
    return relation.category if source == "WordNet" else _BATS_PAIRS.get(kind.split()[-1]) if source == "BATS" else None


def _known_words(
    models: Sequence[EvaluatedModel], rated: Sequence[STSPairs], relations: Sequence[WordRelation]
) -> Collection[str] | None:
    """The words of the sets that every file has vectors of; None where every model embeds any word."""
    files = [model for model in models if isinstance(model.embedder, VectorFile)]
    if not files:
        return None
    words = {word for one in rated for word in (*one.left, *one.right)} | {w for one in relations for w in one.words}
    known = set(words)
    for model in files:
        assert isinstance(model.embedder, VectorFile)
        here = words & set(model.embedder.texts)
        if missing := len(words) - len(here):
            warn(f"{model.name} has no vector for {missing} of {len(words)} words, which are left out.", BellmWarning)
        known &= here
    return known


def _known_pairs(pairs: STSPairs, known: Collection[str]) -> STSPairs:
    kept = [at for at, both in enumerate(zip(pairs.left, pairs.right, strict=True)) if {*both} <= set(known)]
    left, right, parts = (tuple(side[at] for at in kept) for side in (pairs.left, pairs.right, pairs.parts))
    return replace(pairs, left=left, right=right, gold_N=pairs.gold_N[kept], parts=parts)
