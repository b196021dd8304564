"""A score for an encoder that is still learning."""

from dataclasses import dataclass
from pathlib import Path

from bellm.errors import BellmError
from bellm.evaluate.evaluated_model import Embedder, EvaluatedModel
from bellm.evaluate.results import Score
from bellm.evaluate.suite import evaluate, resolve_tasks


@dataclass(frozen=True)
class DevEvaluator:
    """Scores anything that embeds on one task: what a recipe's `dev` wants. Never choose by a test set."""

    task: str
    data: str | None = None
    """Folder of data sets; None for `BELLM_DATA`, else the Hub."""

    def __post_init__(self) -> None:
        """Refuse what is no single task."""
        if len(resolve_tasks([self.task])) > 1:
            raise BellmError(f"{self.task} stands for several tasks. Name one, such as STSBenchmark-dev.")

    def __call__(self, encoder: Embedder) -> Score:
        """The score in points, higher is better, with its interval."""
        folder = Path(self.data) if self.data else None
        report = evaluate([EvaluatedModel.of(encoder)], [self.task], data=folder)
        (score,) = report.runs[0].scores.values()
        return score
