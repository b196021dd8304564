"""Tasks of `augment`: labelled texts to learn from and to be tested on, and how a prompt puts them.

The test items may come from another set than the training items: out of distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bellm.augment.task_prompts import TASK_PROMPTS, TaskPrompt, own_task_prompt
from bellm.data import (
    LABELED_SOURCES,
    Graphs,
    LabeledTexts,
    find_graphs,
    read_classification,
    read_labeled,
    read_labeled_file,
)
from bellm.data.sources import DataSource, data_folder
from bellm.errors import BellmError, SourceError, did_you_mean
from bellm.report.statistics import check_items

AUGMENT_TASKS = {
    "SST2": ("sentiment", "SST2", "SST2"),
    "SST2-MR": ("sentiment", "SST2", "MR"),
    "SST2-CR": ("sentiment", "SST2", "CR"),
    "MRPC": ("paraphrase", "MRPC", "MRPC"),
    "MRPC-QQP": ("paraphrase", "MRPC", "QQP"),
    "TREC": ("question", "TREC", "TREC"),
    "SICK-E": ("entailment", "SICK-E", "SICK-E"),
    "SciFact": ("claim", "SciFact-claims", "SciFact-claims"),
}
"""By name: how the prompt puts it, the set of the training items, and that of the test items."""

_GRAPHS = {"MRPC": "para", "SICK-E": "sick"}
"""Folders of BAMBOO that have the graphs of a set's texts."""


@dataclass(frozen=True)
class LabeledTask:
    """Items to learn from, items to be tested on, and the words of the prompt."""

    name: str
    prompt: TaskPrompt
    train: LabeledTexts
    test: LabeledTexts
    out_of_distribution: bool = False
    """Whether the test items come from another set."""

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        if len(self.train.columns) != len(self.test.columns) or (len(self.test.columns) == 2) != self.prompt.is_pair:
            raise BellmError(f"{self.name}: training items, test items and prompt are not all of one text, or of two.")
        most = max(self.train.labels_N.max(initial=0), self.test.labels_N.max(initial=0))
        if most >= len(self.prompt.words):
            raise BellmError(f"{self.name} has {most + 1} classes, and the prompt words for {len(self.prompt.words)}.")
        check_items(len(self.test.labels_N), name=self.name)
        if num_known := int(_is_among(self.train, self.test).sum()):
            raise BellmError(f"{self.name}: {num_known} training items have the texts of test items. Leave them out.")


def check_task_name(name: str) -> str:
    """The name of a task as it is written here, or a file as it came.

    Raises:
        BellmError: It is neither.
    """
    known = {task.lower(): task for task in AUGMENT_TASKS}
    if name.lower() not in known and not Path(name).is_file():
        raise BellmError(
            f"{name!r} is neither a task nor a file of labelled texts.{did_you_mean(name, AUGMENT_TASKS)} Tasks: "
            f"{', '.join(AUGMENT_TASKS)}; or a table with the columns text and label, and text_b for pairs."
        )
    return known.get(name.lower(), name)


def read_task(
    name: str,
    data: Path | None = None,
    *,
    train: str | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    seed: int = 0,
) -> LabeledTask:
    """Read a task by name from a folder of data sets, or from a file, with a sample of its items.

    Training items with the very texts of a test item are left out: their label would be the answer.

    Args:
        name: One of `AUGMENT_TASKS`, or a table with the columns text and label, and text_b for pairs.
        data: Folder of data sets; None for `BELLM_DATA`.
        train: A table of training items, where the task is a table; without it half of the rows, drawn with the seed.
        limit: Most test items.
        train_limit: Most training items.
        seed: Of samples.

    Raises:
        BellmError: There is no such task, or a file cannot be read.
    """
    name = check_task_name(name)
    for option, number, least in (("limit", limit, 3), ("train_limit", train_limit, 1), ("seed", seed, 0)):
        if number is not None and number < least:
            raise BellmError(f"{option}={number} is too small: give at least {least}.")
    if name in AUGMENT_TASKS:
        if train is not None:
            raise BellmError(f"{name} has training items of its own: leave --train {train} out.")
        kind, first, second = AUGMENT_TASKS[name]
        prompt = TASK_PROMPTS[kind]
        learned, tested = _part(_read(first, data), "train"), _part(_read(second, data), "test")
        is_out = first != second
    else:
        table = read_labeled_file(name)
        if train is None:
            learned, tested = _halves(table, seed)
        else:
            learned, tested = _aligned(read_labeled_file(train), table), table
        prompt, is_out = own_task_prompt(table.label_names, pair=len(table.columns) == 2), False
    tested = _sample(tested, limit, seed)
    if len(learned.columns) == len(tested.columns):
        learned = learned.select(np.flatnonzero(~_is_among(learned, tested)))
    learned = _sample(learned, train_limit, seed)
    if lost := [prompt.words[label] for label in range(len(prompt.words)) if label not in learned.labels_N]:
        raise SourceError(
            f"{name}: no training item is of class {lost[0]!r}. Give more; those with the texts of test items do not "
            "count."
        )
    return LabeledTask(Path(name).name, prompt, learned, tested, is_out)


def task_graphs(task: LabeledTask, data: Path | None = None) -> Graphs | None:
    """Graphs of a task's texts where the folder of data sets has them (`amr/bamboo`); None elsewhere."""
    if task.test.name not in _GRAPHS:
        return None
    folder = data_folder(data, DataSource(task.name, "https://github.com/flipz357/bamboo-amr-benchmark"))
    place = folder / "amr" / "bamboo" / _GRAPHS[task.test.name] / "main" if folder else None
    if place is None or not place.is_dir():
        return None
    texts = [text for items in (task.train, task.test) for column in items.columns for text in column]
    return find_graphs(sorted(place.glob("*.amr")), texts)


def _read(name: str, data: Path | None) -> LabeledTexts:
    return read_labeled(name, data) if name in LABELED_SOURCES else read_classification(name, data)


def _part(texts: LabeledTexts, part: str) -> LabeledTexts:
    """The published part; all rows of a set that has none."""
    rows = texts.split.get(part, range(len(texts.labels_N)))  # type: ignore[call-overload]
    return texts.select(rows)


def _halves(texts: LabeledTexts, seed: int) -> tuple[LabeledTexts, LabeledTexts]:
    """Half of the rows of each class, and the others."""
    draw = np.random.default_rng(seed)
    is_first_N = np.zeros(len(texts.labels_N), dtype=bool)
    for label in np.unique(texts.labels_N):
        rows = draw.permutation(np.flatnonzero(texts.labels_N == label))
        is_first_N[rows[: -(-len(rows) // 2)]] = True  # Rounded up.
    return texts.select(np.flatnonzero(is_first_N)), texts.select(np.flatnonzero(~is_first_N))


def _aligned(train: LabeledTexts, test: LabeledTexts) -> LabeledTexts:
    """Training items whose classes have the numbers that those of the test items have."""
    if unknown := sorted({*train.label_names} ^ {*test.label_names}):
        raise SourceError(f"{unknown[0]!r} is a class of {train.name} or of {test.name} alone. Give the same classes.")
    return train  # Names are sorted, so that the same names have the same numbers.


def _is_among(texts: LabeledTexts, others: LabeledTexts) -> NDArray[np.bool_]:
    """Which items have the very texts of one of the others, whatever case and white space."""

    def keys(items: LabeledTexts) -> list[tuple[str, ...]]:
        return [tuple(" ".join(text.split()).casefold() for text in each) for each in zip(*items.columns, strict=True)]

    known = set(keys(others))
    return np.array([key in known for key in keys(texts)], dtype=bool)


def _sample(texts: LabeledTexts, limit: int | None, seed: int) -> LabeledTexts:
    if limit is None or limit >= len(texts.labels_N):
        return texts
    rows: Sequence[int] = np.sort(np.random.default_rng(seed).permutation(len(texts.labels_N))[:limit]).tolist()
    return texts.select(rows)
