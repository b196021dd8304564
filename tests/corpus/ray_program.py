"""What tests/corpus/test_ray.py runs in a process of its own: a local Ray cluster of two workers, one of them killed.

Argument: a saved encoder. Here are a.txt and b.txt; what came of it is found.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray

from bellm import Encoder
from bellm.corpus.job import CorpusProgress, embed_corpus
from bellm.corpus.ray_executor import RayExecutor
from bellm.errors import BellmError


def main(source: str) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    encoder, executor = Encoder.from_pretrained(source), RayExecutor(source=source, workers=2)
    options: dict[str, Any] = {"source": source, "keep_text": True, "shard_rows": 100}
    start = time.perf_counter()
    found: dict[str, Any] = {"killed": [], "progress": []}

    def kill_half_way(now: CorpusProgress) -> None:
        found["progress"].append(now)
        if now.rows >= 600 and not found["killed"]:
            found["killed"] = workers()[:1]
            found["shards"] = len(list(Path("out/shards").glob("*.parquet")))
            os.kill(found["killed"][0], signal.SIGKILL)

    embed_corpus(encoder, ["a.txt"], "out", **options)
    report = embed_corpus(encoder, ["a.txt", "b.txt"], "out", executor=executor, progress=kill_half_way, **options)
    found["new_rows"] = report.new_rows
    found["errors"] = [
        refusal(encoder, executor, "-", **options),
        refusal(encoder, RayExecutor(source=source, workers=3), "a.txt", **options),
        refusal(encoder, RayExecutor(source="none/there", workers=1), "a.txt", **options),
    ]
    found["seconds"] = time.perf_counter() - start
    Path("found.json").write_text(json.dumps(found), encoding="utf-8")


def workers() -> list[int]:
    """Process ids of the workers that embed: their parent is Ray's daemon, a child of this process."""
    children = {int(stat.parent.name): int(stat.read_text().rsplit(")", 1)[1].split()[1]) for stat in stats()}
    ours = [child for child, parent in children.items() if children.get(parent) == os.getpid()]
    return [pid for pid in ours if "_Worker" in Path(f"/proc/{pid}/cmdline").read_text()]


def stats() -> list[Path]:
    return [stat for stat in Path("/proc").glob("[0-9]*/stat") if stat.exists()]


def refusal(encoder: Encoder, executor: RayExecutor, file: str, **options: Any) -> str:
    try:
        embed_corpus(encoder, [file], "refused", executor=executor, **options)
    except BellmError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


if __name__ == "__main__":
    main(sys.argv[1])
