"""Several processes give what one gives; a killed one is an error, not a gap."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bellm import Encoder, pool
from bellm.errors import BellmError, TruncationWarning
from bellm.pool import EncoderPool
from tests.processes import run

TEXTS = [f"Heron number {number} stands in the shallow water." for number in range(2500)]
LONG = "Snow fell all night and the street was white and quiet in the morning. " * 9


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one_until_one_is_killed(tiny_encoder: Encoder) -> None:
    tiny_encoder.model(torch.tensor([[5, 6]]), output_hidden_states=True)  # Leaves hooks that cannot be pickled.
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
        one = workers.encode(TEXTS[0], batch_size=4, show_progress_bar=False, prompt_name="query")
        np.testing.assert_allclose(one, tiny_encoder.encode_query(TEXTS[0]), rtol=0, atol=1e-5)
        with pytest.raises(BellmError, match=r"normalize does not change .* Write encoder.replace\(normalize=...\)"):
            workers.encode(TEXTS, normalize_embeddings=True)
        os.kill(next(iter(workers._pool._processes)), signal.SIGKILL)
        with pytest.raises(
            BellmError, match="A worker process ended early: SIGKILL killed it, as the system does where"
        ):
            workers.encode(TEXTS)


@pytest.mark.slow
def test_a_script_that_its_processes_run_again_is_told_so(tiny_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from bellm import BellmError, Encoder, EncoderPool\n"
        "try:\n"
        "    with EncoderPool(Encoder.from_pretrained(sys.argv[1]), ['cpu']) as workers:\n"
        "        workers.encode(['A heron.'])\n"
        "except BellmError as error:\n"
        "    print(error)\n"
    )
    done = run([sys.executable, script, tiny_folder])
    [line] = done.stdout.splitlines()
    guard = 'Put what the script does under if __name__ == "__main__":'
    assert line == f"A worker process ended early: it ran the script again. {guard}"
    assert "Traceback" not in done.stderr


def test_a_device_that_does_not_hold_the_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMuch advice.")

    monkeypatch.setattr(pool, "_encoder", None, raising=False)  # As in a process that is starting.
    encoder, queue = SimpleNamespace(model=SimpleNamespace(to=full)), SimpleNamespace(get=lambda: "cuda:1")
    pool._start(encoder, queue, 1)  # type: ignore[arg-type]
    with pytest.raises(BellmError, match=r"^cuda:1 cannot hold the model: CUDA out of memory\.$"):
        pool._encode({}, TEXTS)


def test_devices_are_checked_before_anything_starts(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="devices is empty: give at least one"):
        EncoderPool(tiny_encoder, [])
    with pytest.raises(BellmError, match="'gpu9' is not known to torch"):
        EncoderPool(tiny_encoder, ["gpu9"])
