"""Tasks by name, and their run over several encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bellm.data import classification, retrieval, sts
from bellm.data.classification import LabeledTexts
from bellm.data.retrieval import RetrievalData
from bellm.data.sts import STSPairs
from bellm.errors import BellmError
from bellm.evaluate.classification_task import score_classification
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import Difference, Report, Run, Score, TaskResult
from bellm.evaluate.retrieval_task import score_retrieval
from bellm.evaluate.sts_task import score_sts
from bellm.metadata import package_versions
from bellm.report import statistics
from bellm.report.statistics import BootstrapEstimate

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
TRANSFER = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
SEARCH = ("SciFact",)
MORE_PAIRS = ("SICK-R-full", "STSBenchmark-dev")

GROUPS: dict[str, tuple[str, ...]] = {"sts": STS, "transfer": TRANSFER, "scifact": SEARCH}
"""Names that stand for several tasks."""

AVERAGES = {"STS average": STS, "transfer average": TRANSFER}

Set = STSPairs | LabeledTexts | RetrievalData
"""What a task is about."""

Progress = Callable[[str, str, int, int], None]
"""Told the encoder, the task, and how many of how many texts have vectors."""


def resolve_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks and groups by name, each task once, in the order given.

    Raises:
        BellmError: A name is unknown.
    """
    known = {task.lower(): task for task in (*STS, *MORE_PAIRS, *TRANSFER, *SEARCH)}
    found: list[str] = []
    for name in names:
        if name.lower() not in {*GROUPS, *known}:
            raise BellmError(f"{name!r} is no task. Tasks: {', '.join([*GROUPS, *known.values()])}.")
        found += GROUPS.get(name.lower()) or (known[name.lower()],)
    return tuple(dict.fromkeys(found))


def evaluate(
    models: Sequence[EvaluatedModel],
    tasks: Sequence[str | Set],
    *,
    data: Path | None = None,
    clean: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Report:
    """Score every subject on every task; the first is the baseline of the others.

    Args:
        models: What is evaluated.
        tasks: Names of tasks and groups, or sets of your own.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        clean: Pairs are cleaned as the papers do.
        resamples: Bootstrap replicates of each score.
        seed: Of the bootstrap; folds are SentEval's.
        progress: Told how far the vectors are.

    Raises:
        BellmError: A task is unknown, a data set is not there, or vectors cannot be had.
    """
    sets = _read(tasks, data, clean)
    paired = [text for one in sets.values() if isinstance(one, STSPairs) for text in (*one.left, *one.right)]
    results: list[dict[str, TaskResult]] = []
    for model in models:
        if paired and model.cache:  # All at once: sets share texts, and texts their beginnings.
            _embed(model, paired, progress)
        results.append({name: _score(model, one, progress) for name, one in sets.items()})
    settings = {"seed": seed, "resamples": resamples, "cleaned": clean, "versions": package_versions()}
    runs = [_run(model, found, resamples, seed, settings) for model, found in zip(models, results, strict=True)]
    first = runs[0][1]
    compared = [replace(run, differences=_differences(known, first)) for run, known in runs[1:]]
    return Report((runs[0][0], *compared), tuple(results))


def _read(tasks: Sequence[str | Set], data: Path | None, clean: bool) -> dict[str, Set]:
    """All sets, before anything is embedded: what is missing shows now."""
    own = [task for task in tasks if not isinstance(task, str)]
    found: list[Set] = []
    for name in resolve_tasks([task for task in tasks if isinstance(task, str)]):
        if name in TRANSFER:
            found.append(classification.read_classification(name, data))
        elif name in SEARCH:
            found.append(retrieval.read_retrieval(name, data))
        else:
            found.append(sts.read_sts(name, data, clean=clean))
    return {one.name: one for one in [*found, *own]}


def _embed(model: EvaluatedModel, texts: Sequence[str], progress: Progress) -> None:
    total, so_far = len(set(texts)), 0

    def done(count: int) -> None:
        nonlocal so_far
        so_far += count
        progress(model.name, "STS", so_far, total)

    model.vectors(texts, done=done)


def _score(model: EvaluatedModel, task: Set, progress: Progress) -> TaskResult:
    progress(model.name, task.name, 0, 0)
    if isinstance(task, STSPairs):
        return score_sts(model, task)
    if isinstance(task, LabeledTexts):
        return score_classification(model, task)
    return score_retrieval(model, task)


def _run(
    model: EvaluatedModel, results: Mapping[str, TaskResult], resamples: int, seed: int, settings: Mapping[str, object]
) -> tuple[Run, dict[str, BootstrapEstimate]]:
    known = {
        task: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples, seed=seed)
        for task, result in results.items()
    }
    scores = {task: statistics.to_score(result, known[task]) for task, result in results.items()}
    averages: dict[str, Score] = {}
    for name, tasks in AVERAGES.items():
        if set(tasks) <= set(known):
            known[name] = statistics.average_estimates([known[task] for task in tasks])
            averages[name] = Score(
                "mean", known[name].value, known[name].low, known[name].high, sum(scores[task].n for task in tasks)
            )
    return Run(model.name, {**model.facts, "evaluation": dict(settings)}, scores, averages), known


def _differences(
    known: Mapping[str, BootstrapEstimate], first: Mapping[str, BootstrapEstimate]
) -> dict[str, Difference]:
    """Tasks are corrected together, averages together: an average is no further question about a task."""
    found = {name: statistics.paired_difference(known[name], first[name]) for name in known}
    tasks = {name: one for name, one in found.items() if name not in AVERAGES}
    averages = {name: one for name, one in found.items() if name in AVERAGES}
    return {**statistics.holm_correction(tasks), **statistics.holm_correction(averages)}
