"""Conditional similarity, C-STS: cosines of sentences joined with a condition, against ratings under that condition."""

from pathlib import Path

from bellm.data import sources
from bellm.data.csts import read_csts
from bellm.data.sources import DataSource
from bellm.data.sts import STSPairs
from bellm.errors import SourceError
from bellm.evaluate.sts_task import STSTask

_SOURCE = DataSource("C-STS", "https://github.com/princeton-nlp/c-sts", hub="")
_FILE = "csts/csts_validation.csv"


class CSTSTask(STSTask):
    """The validation part of C-STS, whose test labels are hidden; `bellm.data.csts.join_condition` makes the texts."""

    kind = "C-STS"

    def load(self, folder: Path | None, *, clean: bool = False) -> STSPairs:
        """Read the pairs; texts stay as they are."""
        path = sources.data_folder(folder)
        if path is None:
            raise SourceError(
                f"{self.name} needs a folder of data sets (--data, {sources.VARIABLE}) with {_FILE}. "
                f"Get it from {_SOURCE.address}."
            )
        pairs = read_csts(sources.require_file(path, _FILE, _SOURCE))
        left, right = pairs.texts()
        return STSPairs(self.name, tuple(left), tuple(right), pairs.gold_N, (self.name,) * len(left))


CSTS_TASKS = (CSTSTask("C-STS", is_test_set=False),)
