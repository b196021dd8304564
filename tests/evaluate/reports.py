"""Reports of planted numbers, in the shape that an evaluation gives.

Shapes: N pairs of a task.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, spearmanr

from bellm.evaluate.results import Report, Run, TaskResult
from bellm.report.statistics import Difference, Score

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
TRANSFER = ("MR", "CR", "TREC")

_WHO = ("A gardener", "Two children", "The old ferryman", "A tired nurse", "Somebody in a red coat", "The brass band")
_DOES = ("waters", "is looking for", "paints", "has just sold", "carries home", "cannot find")
_WHAT = ("the tomatoes", "a small boat", "the last lantern", "an umbrella", "the neighbour's piano", "three lemons")


def report(
    opened: Sequence[int] = (0,), *, sts: Sequence[str] = STS, transfer: Sequence[str] = (), pairs: int = 240
) -> Report:
    """A report with a run for each number of open layers, which make some tasks better, some worse."""
    results = [
        {task: _similarity(task, number, count, pairs) for number, task in enumerate(sts)}
        | {task: _accuracy(task, number, count, pairs) for number, task in enumerate(transfer)}
        for count in opened
    ]
    scores = [{task: _score(result) for task, result in found.items()} for found in results]
    runs = [_run(count, found, scores[0], sts, transfer) for count, found in zip(opened, scores, strict=True)]
    return Report(tuple(runs), tuple(results))


def _similarity(task: str, number: int, opened: int, pairs: int) -> TaskResult:
    random = np.random.default_rng(number)
    gold_N = random.integers(0, 26, pairs) / 5
    noise_N = random.normal(size=pairs)
    own_N = np.random.default_rng([number, opened]).normal(size=pairs)
    cosine_N = 0.25 + 0.12 * gold_N + (0.2 - 0.004 * opened * (2 - number % 4)) * noise_N + 0.04 * own_N
    texts = tuple((_sentence(random), _sentence(random)) for _ in range(pairs))
    return TaskResult(task, "Spearman of cosine", np.clip(cosine_N, -1, 1), gold_N, texts, num_texts=2 * pairs)


def _accuracy(task: str, number: int, opened: int, pairs: int) -> TaskResult:
    hits_N = np.random.default_rng([number, opened]).random(pairs) < 0.7 + 0.01 * opened * (1 - number)
    return TaskResult(task, "accuracy", hits_N.astype(np.float64), num_texts=pairs, num_truncated=number)


def _sentence(random: np.random.Generator) -> str:
    return " ".join(str(random.choice(part)) for part in (_WHO, _DOES, _WHAT)) + "."


def _score(result: TaskResult) -> Score:
    item_scores_N, n = result.item_scores_N, len(result.item_scores_N)
    value = 100 * (item_scores_N.mean() if result.gold_N is None else spearmanr(item_scores_N, result.gold_N).statistic)
    half = 196 * (1 - (value / 100) ** 2) / n**0.5
    return Score(result.metric, float(value), float(value - half), float(value + half), n, result.num_truncated)


def _run(
    opened: int, scores: dict[str, Score], baseline: dict[str, Score], sts: Sequence[str], transfer: Sequence[str]
) -> Run:
    groups = {name: tasks for name, tasks in (("STS average", sts), ("transfer average", transfer)) if tasks}
    averages = {name: _average([scores[task] for task in tasks]) for name, tasks in groups.items()}
    first = {name: _average([baseline[task] for task in tasks]) for name, tasks in groups.items()}
    pairs = [*((name, averages[name], first[name]) for name in groups)]
    pairs += [(task, scores[task], baseline[task]) for task in scores]
    differences = {name: _difference(score, other) for name, score, other in pairs} if scores is not baseline else {}
    return Run(f"models/smollm2?bidirectional=last:{opened}", _metadata(opened), scores, averages, differences)


def _average(scores: list[Score]) -> Score:
    value = sum(score.value for score in scores) / len(scores)
    half = sum((score.high - score.value) ** 2 for score in scores) ** 0.5 / len(scores)
    return Score(f"mean of {len(scores)} tasks", value, value - half, value + half, len(scores))


def _difference(score: Score, other: Score) -> Difference:
    value, half = score.value - other.value, 0.6 * (score.high - score.value)
    p_value = 2 * norm.sf(abs(value) / (half / 1.96))
    return Difference(value, value - half, value + half, min(1.0, 7 * float(p_value)))


def _metadata(opened: int) -> dict[str, object]:
    return {
        "bidirectional": "none" if not opened else f"{30 - opened}-29",
        "open_layers": list(range(30 - opened, 30)),
        "num_layers": 30,
        "prompt": "prompteol",
        "template": 'This sentence : "{text}" means in one word:"',
        "pooling": "last",
        "window": None,
        "dtype": "float32",
        "device": "cpu",
        "fingerprint": f"{opened:02d}c1f0a97e44b2d8",
        "evaluation": {
            "seed": 0,
            "resamples": 1000,
            "versions": {"bellm": "0.4.0", "torch": "2.9.0", "transformers": "5.12.0"},
        },
    }
