"""What pruning does to embeddings, and to the language model beside them: SmolLM2 with fewer weights or fewer layers.

Spearman x100 on pairs of STS-Benchmark's dev and test sets (drawn with seed 0), with 95 % intervals and the paired
difference to the encoder as it was, and perplexity on WikiText-2's raw test text. Calibration texts are those of
STS-Benchmark's training set, in the encoder's prompt. Nothing is chosen on test pairs. Each row is written once it is
there: the same command goes on where it was stopped. Data: BELLM_DATA or ../shared/data.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import transformers
from measure_sts import Pairs, data_folder, read_pairs
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bellm import Encoder
from bellm.compress import drop_layers, prune
from bellm.compress.layer_dropping import DropBy
from bellm.compress.pruners import PruneMethod
from bellm.compress.pruning import Allocation
from bellm.report.statistics import bootstrap_estimate, paired_difference
from bellm.tensors.similarity import paired_cosine_similarity

WINDOW = 256  # Tokens of a text whose perplexity is taken.


@dataclass(frozen=True)
class Cell:
    """One way to make the encoder smaller."""

    sparsity: float = 0.0
    method: str = ""
    allocation: str = ""
    dropped: int = 0
    by: str = ""

    @property
    def name(self) -> str:
        """For tables and files."""
        if self.dropped:
            return f"{self.dropped} layers dropped, {self.by}"
        return f"{self.sparsity:.0%} {self.method} {self.allocation}" if self.sparsity else "as it was"

    def apply(self, encoder: Encoder, texts: list[str]) -> Encoder:
        """The smaller encoder."""
        if self.dropped:
            return drop_layers(encoder, self.dropped, by=self.by, texts=texts)  # type: ignore[arg-type]
        return prune(encoder, self.sparsity, method=self.method, allocation=self.allocation, texts=texts)  # type: ignore[arg-type]


def cells(quick: bool) -> Iterator[Cell]:
    """The most telling first."""
    if quick:
        yield from (Cell(0.6, method, "uniform") for method in ("magnitude", "wanda"))
        yield Cell(dropped=6, by="top")
        return
    yield from _prunings(0.6)
    yield from _drops(6, 3, 9)
    yield from _prunings(0.5)
    yield from _drops(1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15)
    yield from _prunings(0.7, 0.4, 0.3)


def _prunings(*sparsities: float) -> Iterator[Cell]:
    choices = product(sparsities, get_args(Allocation), reversed(get_args(PruneMethod)))
    return (Cell(sparsity, method, allocation) for sparsity, allocation, method in choices)


def _drops(*numbers: int) -> Iterator[Cell]:
    return (Cell(dropped=number, by=by) for number, by in product(numbers, get_args(DropBy)))


def main() -> None:
    """Measure what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--bidirectional", default="last:8", help="open layers")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of each set; 0 for all")
    parser.add_argument("--texts", type=int, default=128, help="calibration texts")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens for the perplexity")
    parser.add_argument("--cells", type=int, help="measure at most so many rows, and stop")
    parser.add_argument("--quick", action="store_true", help="two prunings and one drop on 40 pairs, nothing written")
    parser.add_argument("--json", type=Path, help="where rows are kept; default a temporary file")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.quick:
        options.pairs, options.texts, options.tokens = 40, 16, 512
    path = options.json or Path(tempfile.mkdtemp()) / "pruning.json"
    folder = data_folder()
    settings = {"bidirectional": options.bidirectional, "pairs": options.pairs, "texts": options.texts}
    record = {
        "model": options.model,
        **settings,
        "tokens": options.tokens,
        "machine": platform.machine(),
        "rows": [],
        "cosines": {},
    }
    if path.exists():
        known = json.loads(path.read_text())
        if any(known[name] != record[name] for name in ("model", *settings, "tokens")):
            raise SystemExit(f"{path} is of other settings: give another file.")
        record = {**record, **known}
    sets = {
        name: read_pairs(folder / "stsbenchmark" / f"sts-{name}.csv", options.pairs or None) for name in ("dev", "test")
    }
    train = read_pairs(folder / "stsbenchmark" / "sts-train.csv")
    texts = sorted({*train.left, *train.right}, key=len)
    texts = texts[:: len(texts) // options.texts][: options.texts]
    text = (folder / "plain" / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    encoder = Encoder.from_pretrained(options.model, bidirectional=options.bidirectional)
    done = {row["name"] for row in record["rows"]}
    wanted = [cell for cell in (Cell(), *cells(options.quick)) if cell.name not in done]
    for name, pairs in sets.items():
        if name not in record["cosines"]:
            record["cosines"][name] = _cosines(encoder, pairs).tolist()
    for cell in wanted[: options.cells]:
        started = time.process_time()
        smaller = cell.apply(encoder, texts) if cell != Cell() else encoder
        row = {"name": cell.name, **asdict(cell), "cpu_seconds": round(time.process_time() - started, 1)}
        for name, pairs in sets.items():
            base_N = np.array(record["cosines"][name])
            base, found = (
                bootstrap_estimate(cosines_N, pairs.gold, resamples=2000)
                for cosines_N in (base_N, base_N if cell == Cell() else _cosines(smaller, pairs))
            )
            row[name] = [found.value, found.low, found.high]
            row[f"{name}_difference"] = list(asdict(paired_difference(found, base)).values())
        row["perplexity"] = perplexity(smaller, text, options.tokens)
        record["rows"].append(row)
        path.write_text(json.dumps(record, indent=1) + "\n")
    Console().print(table(record))


def _cosines(encoder: Encoder, pairs: Pairs) -> NDArray[np.float64]:
    vectors = encoder.encode([*pairs.left, *pairs.right])
    return paired_cosine_similarity(*np.split(vectors, 2)).astype(np.float64)


@torch.inference_mode()
def perplexity(encoder: Encoder, text: str, num_tokens: int) -> float:
    """Perplexity of the causal model on the first tokens of a text, in windows of their own."""
    ids = encoder.tokenizer(text[: 12 * num_tokens], verbose=False).input_ids[:num_tokens]
    losses = []
    with encoder.causal() as model:
        for start in range(0, len(ids) - 1, WINDOW):
            ids_1L = torch.tensor([ids[start : start + WINDOW]])
            losses += [float(model(ids_1L, labels=ids_1L).loss)] * (ids_1L.shape[1] - 1)
    return math.exp(sum(losses) / len(losses))


def table(record: dict) -> Table:  # type: ignore[type-arg]
    """All rows that are there."""
    found = Table(
        title=f"{record['model']}, {record['bidirectional']}, {record['pairs']} pairs, {record['texts']} texts"
    )
    for heading in ("", "dev", "difference", "test", "difference", "perplexity", "CPU s"):
        found.add_column(heading, justify="right" if heading else "left")
    for row in record["rows"]:
        numbers = []
        for name in ("dev", "test"):
            value, low, high = row[name]
            difference, least, most, _ = row[f"{name}_difference"]
            numbers += [f"{value:.1f} [{low:.1f}, {high:.1f}]", f"{difference:+.1f} [{least:+.1f}, {most:+.1f}]"]
        found.add_row(row["name"], *numbers, f"{row['perplexity']:.1f}", f"{row['cpu_seconds']:.0f}")
    return found


if __name__ == "__main__":
    main()
