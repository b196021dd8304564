"""Compare the word vectors of models: similarity sets, related words, analogies, with intervals and paired tests."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bellm.analyse.word_tasks import METHODS, AnalogyTask, WordPairs, WordPairsTask
from bellm.data import STSPairs, WordRelation, read_rated_words, read_relations
from bellm.errors import BellmError, BellmWarning, check_list, warn
from bellm.evaluate import EvaluatedModel, Report, STSTask, Task, evaluate, score_table, write_report_page
from bellm.evaluate.evaluated_model import TextEncoder
from bellm.evaluate.models import VectorFile
from bellm.io.atomic import make_folder, write_bytes, write_json
from bellm.report.report_files import check_results_folder

_RESULTS, _PAGE, _TABLE = "results.json", "words.html", "words.md"
_KINDS = {"morphological pairs": "morphology", "related words": "semantics"}
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
    """A task for each set that has enough pairs: rated words, related against random ones, analogies by category."""
    tasks: list[Task[Any]] = [STSTask(one.name, data=one) for one in rated if len(one.left) >= _FEWEST]
    relations = [relation for relation in relations if len(relation.questions_Q2)]
    groups = {
        category: tuple(one for one in relations if one.category == category)
        for category in dict.fromkeys(relation.category for relation in relations)
    }
    draw = np.random.default_rng(seed)
    for name, kind in _KINDS.items():
        chosen = [one for one in relations if one.category.startswith("BATS") and one.category.endswith(kind)]
        pairs = tuple((word, answers[0]) for relation in chosen for word, answers in relation.pairs)
        if len(pairs) >= _FEWEST:
            order = draw.permutation(len(pairs))
            random = tuple((pairs[i][0], pairs[j][1]) for i, j in enumerate(order.tolist()) if i != j)
            tasks.append(WordPairsTask(name, data=WordPairs(pairs, random)))
    tasks += [
        AnalogyTask(f"{category}, {method}", data=those, method=method)
        for category, those in groups.items()
        if len({(one.name, j) for one in those for j in one.questions_Q2[:, 1].tolist()}) >= _FEWEST
        for method in METHODS
    ]
    if not tasks:
        raise BellmError("No set has enough words that every file of vectors has. Try lowercase (--lowercase).")
    return tasks


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


def check_words_folder(folder: str | Path, models: Sequence[str], *, force: bool = False) -> None:
    """Make sure that a folder can take the word scores of these models.

    Raises:
        SourceError: It is a file, cannot be made, or holds other results and `force` is not given.
    """
    refusal = "holds results of {}. Choose another folder, or replace with --force."
    check_results_folder(Path(folder) / _RESULTS, models, refusal, holds="words", force=force)


def write_words(report: Report, folder: str | Path, *, force: bool = False, **more: Any) -> dict[str, Any]:
    """Write `results.json`, `words.html` and `words.md`; returns what the JSON file holds.

    The scores of each model are its `words`, by set. `more` are further keys; errors are those of `check_words_folder`.
    """
    folder = Path(folder)
    check_words_folder(folder, [run.model for run in report.runs], force=force)
    make_folder(folder)
    found = report.to_json()
    compared = [_renamed(run) for run in found.pop("compared")]
    results = {**_renamed(found), "compared": compared, **more}
    write_bytes(folder / _TABLE, score_table(report, metrics=True).to_markdown().encode("utf-8", "replace"))
    write_json(folder / _RESULTS, results)
    write_report_page(report, folder / _PAGE)
    return results


def _renamed(run: dict[str, Any]) -> dict[str, Any]:
    return {"words" if name == "scores" else name: value for name, value in run.items()}
