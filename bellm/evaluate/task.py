"""The base class of evaluation tasks: read a data set, say which texts to embed, score their vectors.

A new kind of task is one module with a subclass; `bellm.evaluate.suite.TASKS` lists the tasks that have a name on the
command line.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import TaskResult
from bellm.types import InputType, Vectors

Data = TypeVar("Data")


@dataclass(frozen=True)
class Task(ABC, Generic[Data]):
    """A data set and how vectors of its texts are scored."""

    kind: ClassVar[str] = "texts"
    """Tasks of one kind are embedded together, and progress bars show this name."""

    name: str
    average: str | None = None
    """The average that the task is part of: `STS average`."""
    is_test_set: bool = True
    """Whether results are reported on it, so that nothing may be chosen by it."""
    data: Data | None = None
    """What `load` gives, once it was called, or what to score on instead."""

    def __post_init__(self) -> None:
        """Refuse data of which no score can be made, before its texts are embedded."""
        if self.data is not None:
            self.check(self.data)

    def check(self, data: Data) -> None:
        """Raise a `BellmError` where no score can be made of the data, whatever the vectors are."""

    @abstractmethod
    def load(self, folder: Path | None, *, clean: bool = False) -> Data:
        """Read the data set from a folder of data sets, or from the Hub if there is none; `clean` texts of pairs."""

    @abstractmethod
    def texts(self, data: Data) -> Mapping[InputType, Sequence[str]]:
        """The texts to embed, by input type; equal texts are embedded once."""

    @abstractmethod
    def score(self, data: Data, vectors: Mapping[InputType, Vectors]) -> TaskResult:
        """Score the vectors of `texts`, row by row in the same order."""


def embed_task(model: EvaluatedModel, task: Task[Any]) -> dict[InputType, Vectors]:
    """Embed the texts of a task that has its data."""
    return {input_type: model.vectors(texts, input_type) for input_type, texts in task.texts(task.data).items()}


def score_task(
    model: EvaluatedModel, task: Task[Any], vectors: Mapping[InputType, Vectors] | None = None
) -> TaskResult:
    """Score a model on a task that has its data, and count texts; `vectors` are those of `embed_task`, if known."""
    texts = task.texts(task.data).items()
    return replace(
        task.score(task.data, embed_task(model, task) if vectors is None else vectors),
        num_texts=sum(len(set(those)) for _, those in texts),
        num_truncated=sum(model.num_truncated(those, input_type) for input_type, those in texts),
    )
