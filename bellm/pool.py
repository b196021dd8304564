"""Data-parallel embedding: one encoder in several processes, each on a device of its own."""

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from bellm.backbone.hooks import shared_copy
from bellm.backbone.loading import resolve_device
from bellm.encode_options import read_fixed_habits
from bellm.encoder import Encoder
from bellm.engine.embedding import EncodeResult, warn_degenerate
from bellm.engine.tokenization import chunk_texts, list_texts, warn_truncated
from bellm.errors import BellmError, check_list
from bellm.progress import progress_bar
from bellm.types import InputType, Vectors

_encoder: Encoder | BellmError
"""Of a process of a pool: what it embeds with, or why it cannot."""

_UNGUARDED, _GUARD = 86, 'if __name__ == "__main__":'  # How a process ends that runs the script of its pool again.


class EncoderPool:
    """Processes that embed texts with one encoder, each on a device of its own.

    The weights go to the processes through shared memory. Use it as a context manager:

        with EncoderPool(encoder, ["cuda:0", "cuda:1"]) as pool:
            vectors = pool.encode(texts)
    """

    def __init__(self, encoder: Encoder, devices: Sequence[str]) -> None:
        """Start a process for each torch device; naming one twice gives it two. The encoder stays usable.

        Raises:
            BellmError: No device is given, or one that torch does not know.
        """
        check_list("devices", devices)
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            sys.exit(_UNGUARDED)  # This is a process of a pool, which imports the script that made it.
        self._encoder = encoder
        context = multiprocessing.get_context("spawn")
        queue: SimpleQueue[str] = context.SimpleQueue()
        for device in devices:
            queue.put(str(resolve_device(device)))
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        sent = encoder.with_model(shared_copy(encoder.model))  # Without what cannot be pickled.
        self._pool = ProcessPoolExecutor(len(devices), context, _start, (sent, queue, threads))
        self._processes = self._pool._processes  # The pool itself forgets them once one has died.

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        **habits: Any,
    ) -> Vectors:
        """Embed texts, in their order, and a string as one vector; see `Encoder.encode`.

        Settings are those of the pool's encoder: keywords that would change one for this call are refused.

        Raises:
            BellmError: `texts` are not strings, a device is not there, or a process was killed.
        """
        call = read_fixed_habits(habits, input_type, progress, self._encoder.device)
        rows = [texts] if isinstance(texts, str) else list_texts(texts)
        result = self.encode_with_stats(
            rows,
            input_type=call.input_type,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            progress=bool(call.progress),
        )
        warn_truncated(result.num_truncated, len(result.vectors), self._encoder.config.max_tokens)
        warn_degenerate(rows, result.vectors, self._encoder.dtype_name)
        return result.vectors[0] if isinstance(texts, str) else result.vectors

    def encode_with_stats(self, texts: Iterable[str], *, progress: bool = False, **options: Any) -> EncodeResult:
        """Embed texts and count their tokens and those that were cut; see `Encoder.encode_with_stats`."""
        texts = list_texts(texts)
        # Chunks small enough that no process waits long for another's last one.
        chunks = chunk_texts(texts, max_texts=1024, max_characters=500_000)
        results: list[EncodeResult] = []
        try:
            with progress_bar(len(texts), unit="text", shown=progress) as done:
                for result in self._pool.map(partial(_encode, options), chunks):
                    results.append(result)
                    done(len(result.vectors))
        except BrokenProcessPool as error:
            raise BellmError(f"A worker process ended early: {self._death()}") from error
        vectors = [np.empty((0, self._encoder.embedding_dim), dtype=np.float32), *(each.vectors for each in results)]
        num_tokens = sum(each.num_tokens for each in results)
        return EncodeResult(np.concatenate(vectors), num_tokens, sum(each.num_truncated for each in results))

    def _death(self) -> str:
        """Why a process is no more, by how it ended; the pool ends the others by SIGTERM."""
        # Its own thread asks for the codes, and another that asks at the same moment gets none.
        self._pool.shutdown(cancel_futures=True)
        codes = [process.exitcode for process in self._processes.values()]
        code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)
        if code == _UNGUARDED:
            return f"it ran the script again. Put what the script does under {_GUARD}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
            return f"{name} killed it{memory}. Embed with fewer processes, or smaller batches (max_batch_tokens)."
        return f"it exited with code {code}." if code else "it was killed, or its device failed."

    def __enter__(self) -> "EncoderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _start(encoder: Encoder, queue: "SimpleQueue[str]", threads: int) -> None:
    global _encoder
    device = torch.device(queue.get())
    if device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        encoder.model.to(device)
        _encoder = encoder
    except RuntimeError as error:  # Raised here it would reach nobody.
        _encoder = BellmError(f"{device} cannot hold the model: {str(error).splitlines()[0]}")


def _encode(options: dict[str, Any], texts: Sequence[str]) -> EncodeResult:
    if isinstance(_encoder, BellmError):
        raise _encoder
    return _encoder.encode_with_stats(texts, **options)
