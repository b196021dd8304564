"""Evaluate models on tasks: scores with intervals, averages, and paired differences to the first model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bellm.data import LabeledTexts, RetrievalData, STSPairs, read_own_data
from bellm.data.own_files import Columns
from bellm.data.task_names import GROUPS, resolve_tasks
from bellm.errors import BellmError, NoOpWarning, check_list, warn
from bellm.evaluate.bm25 import BM25, BM25_SETTINGS
from bellm.evaluate.classification_task import CLASSIFICATION_TASKS, ClassificationTask
from bellm.evaluate.evaluated_model import (
    EvaluatedModel,
    TextEncoder,
    as_embedder,
    name_of,
    warn_of_seen_texts,
    warn_without_graphs,
)
from bellm.evaluate.models import VectorFile
from bellm.evaluate.results import Report, Run, TaskResult
from bellm.evaluate.retrieval_task import RETRIEVAL_TASKS, RetrievalTask
from bellm.evaluate.sts_task import STS_TASKS, STSTask, measure_geometry
from bellm.evaluate.task import Task, embed_task, score_task
from bellm.metadata import package_versions
from bellm.report import statistics
from bellm.report.statistics import BootstrapEstimate, Difference, Score
from bellm.tensors.similarity import is_constant
from bellm.types import Embedder, InputType, Vectors

TASKS: tuple[Task[Any], ...] = (*STS_TASKS, *CLASSIFICATION_TASKS, *RETRIEVAL_TASKS)
"""The tasks that have a name."""

EvaluationProgress = Callable[[str, str, int, int], None]
"""Told the model, the task, and how many of how many texts are embedded."""


def evaluate(
    models: Sequence[EvaluatedModel | TextEncoder],
    tasks: Sequence[str | Path | Task[Any]],
    *,
    data: str | Path | None = None,
    clean: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    progress: EvaluationProgress = lambda *_: None,
) -> Report:
    """Score every model on every task; the first model is the baseline of the others.

    Retrieval tasks have a row of BM25 besides, with which every model is compared on the same queries.

    Args:
        models: Encoders, what `load_model` opens, or anything with `encode(texts)`.
        tasks: Names of tasks and groups, files and folders that `bellm.data.own_files` describes, or tasks of your own.
        data: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        clean: Clean the texts of pairs as the papers do.
        resamples: Bootstrap replicates of each score.
        seed: Of the bootstrap; folds are SentEval's.
        progress: Told how many texts are embedded.

    Raises:
        BellmError: A task is unknown, a data set is not there, or texts cannot be embedded.
    """
    check_list("models", models)
    check_list("tasks", tasks)
    if resamples < 1:
        raise BellmError(f"resamples={resamples} is too small: give at least 1.")
    loaded = load_tasks(tasks, Path(data) if data else None, clean=clean)
    averages = _complete_averages(loaded)
    evaluation = {"seed": seed, "resamples": resamples, "cleaned": clean, "versions": package_versions()}
    runs: list[Run] = []
    all_results: list[dict[str, TaskResult]] = []
    all_estimates: list[dict[str, BootstrapEstimate]] = []
    baseline: dict[str, BootstrapEstimate] = {}
    evaluated = [EvaluatedModel.of(model) for model in models]
    for model in evaluated:
        _check_model(model, loaded)
    warn_without_graphs(
        evaluated, {text for task in loaded for those in task.texts(task.data).values() for text in those}
    )
    for task in loaded:
        warn_of_seen_texts(evaluated, task.name, {text for those in task.texts(task.data).values() for text in those})
    for model in evaluated:
        results, geometry = _score_tasks(model, loaded, progress)
        estimates = {
            name: statistics.bootstrap_estimate(result.item_scores_N, result.gold_N, resamples=resamples, seed=seed)
            for name, result in results.items()
        }
        scores = {name: result.to_score(estimates[name]) for name, result in results.items()}
        means = {name: statistics.average_estimates([estimates[task] for task in averages[name]]) for name in averages}
        runs.append(
            Run(
                model=model.name,
                metadata={**model.metadata, "evaluation": evaluation},
                scores=scores,
                averages={
                    name: Score("mean", mean.value, mean.low, mean.high, sum(scores[task].n for task in averages[name]))
                    for name, mean in means.items()
                },
                # Tasks are corrected together, averages together: an average is no further question about a task.
                differences={**_differences(estimates, baseline), **_differences(means, baseline)} if baseline else {},
                geometry=geometry,
            )
        )
        all_results.append(results)
        all_estimates.append(estimates)
        baseline = baseline or {**estimates, **means}
    words = {task.name: task.score_words() for task in loaded if isinstance(task, RetrievalTask)}
    if words:
        found = {
            name: statistics.bootstrap_estimate(result.item_scores_N, resamples=resamples, seed=seed)
            for name, result in words.items()
        }
        runs = [
            replace(run, bm25_differences=_differences({name: estimates[name] for name in found}, found))
            for run, estimates in zip(runs, all_estimates, strict=True)
        ]
        scores = {name: result.to_score(found[name]) for name, result in words.items()}
        metadata = {**BM25_SETTINGS, "evaluation": evaluation}
        runs.append(Run(BM25, metadata, scores, differences=_differences(found, baseline)))
        all_results.append(words)
    return Report(tuple(runs), tuple(all_results))


def load_tasks(
    tasks: Sequence[str | Path | Task[Any]],
    folder: Path | None = None,
    columns: Columns | str | None = None,
    *,
    clean: bool = False,
) -> list[Task[Any]]:
    """Read the data of tasks, before anything is embedded: what is missing, or cannot be scored, shows now.

    Args:
        tasks: As `evaluate` takes them.
        folder: Folder of data sets; None for `BELLM_DATA`, else the Hub.
        columns: The columns of files by their parts; None recognizes them by name.
        clean: Clean the texts of pairs as the papers do.
    """
    named = {task.name: task for task in TASKS}
    names = resolve_tasks([str(task) for task in tasks if not isinstance(task, Task)])
    wanted = [named.get(name) or _own_task(name, read_own_data(name, columns, clean=clean)) for name in names]
    wanted += [task for task in tasks if isinstance(task, Task)]
    if not wanted:
        raise BellmError(f"No task is named. Tasks: {', '.join(GROUPS)}, {', '.join(named)}; or a file of your own.")
    return [
        replace(task, data=task.load(folder, clean=clean)) if task.data is None else task
        for task in {task.name: task for task in wanted}.values()
    ]


def _own_task(name: str, data: STSPairs | LabeledTexts | RetrievalData) -> Task[Any]:
    kinds: dict[type, type[Task[Any]]] = {STSPairs: STSTask, LabeledTexts: ClassificationTask}
    return kinds.get(type(data), RetrievalTask)(name, data=data)


def _check_model(model: EvaluatedModel, tasks: Sequence[Task[Any]]) -> None:
    """Let a model fail before others are scored: all texts are looked up in a file, one of each kind is embedded."""
    by_type: dict[InputType, list[str]] = {}
    for task in tasks:
        for input_type, texts in task.texts(task.data).items():
            by_type.setdefault(input_type, []).extend(texts)
    for input_type, texts in by_type.items():
        model.encode(texts if isinstance(model.embedder, VectorFile) else texts[:1], input_type)


def _complete_averages(tasks: Sequence[Task[Any]]) -> dict[str, tuple[str, ...]]:
    """The averages of which no task is missing, and the names of their tasks."""
    known = {task.name: task.average for task in (*TASKS, *tasks)}
    groups = {
        average: tuple(name for name in known if known[name] == average)
        for average in dict.fromkeys(task.average for task in tasks)
        if average
    }
    return {average: names for average, names in groups.items() if {*names} <= {task.name for task in tasks}}


def _score_tasks(
    model: EvaluatedModel, tasks: Sequence[Task[Any]], progress: EvaluationProgress
) -> tuple[dict[str, TaskResult], dict[str, float]]:
    """The results of all tasks, and the geometry of the vectors of rated pairs."""
    if model.cache:
        _embed_ahead(model, tasks, progress)
    results: dict[str, TaskResult] = {}
    rated: list[tuple[Any, Vectors]] = []
    constant: list[str] = []
    zero: list[str] = []
    for task in tasks:
        progress(model.name, task.name, 0, 0)
        vectors = embed_task(model, task)
        constant += [task.name] * any(map(is_constant, vectors.values()))
        zero += [task.name] * any(not those.any(axis=1).all() for those in vectors.values())
        results[task.name] = score_task(model, task, vectors)
        if isinstance(task, STSTask):
            rated.append((task.data, vectors["text"]))
    same = "every text of {} the same vector, so that the scores mean nothing. Pool another token or a later layer."
    for tasks_hit, what in ((constant, same), (zero, "some texts of {} vectors of zeros, whose cosines count as 0.")):
        if tasks_hit:
            message = f"{model.name} gives {what.format(', '.join(tasks_hit))}"
            warn(message, NoOpWarning)
    return results, measure_geometry(rated)


def _embed_ahead(model: EvaluatedModel, tasks: Sequence[Task[Any]], progress: EvaluationProgress) -> None:
    """Embed the texts of all tasks of a kind at once into the cache: sets share texts, and texts their prefixes."""
    groups: dict[tuple[str, InputType], list[str]] = {}
    for task in tasks:
        for input_type, texts in task.texts(task.data).items():
            groups.setdefault((task.kind, input_type), []).extend(texts)
    for (kind, input_type), texts in groups.items():
        total, embedded = len(set(texts)), 0

        def done(count: int, kind: str = kind, total: int = total) -> None:
            nonlocal embedded
            embedded += count
            progress(model.name, kind, embedded, total)

        model.vectors(texts, input_type, done)


def _differences(
    estimates: Mapping[str, BootstrapEstimate], baseline: Mapping[str, BootstrapEstimate]
) -> dict[str, Difference]:
    differences = {name: statistics.paired_difference(one, baseline[name]) for name, one in estimates.items()}
    return statistics.holm_correction(differences)


@dataclass(frozen=True)
class DevEvaluator:
    """Scores an encoder in training on one task: what a recipe's `dev` takes."""

    task: str
    """A name, or a file of your own."""
    data: str | None = None
    """Folder of data sets; None for `BELLM_DATA`, else the Hub."""

    def __post_init__(self) -> None:
        """Refuse several tasks, a test set, which would test nothing any more, and data that is not there."""
        names = resolve_tasks([self.task])
        if len(names) > 1:
            raise BellmError(f"{self.task} stands for several tasks. Name one, such as STSBenchmark-dev.")
        if any(task.is_test_set for task in TASKS if task.name == names[0]):
            raise BellmError(
                f"{names[0]} is a test set, and cannot test weights that are chosen by it. Take STSBenchmark-dev, or a "
                "file of your own."
            )
        assert self._loaded

    def __call__(self, encoder: Embedder) -> Score:
        """The score in points, higher is better, with its interval."""
        result = score_task(EvaluatedModel(name_of(encoder), as_embedder(encoder)), self._loaded)
        return result.to_score(statistics.bootstrap_estimate(result.item_scores_N, result.gold_N))

    @cached_property
    def _loaded(self) -> Task[Any]:
        [task] = load_tasks([self.task], Path(self.data) if self.data else None)
        return task
