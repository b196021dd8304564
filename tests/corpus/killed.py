"""Run corpus jobs in processes that die: loads once, then forks for each line of standard input.

A line is `OUT [STEP]`. The fork's process id is printed, and then how it ended. With STEP it kills itself: step 1 is
before its first call that makes a file last, step 2 after that call, and so on.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from bellm import Encoder
from bellm.corpus.job import embed_corpus

FATAL = ("replace", "fsync")
"""What makes a file last."""


def main(source: str, corpus: str, shard_rows: str) -> None:
    encoder = Encoder.from_pretrained(source)
    encoder.fingerprint()  # What is made at the first use is made before the forks.
    tell(os.getpid())
    for line in sys.stdin:
        out, *step = line.split()
        child = os.fork()
        if not child:
            if step:
                die_at(int(step[0]))
            embed_corpus(encoder, [corpus], Path(out), shard_rows=int(shard_rows), keep_text=True)
            os._exit(0)
        tell(child)
        _, status = os.waitpid(child, 0)
        tell(os.waitstatus_to_exitcode(status))


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def die_at(step: int) -> None:
    left = itertools.count(step, -1)

    def go_on() -> None:
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(call: Any) -> Any:
        def stepping(*arguments: Any) -> Any:
            go_on()
            result = call(*arguments)
            go_on()
            return result

        return stepping

    for name in FATAL:
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
