"""Fork again and again, kill each fork in the middle of its own `encode`, and encode before and after it.

Arguments: a saved encoder, and `shown` or `hidden` for the progress bar. Prints how often all went well.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any

import numpy as np

from bellm import Encoder

TEXTS = ["A heron stands in the shallow water.", "Snow fell all night.", "Two trains leave at noon."]
KILLS = 50


def main(source: str, bar: str) -> None:
    encoder, shown = Encoder.from_pretrained(source), bar == "shown"
    expected = encoder.encode(TEXTS, progress=shown)
    for kill in range(KILLS):
        fork = os.fork()
        if not fork:
            die_in_call(kill)
            encoder.encode(TEXTS, progress=shown)
            encoder.encode(TEXTS, progress=shown)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == -signal.SIGKILL
        np.testing.assert_array_equal(encoder.encode(TEXTS, progress=shown), expected)
        sys.stdout.write(".")
        sys.stdout.flush()


def die_in_call(number: int) -> None:
    """Kill this process at one of its calls inside the progress bar, where it has one, or else of the encoder."""
    calls = {True: 0, False: 0}

    def count(frame: FrameType, event: str, _: Any) -> None:
        in_bar = "tqdm" in frame.f_code.co_filename
        calls[in_bar] += 1
        if calls[in_bar] == (1 + number % 40 if in_bar else 1000 + 20 * number):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
