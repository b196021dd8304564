"""Compare arms of a task: accuracy, calibration, whom they help and hurt, and why. No model is asked here.

Shapes: M test items, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bellm.augment.arm_names import GRAPH_ARMS, PLAIN, PROBE, ArmName
from bellm.augment.arms import ArmSources, ablated_prompts, arm_prompts, content_free_prompts
from bellm.augment.calibration import ConfidenceBin, Probabilities, expected_calibration_error, reliability
from bellm.augment.helpfulness import Features, Helpfulness, explain_gains, text_features
from bellm.augment.label_scorer import Scores, calibrate_batch, calibrate_contextual, label_probabilities
from bellm.augment.tasks import LabeledTask
from bellm.prompts import Rendered
from bellm.report import statistics
from bellm.report.statistics import BootstrapEstimate, Difference, Score

ScoreLabels = Callable[[str, Sequence[Rendered]], Scores]
"""Scores of the label words after prompts, (prompts, K); the text says which arm they are of."""

CalibrationName = Literal["none", "contextual", "batch"]
"""What is taken from scores of labels: nothing, what a prompt without content gives, or the mean over all items."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of words that are left in the ablation of the arm amr."""

_EXAMPLES = 5
_CONFIDENCE_BINS = 5


@dataclass(frozen=True)
class Arm:
    """What one arm answers."""

    name: str
    probabilities_MK: Probabilities
    score: Score
    f1: Score
    """Of the second class where pairs have two classes, elsewhere the mean of those that are there."""
    ece: float
    """Expected calibration error, from 0 to 1."""
    most_frequent: tuple[str, float]
    """The label that it gives most often, and the share of items that get it."""
    to_plain: Difference | None
    """Points of accuracy above the plain prompt, p-values Holm-corrected over the arms; None of the plain prompt."""
    to_probe: Difference | None
    f1_to_plain: Difference | None
    f1_to_probe: Difference | None
    reliability: tuple[ConfidenceBin, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the probabilities, flat."""
        label, share = self.most_frequent
        return {
            "metric": self.score.metric,
            "value": self.score.value,
            **_numbers(self.score, "", self.to_plain, self.to_probe),
            "n": self.score.n,
            "f1": self.f1.value,
            **_numbers(self.f1, "f1_", self.f1_to_plain, self.f1_to_probe),
            "ece": self.ece,
            "most_frequent_label": label,
            "most_frequent_share": share,
        }


def _numbers(score: Score, prefix: str, to_plain: Difference | None, to_probe: Difference | None) -> dict[str, float]:
    """Interval of a score and what it is above plain prompt and probe; of these themselves nothing, with p = 1."""
    found = {f"{prefix}low": score.low, f"{prefix}high": score.high}
    for name, difference in ((prefix, to_plain), (f"{prefix}probe_", to_probe)):
        other = difference or Difference(0.0, 0.0, 0.0, 1.0)
        found |= {f"{name}difference": other.value, f"{name}p": other.p_value}
        found |= {f"{name}difference_low": other.low, f"{name}difference_high": other.high}
    return found


@dataclass(frozen=True)
class ChangedItem:
    """An item to whose label an arm gives more, or less, than the plain prompt."""

    texts: tuple[str, ...]
    label: str
    plain: float
    """Probability of the label, from 0 to 1."""
    with_arm: float


@dataclass(frozen=True)
class ReceiptBin:
    """Items whose receipts are of one range of confidence."""

    low: float
    high: float
    n: int
    receipt: float
    """Accuracy of the receipts, from 0 to 1."""
    plain: float
    """Accuracy of the plain prompt."""
    with_receipt: float
    """Accuracy of the prompt with the receipt."""
    plain_agrees: float
    """Share of items to which the plain prompt gives the receipt's label."""
    follows: float
    """Share to which the prompt with the receipt does."""


@dataclass(frozen=True)
class AblationPoint:
    """Accuracy of the arm amr with a share of the words of its graphs, or of its texts."""

    part: Literal["amr", "text"]
    share: float
    score: Score


@dataclass(frozen=True)
class ArmComparison:
    """All arms of a task."""

    arms: Mapping[str, Arm]
    helped: Mapping[str, tuple[ChangedItem, ...]]
    """The items that gain most by each arm."""
    hurt: Mapping[str, tuple[ChangedItem, ...]]
    helpfulness: Mapping[str, Helpfulness]
    by_confidence: tuple[ReceiptBin, ...]
    """Of the arm receipt, from unsure to sure."""
    ablation: tuple[AblationPoint, ...] = field(default=())


def compare_arms(
    task: LabeledTask,
    arms: Sequence[ArmName],
    sources: ArmSources,
    score: ScoreLabels,
    *,
    calibration: CalibrationName = "none",
    ablation: bool = False,
    neighbor_cosines_M: NDArray[np.floating] | None = None,
    seed: int = 0,
    resamples: int = 4000,
) -> ArmComparison:
    """Score the plain prompt and every arm on the same items.

    Args:
        task: Its test items.
        arms: Side information to compare.
        sources: What it comes from; the test probabilities are the arm `probe`.
        score: Scores label words after prompts.
        calibration: What is taken from these scores.
        ablation: Also score the arm amr with shares of its words.
        neighbor_cosines_M: Of each item with its nearest neighbor, a feature of the arm retrieval.
        seed: Of the bootstrap and of the words that are dropped.
        resamples: Bootstrap replicates.
    """
    assert sources.test_probabilities_MK is not None
    chances: dict[str, Probabilities] = {}
    for name in (PLAIN, *arms):
        scores_MK = score(name, arm_prompts(name, task, sources))  # type: ignore[arg-type]
        chances[name] = label_probabilities(_calibrated(name, scores_MK, task, sources, score, calibration))
    chances[PROBE] = sources.test_probabilities_MK
    labels_M = task.test.labels_N
    order = (PLAIN, PROBE, *arms)
    accuracies = {name: _estimate(chances[name], labels_M, resamples, seed) for name in order}
    f1_scores = {name: _f1_estimate(chances[name], task, resamples, seed) for name in order}
    differences = [
        _differences(estimates, baseline) for estimates in (accuracies, f1_scores) for baseline in (PLAIN, PROBE)
    ]
    found = {
        name: _arm(
            name, chances[name], task, accuracies[name], f1_scores[name], [each.get(name) for each in differences]
        )
        for name in order
    }
    gains = {name: _gold(chances[name], labels_M) - _gold(chances[PLAIN], labels_M) for name in arms}
    points: tuple[AblationPoint, ...] = ()
    if ablation and "amr" in arms:
        points = tuple(_ablation(task, sources, score, calibration, resamples, seed))
    return ArmComparison(
        found,
        {name: _changed(task, chances, name, (-gain_M).argsort(kind="stable"), 1) for name, gain_M in gains.items()},
        {name: _changed(task, chances, name, gain_M.argsort(kind="stable"), -1) for name, gain_M in gains.items()},
        {
            name: explain_gains(100 * gain_M, _features(name, task, sources, chances, neighbor_cosines_M))
            for name, gain_M in gains.items()
        },
        _by_confidence(task, sources, chances) if "receipt" in arms else (),
        points,
    )


def _calibrated(
    name: str,
    scores_MK: Scores,
    task: LabeledTask,
    sources: ArmSources,
    score: ScoreLabels,
    calibration: CalibrationName,
) -> Scores:
    if calibration == "batch":
        return calibrate_batch(scores_MK)
    if calibration == "none":
        return scores_MK
    free = content_free_prompts(name, task, sources)  # type: ignore[arg-type]
    flat_MK = score(name, [prompt for prompts in free for prompt in prompts])
    parts = flat_MK.reshape(len(free), -1, flat_MK.shape[1])
    if len(parts) == 1:
        return calibrate_contextual(scores_MK, parts[0])
    rows = [calibrate_contextual(scores_MK[row : row + 1], part) for row, part in enumerate(parts)]
    return np.concatenate(rows)


def _estimate(chances_MK: Probabilities, labels_M: NDArray[np.int64], resamples: int, seed: int) -> BootstrapEstimate:
    right_M = (chances_MK.argmax(1) == labels_M).astype(np.float64)
    return statistics.bootstrap_estimate(right_M, resamples=resamples, seed=seed)


def _f1_estimate(chances_MK: Probabilities, task: LabeledTask, resamples: int, seed: int) -> BootstrapEstimate:
    """F1 from means over items: how often a class is both label and answer, and either."""
    is_binary = task.prompt.is_pair and len(task.prompt.words) == 2
    classes = np.arange(int(is_binary), len(task.prompt.words))
    is_answer_MK, is_label_MK = (
        (each[:, None] == classes).astype(np.float64) for each in (chances_MK.argmax(1), task.test.labels_N)
    )

    def f1(means_RF: NDArray[np.float64]) -> NDArray[np.float64]:
        both_RK, either_RK = np.split(means_RF, 2, axis=1)
        is_there_RK = either_RK > 0
        shares_RK = np.divide(2 * both_RK, either_RK, out=np.zeros_like(both_RK), where=is_there_RK)
        return np.asarray(100 * shares_RK.sum(1) / np.maximum(is_there_RK.sum(1), 1))

    items_MF = np.concatenate([is_answer_MK * is_label_MK, is_answer_MK + is_label_MK], 1)
    replicates_R = f1(statistics.bootstrap_means(items_MF, resamples=resamples, seed=seed))
    return BootstrapEstimate(float(f1(items_MF.mean(0, keepdims=True))[0]), replicates_R)


def _differences(estimates: Mapping[str, BootstrapEstimate], baseline: str) -> dict[str, Difference]:
    others = {name: one for name, one in estimates.items() if name != baseline}
    return statistics.holm_correction(
        {name: statistics.paired_difference(one, estimates[baseline]) for name, one in others.items()}
    )


def _arm(
    name: str,
    chances_MK: Probabilities,
    task: LabeledTask,
    accuracy: BootstrapEstimate,
    f1: BootstrapEstimate,
    differences: Sequence[Difference | None],
) -> Arm:
    labels_M, answers_M = task.test.labels_N, chances_MK.argmax(1)
    right_M = answers_M == labels_M
    counts = np.bincount(answers_M, minlength=len(task.prompt.words))
    confidence_M = chances_MK.max(1)
    to_plain, to_probe, f1_to_plain, f1_to_probe = differences
    return Arm(
        name,
        chances_MK,
        _score("accuracy", accuracy, task),
        _score("F1", f1, task),
        expected_calibration_error(confidence_M, right_M),
        (task.prompt.words[int(counts.argmax())], float(counts.max() / len(labels_M))),
        to_plain,
        to_probe,
        f1_to_plain,
        f1_to_probe,
        reliability(confidence_M, right_M),
    )


def _score(metric: str, estimate: BootstrapEstimate, task: LabeledTask) -> Score:
    return Score(metric, estimate.value, estimate.low, estimate.high, len(task.test.labels_N))


def _gold(chances_MK: Probabilities, labels_M: NDArray[np.int64]) -> NDArray[np.float64]:
    return chances_MK[np.arange(len(labels_M)), labels_M]


def _changed(
    task: LabeledTask, chances: Mapping[str, Probabilities], name: str, order_M: NDArray[np.intp], sign: int
) -> tuple[ChangedItem, ...]:
    """The first items of an order that changed in the direction of a sign."""
    labels_M = task.test.labels_N
    plain_M, with_arm_M = (_gold(chances[each], labels_M) for each in (PLAIN, name))
    return tuple(
        ChangedItem(
            tuple(column[row] for column in task.test.columns),
            task.prompt.words[int(labels_M[row])],
            float(plain_M[row]),
            float(with_arm_M[row]),
        )
        for row in order_M[:_EXAMPLES].tolist()
        if sign * (with_arm_M[row] - plain_M[row]) > 0
    )


def _features(
    name: str,
    task: LabeledTask,
    sources: ArmSources,
    chances: Mapping[str, Probabilities],
    neighbor_cosines_M: NDArray[np.floating] | None,
) -> Features:
    """Features of the texts, and of what the arm puts beside them."""
    labels_M, found = task.test.labels_N, text_features(task.test.columns)
    if name == "receipt":
        found["confidence of the receipt"] = chances[PROBE].max(1)
        found["receipt is right"] = (chances[PROBE].argmax(1) == labels_M).astype(np.float64)
    if name in GRAPH_ARMS:
        assert sources.graphs is not None
        graphs = [
            [sources.graphs(text) if text in sources.graphs else "" for text in column] for column in task.test.columns
        ]
        joined = [" ".join(each) for each in zip(*graphs, strict=True)]
        found["words of the graph (log)"] = np.log([len(graph.split()) + 1.0 for graph in joined])
        found["depth of the graph"] = np.array([float(_depth(graph)) for graph in joined])
        found["has a graph"] = np.array([float(bool(graph.strip())) for graph in joined])
    if name == "retrieval" and sources.neighbors_MR is not None and sources.passages is None:
        same_MR = task.train.labels_N[sources.neighbors_MR] == labels_M[:, None]
        found["neighbors of its class"] = same_MR.mean(1)
    if name == "retrieval" and neighbor_cosines_M is not None:
        found["cosine of the nearest"] = np.asarray(neighbor_cosines_M, dtype=np.float64)
    return found


def _depth(graph: str) -> int:
    depth = deepest = 0
    for char in graph:
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    return deepest


def _by_confidence(
    task: LabeledTask, sources: ArmSources, chances: Mapping[str, Probabilities]
) -> tuple[ReceiptBin, ...]:
    """Bins of equal width from chance to certainty."""
    labels_M = task.test.labels_N
    receipt_MK = chances[PROBE]
    confidence_M, said_M = receipt_MK.max(1), receipt_MK.argmax(1)
    plain_M, with_M = chances[PLAIN].argmax(1), chances["receipt"].argmax(1)
    edges = np.linspace(1 / receipt_MK.shape[1], 1, _CONFIDENCE_BINS + 1)
    index_M = np.clip(np.searchsorted(edges, confidence_M, side="left") - 1, 0, _CONFIDENCE_BINS - 1)
    bins = []
    for number in range(_CONFIDENCE_BINS):
        rows = np.flatnonzero(index_M == number)
        if len(rows):
            shares = [
                float(np.mean(left[rows] == right[rows]))
                for left, right in (
                    (said_M, labels_M),
                    (plain_M, labels_M),
                    (with_M, labels_M),
                    (plain_M, said_M),
                    (with_M, said_M),
                )
            ]
            bins.append(ReceiptBin(float(edges[number]), float(edges[number + 1]), len(rows), *shares))
    return tuple(bins)


def _ablation(
    task: LabeledTask,
    sources: ArmSources,
    score: ScoreLabels,
    calibration: CalibrationName,
    resamples: int,
    seed: int,
) -> list[AblationPoint]:
    points = []
    parts: tuple[Literal["amr", "text"], ...] = ("amr", "text")
    for part in parts:
        for share in SHARES:
            scores_MK = score(f"amr, {share:.0%} of {part}", ablated_prompts(task, sources, share, part, seed))
            chances_MK = label_probabilities(_calibrated("amr", scores_MK, task, sources, score, calibration))
            estimate = _estimate(chances_MK, task.test.labels_N, resamples, seed)
            points.append(AblationPoint(part, share, _score("accuracy", estimate, task)))
    return points
