"""Arms: the prompts of all test items with one kind of side information, against the plain ones.

Shapes: N training items, M test items, K classes, R neighbors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bellm.augment.arm_names import GRAPH_ARMS, ArmName
from bellm.augment.calibration import Probabilities
from bellm.augment.task_prompts import SP_OUTPUT_HINT, SideInformation, TaskPrompt, make_prompt, write_receipt
from bellm.augment.tasks import LabeledTask
from bellm.data import Graphs, LabeledTexts
from bellm.errors import BellmError
from bellm.prompts import SENSE_HINT, Rendered
from bellm.tensors.similarity import cosine_similarity
from bellm.types import Vectors

_CONTENT_FREE = "N/A"


@dataclass(frozen=True)
class ArmSources:
    """What the arms of a task take side information from."""

    introduction: str = ""
    """Instruction above receipts."""
    train_probabilities_NK: Probabilities | None = None
    """Of the small model, each from a fit that did not see the item."""
    test_probabilities_MK: Probabilities | None = None
    graphs: Graphs | None = None
    neighbors_MR: NDArray[np.intp] | None = None
    """Training items near each test item, the nearest last."""
    passages: Sequence[tuple[str, ...]] | None = None
    """Of a corpus, for each test item; they take the place of neighbors."""
    shots: tuple[int, ...] = ()
    """Training items that every prompt shows, solved."""
    written_parses: Sequence[tuple[str, ...]] = field(default=())
    """For each test item, what the model itself wrote as a parse of its texts."""


def arm_prompts(name: ArmName | Literal["plain"], task: LabeledTask, sources: ArmSources) -> list[Rendered]:
    """The prompt of every test item."""
    side, shown = _sides(name, task, sources), _demonstrations(name, task, sources)
    return [
        make_prompt(task.prompt, texts, side(task.test, row), shown(row))
        for row, texts in enumerate(zip(*task.test.columns, strict=True))
    ]


def content_free_prompts(
    name: ArmName | Literal["plain"], task: LabeledTask, sources: ArmSources
) -> list[list[Rendered]]:
    """Prompts without content, by which scores are calibrated: one list for all test items, or one for each.

    Texts and graphs are "N/A" or nothing. There is no receipt and no passage, of which the scores would lose the say.
    Demonstrations stay.
    """
    shown, width = _demonstrations(name, task, sources), len(task.test.columns)
    has_own = name == "retrieval" and sources.neighbors_MR is not None and sources.passages is None
    hint = _hint(name, sources)
    prompts = []
    for row in range(len(task.test.labels_N) if has_own else 1):
        of_row = []
        for content in (_CONTENT_FREE, ""):
            graphs = (content,) * width if name in GRAPH_ARMS or name == "sp-output" else ()
            side = SideInformation(hint=hint, graphs=graphs, parses=bool(graphs) and name != "amr")
            of_row.append(make_prompt(task.prompt, (content,) * width, side, shown(row)))
        prompts.append(of_row)
    return prompts


def nearest_items(train_ND: Vectors, test_MD: Vectors, number: int) -> NDArray[np.intp]:
    """Training items nearest to each test item by the cosine of their vectors, (M, number), the nearest last."""
    found = [(-cosine_similarity(test_D[None], train_ND)[0]).argsort(kind="stable")[:number] for test_D in test_MD]
    return np.array(found, dtype=np.intp)[:, ::-1]


def fixed_shots(train: LabeledTexts, number: int, seed: int) -> tuple[int, ...]:
    """So many training items, each class as often as the others, in random order."""
    draw = np.random.default_rng(seed)
    classes = [
        draw.permutation(np.flatnonzero(train.labels_N == label)).tolist() for label in np.unique(train.labels_N)
    ]
    rows = [of_class[turn] for turn in range(max(map(len, classes))) for of_class in classes if turn < len(of_class)]
    if number > len(rows):
        raise BellmError(f"shots={number} is more than the {len(rows)} training items.")
    return tuple(draw.permutation(rows[:number]).tolist())


def drop_words(text: str, share: float, seed: int) -> str:
    """Some of a text's words in their order, drawn at random: the nearest number to a share of them.

    >>> len(drop_words("one two three four", 0.5, 0).split()), drop_words("one two", 1, 0), drop_words("one two", 0, 0)
    (2, 'one two', '')
    """
    words = text.split()
    kept = np.random.default_rng(seed).permutation(len(words))[: round(share * len(words))]
    return " ".join(words[index] for index in sorted(kept))


def ablated_prompts(
    task: LabeledTask, sources: ArmSources, share: float, part: Literal["amr", "text"], seed: int = 0
) -> list[Rendered]:
    """Prompts of the arm amr in which only a share of the words of the graphs, or of the texts, is left (AMRCoT)."""
    shown = _demonstrations("amr", task, sources)
    prompts = []
    for row, texts in enumerate(zip(*task.test.columns, strict=True)):
        graphs = _graphs(task.test, row, sources)
        if part == "amr":
            graphs = tuple(drop_words(graph, share, seed + row) for graph in graphs)
        else:
            texts = tuple(drop_words(text, share, seed + row) for text in texts)
        prompts.append(make_prompt(task.prompt, texts, SideInformation(graphs=graphs), shown(row)))
    return prompts


def _hint(name: str, sources: ArmSources) -> str:
    return {"hint": SENSE_HINT, "sp-output": SP_OUTPUT_HINT, "receipt": sources.introduction}.get(name, "")


def _sides(name: str, task: LabeledTask, sources: ArmSources) -> Callable[[LabeledTexts, int], SideInformation]:
    """Side information of an item, of the training or the test items."""
    hint = _hint(name, sources)

    def side(items: LabeledTexts, row: int) -> SideInformation:
        is_test = items is task.test
        if name == "receipt":
            chances = sources.test_probabilities_MK if is_test else sources.train_probabilities_NK
            assert chances is not None
            return SideInformation(hint=hint, receipt=_receipt(task.prompt, chances[row]))
        if name == "sp-output" and is_test:
            return SideInformation(hint=hint, graphs=tuple(sources.written_parses[row]), parses=True)
        if name in GRAPH_ARMS:
            return SideInformation(graphs=_graphs(items, row, sources), parses=name == "sp-input")
        if name == "retrieval" and sources.passages is not None and is_test:
            return SideInformation(passages=tuple(sources.passages[row]))
        return SideInformation(hint=hint)

    return side


def _receipt(prompt: TaskPrompt, chances_K: NDArray[np.float64]) -> str:
    label = int(chances_K.argmax())
    return write_receipt(prompt.words[label], float(chances_K[label]))


def _graphs(items: LabeledTexts, row: int, sources: ArmSources) -> tuple[str, ...]:
    """Graphs of an item's texts; nothing where there is none."""
    graphs = sources.graphs
    assert graphs is not None
    return tuple(graphs(column[row]) if column[row] in graphs else "" for column in items.columns)


def _demonstrations(
    name: str, task: LabeledTask, sources: ArmSources
) -> Callable[[int], list[tuple[tuple[str, ...], SideInformation, int]]]:
    """Solved training items of a test item's prompt, with side information of the same kind."""
    side, train = _sides(name, task, sources), task.train

    def shown(row: int) -> list[tuple[tuple[str, ...], SideInformation, int]]:
        indices = list(sources.shots)
        if name == "retrieval" and sources.passages is None:
            assert sources.neighbors_MR is not None
            indices = sources.neighbors_MR[row].tolist()
        return [
            (tuple(column[index] for column in train.columns), side(train, index), int(train.labels_N[index]))
            for index in indices
        ]

    return shown
