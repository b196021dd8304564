"""Corpus jobs in processes that die; see tests.jobs.

Arguments are a saved encoder, the corpus and the rows of a shard. `{"out": FOLDER}` answers how a job on it ended; with
`"blow"` one that is struck.
"""

import os
import sys
from pathlib import Path

from bellm import Encoder
from bellm.corpus.job import embed_corpus
from tests import jobs


def main(source: str, corpus: str, shard_rows: str) -> None:
    jobs.prepare()
    encoder = Encoder.from_pretrained(source)
    encoder.fingerprint()  # What is made at the first use is made before the forks.
    for wish in jobs.wishes():
        child = jobs.fork()
        if not child:
            if wish["blow"]:
                jobs.strike(wish["blow"])
            embed_corpus(encoder, [corpus], Path(wish["out"]), shard_rows=int(shard_rows), keep_text=True)
            os._exit(0)
        jobs.tell(jobs.how_it_ended(child))


if __name__ == "__main__":
    main(*sys.argv[1:])
