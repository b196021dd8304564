"""Names of evaluation tasks, groups of them, and which sets may choose anything; nothing here needs a model."""

from collections.abc import Sequence
from pathlib import Path

from bellm.data.classification import CLASSIFICATION_SOURCES
from bellm.data.retrieval import RETRIEVAL_SOURCES
from bellm.errors import BellmError, did_you_mean

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
TRANSFER = tuple(CLASSIFICATION_SOURCES)

GROUPS = {"sts": STS, "transfer": TRANSFER}
"""Names that stand for several tasks."""

TASK_NAMES = (*STS, "SICK-R-full", "STSBenchmark-dev", "C-STS", *TRANSFER, *RETRIEVAL_SOURCES)

VALIDATION = ("STSBenchmark-dev", "C-STS")
"""Tasks that are no test sets."""

DEVELOPMENT = ("STSBenchmark-dev", "STSBenchmark-train")
"""Sets of rated pairs by which something may be chosen. All other tasks are test sets of the choice."""


def resolve_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Expand groups, and match names in any case: each task once, in the order given; files and folders stay.

    Raises:
        BellmError: A name is neither that of a task nor of a file or folder.
    """
    known = {**{task.lower(): (task,) for task in TASK_NAMES}, **GROUPS}
    for name in names:
        if name.lower() not in known and not Path(name).exists():
            names_known = [*GROUPS, *TASK_NAMES]
            raise BellmError(
                f"{name!r} is no task.{did_you_mean(name, names_known)} Tasks: {', '.join(names_known)}; or a file or "
                "folder of your own."
            )
    return tuple(dict.fromkeys(task for name in names for task in known.get(name.lower(), (name,))))


def check_dev_name(name: str) -> str:
    """The name of a development set as it is written here, or a file as it came.

    Raises:
        BellmError: It is neither: a test set, or unknown.
    """
    known = {task.lower(): task for task in DEVELOPMENT}
    if name.lower() not in known and not Path(name).is_file():
        raise BellmError(
            f"{name!r} is neither a file of rated pairs nor a development set: what is chosen by a test set "
            f"leaves nothing to test it with. Choose by {' or '.join(DEVELOPMENT)}, or by a file of your own."
        )
    return known.get(name.lower(), name)
