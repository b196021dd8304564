"""What reads for Ray: apart from the engine, so that the processes that only read load no model library."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from bellm.corpus import plan
from bellm.corpus.formats import Columns
from bellm.corpus.shards import Shard


def spans_of(
    row: dict[str, Any], columns: Columns, done: Sequence[Shard], max_rows: int, place: str
) -> Iterator[dict[str, Any]]:
    """The spans of a file that no shard covers; a task of Ray's."""
    os.chdir(place)
    for span in plan.missing([row["file"]], columns, done, max_rows):
        yield {"span": span}
