"""What a saved encoder costs, measured in a process of its own: CPU time, peak memory, its vectors.

A fresh process has a peak of its own, and shows that the folder loads without what made it.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bellm.errors import BellmError
from bellm.types import Vectors


@dataclass(frozen=True)
class Footprint:
    """Costs of an encoder, and its vectors."""

    bytes: int
    """Of all files of its folder."""
    peak_bytes: int
    """Most memory that the process had, with Python and torch; of a GPU's memory where the encoder runs on one."""
    texts_per_second: float
    """Of CPU time over all threads; of wall time on a GPU."""
    vectors_ND: Vectors


def measure_footprint(folder: Path, texts: Sequence[str], device: str = "auto") -> Footprint:
    """Load a saved encoder in a fresh process and embed texts there, whole and neither centered nor normalized.

    Raises:
        BellmError: The process ends without vectors.
    """
    with tempfile.TemporaryDirectory() as work:
        Path(work, "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
        program = "import sys; from bellm.compress.footprint import embed_and_report; embed_and_report(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), work, device], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise BellmError(f"{folder} could not be measured in a process of its own: {said}")
        found = json.loads(Path(work, "costs.json").read_text(encoding="utf-8"))
        vectors_ND = np.load(Path(work, "vectors.npy"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Footprint(size, found["peak_bytes"], len(texts) / max(found["seconds"], 1e-9), vectors_ND)


def embed_and_report(folder: str, work: str, device: str) -> None:
    """Embed the texts of a work folder and write vectors and costs to it, in the process that is measured."""
    import torch

    from bellm.encoder import Encoder

    encoder = Encoder.from_pretrained(folder, device=device)
    texts = json.loads(Path(work, "texts.json").read_text(encoding="utf-8"))
    on_gpu = encoder.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter if on_gpu else time.process_time
    encoder.encode_with_stats(texts[:2])  # What is done once: the packing check, threads.
    before = clock()
    vectors_ND = encoder.encode_with_stats(texts).vectors
    seconds = clock() - before
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory()
    np.save(Path(work, "vectors.npy"), vectors_ND)
    Path(work, "costs.json").write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}), encoding="utf-8")


def _peak_memory() -> int:
    """Largest resident size of this process; 0 where the system does not say."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What getrusage says on Linux is no less than the size of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0
