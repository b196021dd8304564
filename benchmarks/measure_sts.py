"""STS-Benchmark test, zero-shot: Spearman x100 by prompt, pooling and open layers, with 95 % intervals.

Nothing is trained and nothing is chosen on these pairs. Data: `sts-test.csv` of STS-Benchmark, in BELLM_DATA or
../shared/data.
"""

import argparse
import csv
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap, spearmanr

from bellm import Encoder
from bellm.tensors.similarity import paired_cosine_similarity

SETTINGS = (
    ("raw", "last", "none"),
    ("raw", "mean", "none"),
    ("raw", "mean", "last:8"),
    ("raw", "mean", "last:15"),
    ("prompteol", "last", "none"),
    ("prompteol", "last", "last:8"),
    ("bellm", "last", "none"),
    ("bellm", "last", "last:8"),
)


@dataclass(frozen=True)
class Row:
    """One measured setting."""

    prompt: str
    pooling: str
    bidirectional: str
    spearman: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True)
class Pairs:
    """Scored sentence pairs."""

    left: list[str]
    right: list[str]
    gold: NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16")
    parser.add_argument("--quick", action="store_true", help="the first three settings on 300 pairs (seed 0)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pairs = read_pairs(data_folder() / "stsbenchmark" / "sts-test.csv", 300 if options.quick else None)
    encoder = Encoder.from_pretrained(options.model, dtype=options.dtype)
    settings = SETTINGS[:3] if options.quick else SETTINGS
    rows = [measure(encoder, pairs, *setting) for setting in settings]
    title = f"STS-Benchmark test, {len(pairs.gold)} pairs, {encoder.name}, {encoder.dtype_name}"
    Console().print(table(title, rows))
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "pairs": len(pairs.gold)}
        options.json.write_text(json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def data_folder() -> Path:
    """The folder of research data, if there is one."""
    folder = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"No research data in {folder}: set BELLM_DATA to a folder with stsbenchmark/sts-test.csv.")
    return folder


def read_pairs(file: Path, count: int | None = None) -> Pairs:
    """Read STS-Benchmark's tab-separated pairs, all or a sample drawn with seed 0."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) >= 7]
    if count is not None:
        rows = [rows[number] for number in np.random.default_rng(0).permutation(len(rows))[:count]]
    return Pairs([row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows]))


def measure(encoder: Encoder, pairs: Pairs, prompt: str, pooling: str, bidirectional: str) -> Row:
    """Spearman of cosine with gold, and its bootstrap interval over pairs (percentile, seed 0)."""
    variant = encoder.replace(prompt=prompt, pooling=pooling, bidirectional=bidirectional)
    started = time.perf_counter()
    vectors = variant.encode([*pairs.left, *pairs.right])
    seconds = time.perf_counter() - started
    cosines = paired_cosine_similarity(vectors[: len(pairs.gold)], vectors[len(pairs.gold) :])
    interval = bootstrap(
        (cosines, pairs.gold),
        lambda a, b: spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    score = spearmanr(cosines, pairs.gold).statistic
    return Row(prompt, pooling, bidirectional, 100 * score, 100 * interval.low, 100 * interval.high, seconds)


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table("prompt", "pooling", "open layers", "Spearman x100", "95 % interval", "seconds", title=title)
    for row in rows:
        interval = f"{row.low:.1f} to {row.high:.1f}"
        grid.add_row(row.prompt, row.pooling, row.bidirectional, f"{row.spearman:.2f}", interval, f"{row.seconds:.0f}")
    return grid


if __name__ == "__main__":
    main()
