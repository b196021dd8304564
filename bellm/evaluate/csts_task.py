"""Conditional similarity, C-STS: cosines of sentences joined with a condition, against ratings under that condition."""

from pathlib import Path

from bellm.data import STSPairs, read_csts
from bellm.evaluate.sts_task import STSTask


class CSTSTask(STSTask):
    """The validation part of C-STS, whose test labels are hidden; `bellm.data.csts.join_condition` makes the texts."""

    kind = "C-STS"

    def load(self, folder: Path | None, *, clean: bool = False) -> STSPairs:
        """Read the pairs; texts stay as they are."""
        pairs = read_csts(self.name, folder)
        left, right = pairs.texts()
        return STSPairs(self.name, tuple(left), tuple(right), pairs.gold_N, (self.name,) * len(left))


CSTS_TASKS = (CSTSTask("C-STS", is_test_set=False),)
