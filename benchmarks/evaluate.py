"""The seven STS tasks through bellm and through sentence-transformers' own evaluators: the same model, texts and dtype.

Both give Spearman over all pairs of each set; the scores are shown beside each other. Raw text and mean pooling, no
chat template; sentence-transformers at the batch size that is fastest on a part of the texts. bellm starts with no kept
vectors, computes 1000 bootstrap replicates a task besides, and is timed again with its vectors kept. Rounds are
interleaved; figures are medians. Needs bellm[evaluate] and the research data (BELLM_DATA or ../shared/data).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import transformers
from flops import machine
from measure_sts import data_folder
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from bellm import Encoder
from bellm.data import STSPairs, read_sts
from bellm.data.task_names import STS
from bellm.evaluate import EvaluatedModel, STSTask, suite

BATCH_SIZES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Row:
    """One way to score the seven tasks."""

    system: str
    seconds: float
    ratio: float
    """How many times as fast as sentence-transformers' evaluators."""
    scores: Mapping[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a Llama-like model (smollm2)")
    parser.add_argument("--rounds", type=int, default=1, help="of each system (1)")
    parser.add_argument("--quick", action="store_true", help="100 pairs of each set")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sets = [part(read_sts(name, data_folder()), 100 if options.quick else None) for name in STS]
    with tempfile.TemporaryDirectory() as place:
        encoder = Encoder.from_pretrained(options.model, prompt="raw", pooling="mean")
        save_plain(encoder, place)
        peer = foreign(encoder, place)
        batch = best_batch(peer, sets)
        seconds: dict[str, list[float]] = {"sentence-transformers": [], "bellm": [], "bellm, vectors kept": []}
        scores: dict[str, Mapping[str, float]] = {}
        for number in range(options.rounds):
            cache = Path(place) / f"cache {number}"
            for system in seconds:
                started = time.perf_counter()
                ours = system != "sentence-transformers"
                scores[system] = by_bellm(encoder, sets, cache) if ours else by_evaluators(peer, sets, batch)
                seconds[system].append(time.perf_counter() - started)
    slow = statistics.median(seconds["sentence-transformers"])
    rows = [
        Row(name, statistics.median(took), slow / statistics.median(took), scores[name])
        for name, took in seconds.items()
    ]
    title = f"{sum(len(one.left) for one in sets)} pairs, {encoder.name}, {encoder.dtype_name}; {machine()}"
    Console().print(table(f"{title}; sentence-transformers in batches of {batch}", rows))
    if options.json:
        record = {"machine": machine(), "rounds": options.rounds, "batch": batch, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def part(whole: STSPairs, count: int | None) -> STSPairs:
    """Some pairs of a set, drawn with seed 0."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(whole.left))[:count])
    left, right, parts = ([column[number] for number in chosen] for column in (whole.left, whole.right, whole.parts))
    return STSPairs(whole.name, tuple(left), tuple(right), whole.gold_N[chosen], tuple(parts))


def save_plain(encoder: Encoder, place: str) -> None:
    """Write weights and a tokenizer without a chat template, for sentence-transformers to load."""
    with encoder.causal() as model:
        model.save_pretrained(place)
    encoder.tokenizer.chat_template = None
    encoder.tokenizer.save_pretrained(place)


def foreign(encoder: Encoder, place: str) -> SentenceTransformer:
    """The same model in sentence-transformers."""
    transformer = Transformer(place, model_kwargs={"dtype": encoder.model.dtype})
    return SentenceTransformer(
        modules=[transformer, Pooling(encoder.embedding_dim, "mean")], device=str(encoder.device)
    )


def best_batch(model: SentenceTransformer, sets: list[STSPairs]) -> int:
    """The fastest batch size on 64 texts of each set."""
    texts = [text for one in sets for text in one.left[:64]]
    model.encode(texts[:64], show_progress_bar=False)

    def seconds(size: int) -> float:
        started = time.perf_counter()
        model.encode(texts, batch_size=size, show_progress_bar=False)
        return time.perf_counter() - started

    return min(BATCH_SIZES, key=seconds)


def by_evaluators(model: SentenceTransformer, sets: list[STSPairs], batch: int) -> dict[str, float]:
    """sentence-transformers: an evaluator for each set."""
    found = {}
    for one in sets:
        evaluator = EmbeddingSimilarityEvaluator(
            list(one.left), list(one.right), list(one.gold_N), batch_size=batch, write_csv=False
        )
        found[one.name] = 100 * float(evaluator(model)["spearman_cosine"])
    return found


def by_bellm(encoder: Encoder, sets: list[STSPairs], cache: Path) -> dict[str, float]:
    """bellm: one run over all sets, with intervals."""
    tasks = [STSTask(pairs.name, data=pairs) for pairs in sets]
    [run] = suite.evaluate([EvaluatedModel.of(encoder, "bellm", cache)], tasks).runs
    return {task: score.value for task, score in run.scores.items()}


def table(title: str, rows: list[Row]) -> Table:
    """The rows for people."""
    grid = Table("system", "seconds", "ratio", *STS, title=title)
    for row in rows:
        grid.add_row(row.system, f"{row.seconds:.0f}", f"{row.ratio:.1f}", *(f"{row.scores[name]:.2f}" for name in STS))
    return grid


if __name__ == "__main__":
    main()
