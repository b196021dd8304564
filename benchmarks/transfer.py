"""SentEval's transfer protocol: all fits at once against scikit-learn, one by one.

Both do the same folds on the same vectors: those of a model (states of the last layer, their mean), or hashed words put
on their principal axes. A language model's vectors have a few axes that are much larger than the others, on which
scikit-learn's default solver needs thousands of steps. Data: `transfer/` in BELLM_DATA or ../shared/data.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from bellm import Encoder
from bellm.data import CLASSIFICATION_SOURCES, LabeledTexts, read_classification
from bellm.evaluate import classification_task, logistic_regression
from bellm.evaluate.logistic_regression import Fit, GridSearch, Labels
from bellm.types import Vectors


@dataclass(frozen=True)
class Row:
    """A task, classified both ways."""

    task: str
    rows: int
    width: int
    fits: int
    seconds: float
    sklearn_seconds: float
    accuracy: float
    sklearn_accuracy: float
    agreement: float
    """Share of the scored rows that both put into the same class."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["MR", "TREC"], choices=CLASSIFICATION_SOURCES, metavar="TASK")
    parser.add_argument("--model", help="Hub id, folder, GGUF file or alias; hashed words without it")
    parser.add_argument("--width", type=int, default=576, help="of hashed words (576)")
    parser.add_argument("--folds", type=int, default=2, help="outer folds of ten that are done, both ways (2)")
    parser.add_argument("--quick", action="store_true", help="CR, width 128, one outer fold")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if options.quick:
        options.tasks, options.width, options.folds = ["CR"], 128, 1
    encoder = Encoder.from_pretrained(options.model, prompt="raw", pooling="mean") if options.model else None
    embed = encoder.encode if encoder else partial(hashed, width=options.width)
    rows = [measure(read_classification(name, data_folder()), embed, options.folds) for name in options.tasks]
    Console().print(table(rows))
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def data_folder() -> Path:
    """The folder of research data, if there is one."""
    folder = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "transfer").is_dir():
        raise SystemExit(f"No research data in {folder}: set BELLM_DATA to a folder with transfer/.")
    return folder


def measure(task: LabeledTexts, embed: Callable[[list[str]], Vectors], folds: int) -> Row:
    """Choose C and classify, for some of the outer folds where the task is cross-validated."""
    vectors_ND = classification_task.pair_features(task, embed(classification_task.distinct_texts(task)))
    searches, grid = classification_task.make_grid_searches(task)[:folds], classification_task.C_grid(task)
    started = time.perf_counter()
    choices = logistic_regression.grid_search(vectors_ND, task.labels_N, searches, grid)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    others = [plain_search(vectors_ND, task.labels_N, one, grid) for one in searches]
    sklearn_seconds = time.perf_counter() - started
    gold_N = np.concatenate([task.labels_N[one.final.test] for one in searches])
    ours_N, theirs_N = (np.concatenate([choice.predicted_N for choice in found]) for found in (choices, others))
    return Row(
        task=task.name,
        rows=len(vectors_ND),
        width=vectors_ND.shape[1],
        fits=sum(len(one.trials) * len(grid) + 1 for one in searches),
        seconds=seconds,
        sklearn_seconds=sklearn_seconds,
        accuracy=100 * float((ours_N == gold_N).mean()),
        sklearn_accuracy=100 * float((theirs_N == gold_N).mean()),
        agreement=float((ours_N == theirs_N).mean()),
    )


def hashed(texts: Sequence[str], width: int) -> Vectors:
    """Hashed words on their principal axes, shape (texts, width)."""
    words = HashingVectorizer(n_features=2**14).transform(texts)
    return np.asarray(TruncatedSVD(width, n_iter=2, random_state=0).fit_transform(words), dtype=np.float32)


def plain_search(vectors_ND: Vectors, labels_N: Labels, one: GridSearch, grid: Sequence[float]) -> Fit:
    """What SentEval's code does with today's scikit-learn."""
    accuracies = []
    for C in grid:
        scores = []
        for trial in one.trials:
            model = LogisticRegression(C=C, max_iter=1000).fit(vectors_ND[trial.fit], labels_N[trial.fit])
            scores.append(model.score(vectors_ND[trial.test], labels_N[trial.test]))
        accuracies.append(round(100 * float(np.mean(scores)), 2))
    best = int(np.argmax(accuracies))
    model = LogisticRegression(C=grid[best], max_iter=1000).fit(vectors_ND[one.final.fit], labels_N[one.final.fit])
    return Fit(grid[best], accuracies[best], model.predict(vectors_ND[one.final.test]))


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table("task", "rows", "width", "fits", "s", "sklearn s", "ratio", "accuracy", "sklearn", "agree %")
    for row in rows:
        grid.add_row(
            row.task,
            str(row.rows),
            str(row.width),
            str(row.fits),
            f"{row.seconds:.1f}",
            f"{row.sklearn_seconds:.1f}",
            f"{row.sklearn_seconds / row.seconds:.1f}",
            f"{row.accuracy:.2f}",
            f"{row.sklearn_accuracy:.2f}",
            f"{100 * row.agreement:.2f}",
        )
    return grid


if __name__ == "__main__":
    main()
