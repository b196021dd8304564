"""Tasks by name, and their run over several encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bellm.errors import BellmError
from bellm.evaluate import statistics
from bellm.evaluate.results import Difference, Outcome, Report, Run, Score
from bellm.evaluate.retrieval import score_collection
from bellm.evaluate.sets import pairs, search, sentences
from bellm.evaluate.sets.pairs import Pairs
from bellm.evaluate.sets.search import Collection
from bellm.evaluate.sets.sentences import Sentences
from bellm.evaluate.similarity import score_pairs
from bellm.evaluate.statistics import Estimate
from bellm.evaluate.subject import Subject
from bellm.evaluate.transfer import score_sentences
from bellm.metadata import package_versions

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
TRANSFER = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
SEARCH = ("SciFact",)
MORE_PAIRS = ("SICK-R-full", "STSBenchmark-dev")

GROUPS: dict[str, tuple[str, ...]] = {"sts": STS, "transfer": TRANSFER, "scifact": SEARCH}
"""Names that stand for several tasks."""

AVERAGES = {"STS average": STS, "transfer average": TRANSFER}

Set = Pairs | Sentences | Collection
"""What a task is about."""

Progress = Callable[[str, str, int, int], None]
"""Told the encoder, the task, and how many of how many texts have vectors."""


def tasks_of(names: Sequence[str]) -> tuple[str, ...]:
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
    subjects: Sequence[Subject],
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
        subjects: What is evaluated.
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
    paired = [text for one in sets.values() if isinstance(one, Pairs) for text in (*one.left, *one.right)]
    outcomes: list[dict[str, Outcome]] = []
    for subject in subjects:
        if paired and subject.cache:  # All at once: sets share texts, and texts their beginnings.
            _embed(subject, paired, progress)
        outcomes.append({name: _score(subject, one, progress) for name, one in sets.items()})
    settings = {"seed": seed, "resamples": resamples, "cleaned": clean, "versions": package_versions()}
    runs = [_run(subject, found, resamples, seed, settings) for subject, found in zip(subjects, outcomes, strict=True)]
    first = runs[0][1]
    compared = [replace(run, differences=_differences(known, first)) for run, known in runs[1:]]
    return Report((runs[0][0], *compared), tuple(outcomes))


def _read(tasks: Sequence[str | Set], data: Path | None, clean: bool) -> dict[str, Set]:
    """All sets, before anything is embedded: what is missing shows now."""
    own = [task for task in tasks if not isinstance(task, str)]
    found: list[Set] = []
    for name in tasks_of([task for task in tasks if isinstance(task, str)]):
        if name in TRANSFER:
            found.append(sentences.read(name, data))
        elif name in SEARCH:
            found.append(search.read(name, data))
        else:
            found.append(pairs.read(name, data, clean=clean))
    return {one.name: one for one in [*found, *own]}


def _embed(subject: Subject, texts: Sequence[str], progress: Progress) -> None:
    total, so_far = len(set(texts)), 0

    def done(count: int) -> None:
        nonlocal so_far
        so_far += count
        progress(subject.name, "STS", so_far, total)

    subject.vectors(texts, done=done)


def _score(subject: Subject, task: Set, progress: Progress) -> Outcome:
    progress(subject.name, task.name, 0, 0)
    if isinstance(task, Pairs):
        return score_pairs(subject, task)
    if isinstance(task, Sentences):
        return score_sentences(subject, task)
    return score_collection(subject, task)


def _run(
    subject: Subject, outcomes: Mapping[str, Outcome], resamples: int, seed: int, settings: Mapping[str, object]
) -> tuple[Run, dict[str, Estimate]]:
    known = {
        task: statistics.estimate(outcome.items_N, outcome.gold_N, resamples=resamples, seed=seed)
        for task, outcome in outcomes.items()
    }
    scores = {task: statistics.score_of(outcome, known[task]) for task, outcome in outcomes.items()}
    averages: dict[str, Score] = {}
    for name, tasks in AVERAGES.items():
        if set(tasks) <= set(known):
            known[name] = statistics.average([known[task] for task in tasks])
            averages[name] = Score(
                "mean", known[name].value, known[name].low, known[name].high, sum(scores[task].n for task in tasks)
            )
    return Run(subject.name, {**subject.facts, "evaluation": dict(settings)}, scores, averages), known


def _differences(known: Mapping[str, Estimate], first: Mapping[str, Estimate]) -> dict[str, Difference]:
    """Tasks are corrected together, averages together: an average is no further question about a task."""
    found = {name: statistics.difference(known[name], first[name]) for name in known}
    tasks = {name: one for name, one in found.items() if name not in AVERAGES}
    averages = {name: one for name, one in found.items() if name in AVERAGES}
    return {**statistics.corrected(tasks), **statistics.corrected(averages)}
