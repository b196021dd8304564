"""Rated pairs by which layers, prompts and other settings may be chosen."""

from dataclasses import replace
from pathlib import Path

from bellm.data import STSPairs, read_own_data, read_sts
from bellm.data.own_files import Columns
from bellm.data.task_names import DEVELOPMENT, check_dev_name
from bellm.errors import SourceError
from bellm.report import statistics

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
    name = check_dev_name(name)
    if name in DEVELOPMENT:
        return read_sts(name, data)
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
