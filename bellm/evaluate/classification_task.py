"""Classification by SentEval's protocol: logistic regression on frozen embeddings.

Conneau & Kiela 2018, arXiv:1803.05449, and its code (github.com/facebookresearch/SentEval, `tools/validation.py`):

- MR, CR, SUBJ, MPQA: ten stratified folds; within each, ten stratified folds of the rest choose C.
- SST2: the development part chooses. TREC, MRPC: ten stratified folds of the training part choose.
- Pairs give |u - v| and u * v, side by side. Nothing is standardised, so that the scale of the vectors matters: those
  of length 1 often take the largest C.

SentEval has two classifiers: scikit-learn's logistic regression (liblinear at the time), and Adam on the same cross-
entropy with weight decay, stopped early. This is the first one with its grid of C, solved to its minimum
(`logistic_regression.py`). It differs from what ran in 2018 in that TREC's six classes share a softmax, where liblinear
told each class from the rest, and that the intercept is not penalised; both are scikit-learn's own way today. Adam's
weight decay of 1e-5 to 1e-2 on the mean loss of N rows means C = 1 / (N * decay), so that on ten thousand rows it
searches 0.01 to 10, where this one searches 0.25 to 8. Accuracy counts rows; SentEval's is the mean over folds, which
are of equal size but for one row, and is given too.

Shapes: N rows of a task, T distinct texts, D width.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

from bellm.data import LabeledTexts, read_classification
from bellm.data.task_names import TRANSFER
from bellm.errors import BellmError
from bellm.evaluate.logistic_regression import GridSearch, Rows, Split, grid_search
from bellm.evaluate.results import TaskResult
from bellm.evaluate.task import Task
from bellm.types import InputType, Vectors

FOLDS, SEED = 10, 1111  # SentEval's, as the grids.
C_VALUES = tuple(2.0**power for power in range(-2, 4))
C_VALUES_WITHOUT_DEV = tuple(2.0**power for power in range(-1, 6))  # Training and test part only.


class ClassificationTask(Task[LabeledTexts]):
    """Sentences, or pairs of them, and their classes."""

    kind = "transfer"

    def check(self, data: LabeledTexts) -> None:
        """Refuse classes of few rows."""
        _refuse_small(data, FOLDS)

    def load(self, folder: Path | None, *, clean: bool = False) -> LabeledTexts:
        """Read the rows."""
        return read_classification(self.name, folder)

    def texts(self, data: LabeledTexts) -> Mapping[InputType, Sequence[str]]:
        """The distinct texts."""
        return {"text": distinct_texts(data)}

    def score(self, data: LabeledTexts, vectors: Mapping[InputType, Vectors]) -> TaskResult:
        """Score by SentEval's protocol, see `classify`."""
        return classify(data, vectors["text"])


CLASSIFICATION_TASKS = tuple(ClassificationTask(name, average="transfer average") for name in TRANSFER)


def distinct_texts(sentences: LabeledTexts) -> list[str]:
    """The distinct texts of a task, in the order in which `classify` takes their vectors."""
    return list(dict.fromkeys(chain(*sentences.columns)))


def classify(sentences: LabeledTexts, vectors_TD: Vectors, *, folds: int = FOLDS, seed: int = SEED) -> TaskResult:
    """Classify a task by a vector for each of `distinct_texts`; folds, drawn with a seed, score and choose C.

    The items say whether each row of the test part was classified right, or each row at all where the task is
    cross-validated, in the order of the task. Beside accuracy: the mean over folds, macro F1 (of pairs: F1 of
    paraphrases), accuracy on the rows that chose C, and C (the median over folds), which alone is not in points.
    """
    texts = len(distinct_texts(sentences))
    if vectors_TD.ndim != 2 or len(vectors_TD) != texts:
        raise BellmError(f"{sentences.name} has {texts} texts, but the vectors are of shape {vectors_TD.shape}.")
    if not np.isfinite(vectors_TD).all():
        raise BellmError(
            f"Some vectors of {sentences.name} are not finite. Embed it in another dtype, such as float32."
        )
    _refuse_small(sentences, folds)
    labels_N = sentences.labels_N
    searches = make_grid_searches(sentences, folds, seed)
    fits = grid_search(pair_features(sentences, vectors_TD), labels_N, searches, C_grid(sentences))
    rows = np.concatenate([search.final.test for search in searches])
    order = rows.argsort()
    predicted = np.concatenate([fit.predicted_N for fit in fits])[order]
    gold = labels_N[rows[order]]
    fold_accuracies = [
        (fit.predicted_N == labels_N[search.final.test]).mean() for search, fit in zip(searches, fits, strict=True)
    ]
    f1_name, average = ("F1", "binary") if len(sentences.columns) == 2 else ("macro F1", "macro")
    return TaskResult(
        task=sentences.name,
        metric="accuracy",
        item_scores_N=(predicted == gold).astype(np.float64),
        num_texts=len(vectors_TD),
        extra_metrics={
            "mean over folds": 100 * float(np.mean(fold_accuracies)),
            "development accuracy": float(np.mean([fit.accuracy for fit in fits])),
            "C": float(np.median([fit.C for fit in fits])),
            f1_name: 100 * float(f1_score(gold, predicted, average=average, zero_division=0.0)),
        },
    )


def pair_features(sentences: LabeledTexts, vectors_TD: Vectors) -> Vectors:
    """The features of each row, shape (N, D), or (N, 2D) for pairs."""
    index = {text: number for number, text in enumerate(distinct_texts(sentences))}
    columns = [vectors_TD[[index[text] for text in column]] for column in sentences.columns]
    if len(columns) == 1:
        return columns[0]
    left_ND, right_ND = columns
    return np.hstack([np.abs(left_ND - right_ND), left_ND * right_ND])


def C_grid(sentences: LabeledTexts) -> tuple[float, ...]:
    """The values of C to try for a task, inverse strengths of the penalty as in scikit-learn."""
    return C_VALUES_WITHOUT_DEV if sentences.split.keys() == {"train", "test"} else C_VALUES


def make_grid_searches(sentences: LabeledTexts, folds: int = FOLDS, seed: int = SEED) -> list[GridSearch]:
    """Split a task's rows into those that choose C and those that are then fitted and predicted."""
    labels_N = sentences.labels_N
    draw = StratifiedKFold(folds, shuffle=True, random_state=seed)

    def split(rows: Rows) -> tuple[Split, ...]:
        return tuple(Split(rows[fit], rows[test]) for fit, test in draw.split(rows, labels_N[rows]))

    if not sentences.split:
        return [GridSearch(split(final.fit), final) for final in split(np.arange(len(labels_N)))]
    rows = {part: np.array(indices) for part, indices in sentences.split.items()}
    trials = (Split(rows["train"], rows["dev"]),) if "dev" in rows else split(rows["train"])
    return [GridSearch(trials, Split(rows["train"], rows["test"]))]


def _refuse_small(sentences: LabeledTexts, folds: int) -> None:
    train = sentences.split.get("train", range(len(sentences.labels_N)))
    counts = np.bincount(sentences.labels_N[train], minlength=sentences.labels_N.max() + 1)
    needed = folds if sentences.split else folds + 2  # Of a class of 11 rows, one of 10 folds leaves 9.
    if len(counts) < 2 or counts.min() < needed:
        raise BellmError(
            f"{sentences.name} has classes of {', '.join(map(str, counts))} rows; "
            f"two or more of {needed} rows each are needed for {folds} folds."
        )
