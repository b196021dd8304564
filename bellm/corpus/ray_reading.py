"""Ray task that reads input files, in a module of its own so that processes which only read load no torch."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from bellm.corpus import shard_plan
from bellm.corpus.shards import Shard
from bellm.io.rows import TextColumns


def missing_ranges_of(
    row: dict[str, Any], columns: TextColumns, done: Sequence[Shard], max_rows: int, place: str
) -> Iterator[dict[str, Any]]:
    """Row ranges of a file that no shard covers; a Ray task."""
    os.chdir(place)
    for row_range in shard_plan.missing_ranges([row["file"]], columns, done, max_rows):
        yield {"span": row_range}
