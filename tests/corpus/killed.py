"""Corpus jobs in processes that die; see tests.jobs.

Arguments are a saved encoder, the corpus and the rows of a shard. `{"out": FOLDER}` answers how a job on it ended; with
`"blow"` one that is struck.
"""

import sys

from bellm import Encoder
from bellm.corpus.job import embed_corpus
from tests import jobs


def main(source: str, corpus: str, shard_rows: str) -> None:
    jobs.prepare()
    encoder = Encoder.from_pretrained(source)
    encoder.fingerprint()  # What is made at the first use is made before the forks.
    jobs.answer(lambda out: embed_corpus(encoder, [corpus], out, shard_rows=int(shard_rows), keep_text=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
