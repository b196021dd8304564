"""What tests/corpus/test_ray_executor.py runs in its own process: a Ray cluster of two workers, one of them killed.

Argument: a saved encoder. Here are a.txt, whose vectors are in out already, and b.txt; what came of it is found.json.
"""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray

from bellm import Encoder
from bellm.cli import app
from bellm.corpus.job import CorpusProgress, embed_corpus
from bellm.corpus.ray_executor import RayExecutor
from bellm.errors import BellmError


def main(source: str, shard_rows: str) -> None:
    options: dict[str, Any] = {"source": source, "keep_text": True, "shard_rows": int(shard_rows)}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with ThreadPoolExecutor(1) as aside:
        loading = aside.submit(Encoder.from_pretrained, source)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        encoder, executor = loading.result(), RayExecutor(source=source, workers=2)
    found: dict[str, Any] = {"killed": [], "progress": []}

    def kill_half_way(now: CorpusProgress) -> None:
        found["progress"].append(now)
        if len(found["progress"]) >= 6 and not found["killed"]:
            found["killed"] = workers()[:1]
            found["shards"] = len(list(Path("out/shards").glob("*.parquet")))
            os.kill(found["killed"][0], signal.SIGKILL)

    report = embed_corpus(encoder, ["a.txt", "b.txt"], "out", executor=executor, progress=kill_half_way, **options)
    found["new_rows"] = report.new_rows
    command = ["embed", source, "a.txt", "-o", "by-command", "--engine=ray", "--workers=1", "--shard-rows", shard_rows]
    app([*command, "--keep-text"], standalone_mode=False)
    found["errors"] = [
        refusal(encoder, executor, "-", **options),
        refusal(encoder, RayExecutor(source=source, workers=3), "a.txt", **options),
        refusal(encoder, RayExecutor(source="none/there", workers=1), "a.txt", **options),
    ]
    Path("found.json").write_text(json.dumps(found), encoding="utf-8")


def workers() -> list[int]:
    """Process ids of the workers that embed."""
    family = psutil.Process().children(recursive=True)
    return [each.pid for each in family if any("_Worker" in part for part in each.cmdline())]


def refusal(encoder: Encoder, executor: RayExecutor, file: str, **options: Any) -> str:
    try:
        embed_corpus(encoder, [file], "refused", executor=executor, **options)
    except BellmError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


if __name__ == "__main__":
    main(*sys.argv[1:])
