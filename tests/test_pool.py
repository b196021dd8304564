"""Several processes give what one gives; a killed one is an error, not a gap."""

import os
import signal

import numpy as np
import pytest

from bellm import Encoder
from bellm.errors import BellmError, TruncationWarning
from bellm.pool import EncoderPool

TEXTS = [f"Heron number {number} stands in the shallow water." for number in range(2500)]
LONG = "Snow fell all night and the street was white and quiet in the morning. " * 9


def test_two_processes_give_the_vectors_of_one_until_one_is_killed(tiny_encoder: Encoder) -> None:
    with EncoderPool(tiny_encoder, ["cpu", "cpu"]) as workers:
        found = workers.encode(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, tiny_encoder.encode(TEXTS), rtol=0, atol=1e-5)
        assert workers.encode([]).shape == (0, tiny_encoder.embedding_dim)
        with pytest.warns(TruncationWarning, match="1 of 2 texts were cut to 128 tokens"):
            workers.encode([LONG, "A heron."])
        queries = workers.encode_with_stats(TEXTS[:2], input_type="query")
        assert queries.num_tokens == sum(map(len, tiny_encoder.tokenize(TEXTS[:2]).ids))
        np.testing.assert_allclose(queries.vectors, tiny_encoder.encode_query(TEXTS[:2]), rtol=0, atol=1e-5)
        with pytest.raises(BellmError, match=r"texts\[0\] is int"):
            workers.encode([1])  # type: ignore[list-item]
        os.kill(next(iter(workers._pool._processes)), signal.SIGKILL)
        with pytest.raises(BellmError, match="A worker process ended early"):
            workers.encode(TEXTS)


def test_devices_are_checked_before_anything_starts(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="devices is empty: give at least one"):
        EncoderPool(tiny_encoder, [])
    with pytest.raises(BellmError, match="'gpu9' is not known to torch"):
        EncoderPool(tiny_encoder, ["gpu9"])
