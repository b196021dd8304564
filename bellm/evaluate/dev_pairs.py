"""Rated pairs by which layers, prompts and other settings may be chosen."""

from dataclasses import replace
from pathlib import Path

from bellm.data import STSPairs, read_own_data, read_sts
from bellm.data.own_files import Columns
from bellm.errors import BellmError, SourceError
from bellm.report import statistics

DEVELOPMENT = ("STSBenchmark-dev", "STSBenchmark-train")
"""Sets of rated pairs by which something may be chosen. All other tasks are test sets of the choice."""

_FEWEST_PAIRS = 3
_JUDGED_BY = (
    f"Choices are judged by {_FEWEST_PAIRS} pairs or more, each with a score: columns sentence1, sentence2 and score."
)


def read_dev_set(name: str, data: Path | None = None, columns: Columns | str | None = None) -> STSPairs:
    """Read rated pairs by which something may be chosen: one of `DEVELOPMENT`, from a folder or the Hub, or a file.

    `columns` are those of a file, where their names are not usual ones; see `bellm.data.own_files`.

    Raises:
        BellmError: It is neither: a test set, or unknown.
        SourceError: It is not there, or a row of the file is no rated pair.
    """
    known = {task.lower(): task for task in DEVELOPMENT}
    if name.lower() in known:
        return read_sts(known[name.lower()], data)
    if not Path(name).is_file():
        raise BellmError(
            f"{name!r} is neither a file of rated pairs nor a development set: what is chosen by a test set "
            f"leaves nothing to test it with. Choose by {' or '.join(DEVELOPMENT)}, or by a file of your own."
        )
    try:
        pairs = read_own_data(name, columns)
    except SourceError as error:
        raise SourceError(f"{error} {_JUDGED_BY}") from error
    if not isinstance(pairs, STSPairs):
        raise SourceError(f"{name} holds no pairs. {_JUDGED_BY}")
    if len(pairs.left) < _FEWEST_PAIRS:
        raise SourceError(f"{name} has {len(pairs.left)} rows. {_JUDGED_BY}")
    statistics.check_items(len(pairs.gold_N), pairs.gold_N, name)
    return replace(pairs, name=Path(name).name)  # The same wherever the file is.
