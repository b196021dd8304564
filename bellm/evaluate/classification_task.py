"""Transfer tasks by SentEval's protocol: logistic regression on frozen vectors.

Conneau & Kiela 2018, arXiv:1803.05449, and its code (github.com/facebookresearch/SentEval, `tools/validation.py`):

- MR, CR, SUBJ, MPQA: ten stratified folds; within each, ten stratified folds of the rest choose the strength.
- SST2: the development part chooses. TREC, MRPC: ten stratified folds of the training part choose.
- Pairs give |u - v| and u * v, side by side. Nothing is standardised, so that the scale of the vectors matters: those
  of length 1 often take the largest strength.

SentEval has two classifiers: scikit-learn's logistic regression (liblinear at the time), and Adam on the same
cross-entropy with weight decay, stopped early. This is the first one with the strengths of its grid, solved to its
minimum (`classifier.py`). It differs from what ran in 2018 in that TREC's six classes share a softmax, where liblinear
told each class from the rest, and that the intercept is not penalised; both are scikit-learn's own way today. Adam's
weight decay of 1e-5 to 1e-2 on the mean loss of N rows means strengths of 1 / (N * decay), so that on ten thousand
rows it searches 0.01 to 10, where this one searches 0.25 to 8. Accuracy counts rows; SentEval's is the mean over
folds, which are of equal size but for one row, and is given too.

Shapes: N rows of a task, T distinct texts, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

from bellm.data.classification import LabeledTexts
from bellm.errors import BellmError
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.logistic_regression import Fit, GridSearch, Rows, Split, grid_search
from bellm.evaluate.results import TaskResult
from bellm.types import Vectors

FOLDS = 10
SEED = 1111
"""SentEval's, which the folds are drawn with."""

C_VALUES = tuple(2.0**power for power in range(-2, 4))
C_VALUES_WITHOUT_DEV = tuple(2.0**power for power in range(-1, 6))
"""SentEval's grid for tasks with a training and a test part only."""


def score_classification(
    model: EvaluatedModel, sentences: LabeledTexts, *, seed: int = SEED, progress: bool = False
) -> TaskResult:
    """Embed a task and classify it, see `run`."""
    texts = distinct_texts(sentences)
    result = classify(sentences, model.vectors(texts), seed=seed, progress=progress)
    return replace(result, num_truncated=model.num_truncated(texts))


def distinct_texts(sentences: LabeledTexts) -> list[str]:
    """The distinct texts of a task, in the order in which `run` takes their vectors."""
    return list(dict.fromkeys(chain(*sentences.columns)))


def classify(
    sentences: LabeledTexts, vectors_TD: Vectors, *, folds: int = FOLDS, seed: int = SEED, progress: bool = False
) -> TaskResult:
    """Classify a task by its vectors.

    Args:
        sentences: The task.
        vectors_TD: A vector for each of `texts_of`.
        folds: How often rows are divided, to score and to choose a strength.
        seed: What folds are drawn with.
        progress: Show a progress bar.

    Returns:
        Whether each row of the test part was classified right, or each row at all where the task is cross-validated,
        in the order of the task. Beside accuracy: the mean over folds, macro F1 (of pairs: F1 of paraphrases), accuracy
        on the rows that chose the strength, and the strength (the median of those of the folds), which alone is not in
        points.

    Raises:
        BellmError: The vectors are not those of `texts_of`, or a class has fewer rows than there are folds.
    """
    _refuse(sentences, vectors_TD, folds)
    labels_N = sentences.labels_N
    searches = make_grid_searches(sentences, folds, seed)
    choices = grid_search(
        pair_features(sentences, vectors_TD), labels_N, searches, C_grid(sentences), progress=progress
    )
    rows = np.concatenate([one.final.test for one in searches])
    order = rows.argsort()
    predicted = np.concatenate([choice.predicted_N for choice in choices])[order]
    gold = labels_N[rows[order]]
    return TaskResult(
        task=sentences.name,
        metric="accuracy",
        item_scores_N=(predicted == gold).astype(np.float64),
        num_texts=len(vectors_TD),
        extra_metrics=_also(sentences, searches, choices) | {_f1_name(sentences): _f1(sentences, gold, predicted)},
    )


def pair_features(sentences: LabeledTexts, vectors_TD: Vectors) -> Vectors:
    """What the classifier sees of each row, shape (N, D), or (N, 2D) for pairs."""
    number = {text: place for place, text in enumerate(distinct_texts(sentences))}
    columns = [vectors_TD[[number[text] for text in column]] for column in sentences.columns]
    if len(columns) == 1:
        return columns[0]
    left_ND, right_ND = columns
    return np.hstack([np.abs(left_ND - right_ND), left_ND * right_ND])


def C_grid(sentences: LabeledTexts) -> tuple[float, ...]:
    """The grid for a task: inverse strengths of the penalty, scikit-learn's C."""
    return C_VALUES_WITHOUT_DEV if sentences.split.keys() == {"train", "test"} else C_VALUES


def make_grid_searches(sentences: LabeledTexts, folds: int = FOLDS, seed: int = SEED) -> list[GridSearch]:
    """Which rows choose a strength, and which are then learnt from and predicted."""
    rows = {part: np.array(numbers) for part, numbers in sentences.split.items()}
    if not rows:
        return [
            GridSearch(_folds(final.fit, sentences.labels_N, folds, seed), final)
            for final in _folds(np.arange(len(sentences.labels_N)), sentences.labels_N, folds, seed)
        ]
    final = Split(rows["train"], rows["test"])
    if "dev" in rows:
        return [GridSearch((Split(rows["train"], rows["dev"]),), final)]
    return [GridSearch(_folds(rows["train"], sentences.labels_N, folds, seed), final)]


def _folds(rows: Rows, labels_N: NDArray[np.int64], folds: int, seed: int) -> tuple[Split, ...]:
    draw = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return tuple(Split(rows[fit], rows[test]) for fit, test in draw.split(rows, labels_N[rows]))


def _also(sentences: LabeledTexts, searches: Sequence[GridSearch], choices: Sequence[Fit]) -> dict[str, float]:
    pairs = zip(searches, choices, strict=True)
    accuracies = [(choice.predicted_N == sentences.labels_N[one.final.test]).mean() for one, choice in pairs]
    return {
        "mean over folds": 100 * float(np.mean(accuracies)),
        "development accuracy": float(np.mean([choice.accuracy for choice in choices])),
        "strength": float(np.median([choice.C for choice in choices])),
    }


def _f1_name(sentences: LabeledTexts) -> str:
    return "F1" if len(sentences.columns) == 2 else "macro F1"


def _f1(sentences: LabeledTexts, gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    average = "binary" if len(sentences.columns) == 2 else "macro"
    return 100 * float(f1_score(gold, predicted, average=average, zero_division=0.0))


def _refuse(sentences: LabeledTexts, vectors_TD: Vectors, folds: int) -> None:
    texts = len(distinct_texts(sentences))
    if vectors_TD.ndim != 2 or len(vectors_TD) != texts:
        raise BellmError(f"{sentences.name} has {texts} texts, but the vectors are of shape {vectors_TD.shape}.")
    if not np.isfinite(vectors_TD).all():
        raise BellmError(
            f"Some vectors of {sentences.name} are not finite. Embed it in another dtype, such as float32."
        )
    train = sentences.split.get("train", range(len(sentences.labels_N)))
    counts = np.bincount(sentences.labels_N[train], minlength=sentences.labels_N.max() + 1)
    needed = folds + 1 if not sentences.split else folds
    if len(counts) < 2 or counts.min() < needed:
        raise BellmError(
            f"{sentences.name} has classes of {', '.join(map(str, counts))} rows; "
            f"two or more of {needed} rows each are needed for {folds} folds."
        )
