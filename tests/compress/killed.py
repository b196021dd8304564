"""Pruning in processes that die; see tests.jobs.

The argument is a saved encoder. `{"out": FOLDER}` answers how a job that writes to it ended; with `"blow"` one that is
struck.
"""

import sys
from pathlib import Path

from bellm import Encoder
from bellm.compress import prune
from tests import jobs
from tests.conftest import CORPUS


def main(source: str) -> None:
    jobs.prepare()
    encoder = Encoder.from_pretrained(source)
    encoder.fingerprint()  # What is made at the first use is made before the forks.

    def job(out: Path) -> None:
        pruned = prune(encoder, 0.5, method="sparsegpt", allocation="owl", texts=CORPUS, work=out / "work")
        pruned.save_pretrained(out / "model")

    jobs.answer(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
