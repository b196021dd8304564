"""What pruning does to embeddings, and to the language model beside them: SmolLM2 with fewer weights or fewer layers.

Spearman x100 on pairs of STS-Benchmark's dev and test sets (drawn with seed 0), with 95 % intervals and the paired
difference to the encoder as it was, and perplexity on WikiText-2's raw test text. A second table has the paired
differences of alpha's and OWL's allocation to the same share for every layer. Calibration texts are those of
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
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

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
from bellm.report.statistics import (
    BootstrapEstimate,
    Difference,
    bootstrap_estimate,
    holm_correction,
    paired_difference,
)
from bellm.tensors.similarity import paired_cosine_similarity

WINDOW = 256  # Tokens of a text whose perplexity is taken.
SETS = ("dev", "test")
RESAMPLES = 4000


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
    choices = product((0.5, 0.6, 0.7, 0.4, 0.3), reversed(get_args(PruneMethod)), get_args(Allocation))
    yield from (Cell(sparsity, method, allocation) for sparsity, method, allocation in choices)
    yield from (Cell(dropped=number, by=by) for number, by in product((6, 3, 9, 12, 15), get_args(DropBy)))


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
    sets = {name: read_pairs(folder / "stsbenchmark" / f"sts-{name}.csv", options.pairs or None) for name in SETS}
    train = read_pairs(folder / "stsbenchmark" / "sts-train.csv")
    texts = sorted({*train.left, *train.right}, key=len)
    texts = texts[:: len(texts) // options.texts][: options.texts]
    text = (folder / "plain" / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")
    encoder = Encoder.from_pretrained(options.model, bidirectional=options.bidirectional)
    done = {row["name"] for row in record["rows"]}
    wanted = [cell for cell in (Cell(), *cells(options.quick)) if cell.name not in done]
    for cell in wanted[: options.cells]:
        started = time.process_time()
        smaller = cell.apply(encoder, texts) if cell != Cell() else encoder
        row = {"name": cell.name, **asdict(cell), "cpu_seconds": round(time.process_time() - started, 1)}
        row["perplexity"] = perplexity(smaller, text, options.tokens)
        record["rows"].append(row)
        record["cosines"][cell.name] = {name: _cosines(smaller, pairs).tolist() for name, pairs in sets.items()}
        path.write_text(json.dumps(record, indent=1) + "\n")
    estimates = {
        name: {
            cell: bootstrap_estimate(np.array(cosines[name]), pairs.gold, resamples=RESAMPLES)
            for cell, cosines in record["cosines"].items()
        }
        for name, pairs in sets.items()
    }
    Console(width=120).print(table(record, estimates), comparison(record, estimates))


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


Estimates = dict[str, dict[str, BootstrapEstimate]]
"""By set, then by row."""


def table(record: dict[str, Any], estimates: Estimates) -> Table:
    """All rows that are there."""
    found = Table(
        title=f"{record['model']}, {record['bidirectional']}, {record['pairs']} pairs, {record['texts']} texts"
    )
    for heading in ("", "dev", "difference", "test", "difference", "perplexity", "CPU s"):
        found.add_column(heading, justify="right" if heading else "left")
    for row in record["rows"]:
        numbers = []
        for name in SETS:
            one, base = estimates[name][row["name"]], estimates[name][Cell().name]
            numbers += [f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]", _said(paired_difference(one, base))]
        found.add_row(row["name"], *numbers, f"{row['perplexity']:.1f}", f"{row['cpu_seconds']:.0f}")
    return found


def comparison(record: dict[str, Any], estimates: Estimates) -> Table:
    """Allocations against the same share for every layer, on the same pairs: each cell, and the mean over sparsities.

    p-values are corrected (Holm) for all cells of a column; means over sparsities are not among these.
    """
    rows = {row["name"]: row for row in record["rows"]}
    found = Table(title="minus uniform, points [95 %], p after Holm; perplexity as a multiple")
    for heading in ("", *SETS, "perplexity"):
        found.add_column(heading, justify="right" if heading else "left")
    others = [Cell(row["sparsity"], row["method"], row["allocation"]) for row in rows.values() if row["sparsity"]]
    pairs = [(each, replace(each, allocation="uniform")) for each in others if each.allocation != "uniform"]
    pairs = [(one, base) for one, base in pairs if base.name in rows]
    corrected = {
        name: holm_correction({one.name: paired_difference(of[one.name], of[base.name]) for one, base in pairs})
        for name, of in estimates.items()
    }
    for one, base in sorted(pairs, key=lambda pair: (pair[0].allocation, pair[0].method, pair[0].sparsity)):
        cells = [f"{_said(corrected[name][one.name])} p={corrected[name][one.name].p_value:.3f}" for name in SETS]
        found.add_row(one.name, *cells, f"{rows[one.name]['perplexity'] / rows[base.name]['perplexity']:.2f}")
    for allocation, method in product(("alpha", "owl"), (*get_args(PruneMethod), None)):
        same = [pair for pair in pairs if pair[0].allocation == allocation and method in (None, pair[0].method)]
        if not same:
            continue
        cells = []
        for name in SETS:
            both = [_mean([estimates[name][pair[side].name] for pair in same]) for side in (0, 1)]
            difference = paired_difference(*both)
            cells.append(f"{_said(difference)} p={difference.p_value:.3f}")
        ratios = [rows[one.name]["perplexity"] / rows[base.name]["perplexity"] for one, base in same]
        found.add_row(
            f"{allocation}, {method or 'all'}, mean of {len(same)}", *cells, f"{np.exp(np.mean(np.log(ratios))):.2f}"
        )
    return found


def _mean(estimates: list[BootstrapEstimate]) -> BootstrapEstimate:
    """Mean of scores on the same pairs, whose replicates draw the same pairs."""
    replicates_R = np.mean([one.resamples_R for one in estimates], axis=0)
    return BootstrapEstimate(float(np.mean([one.value for one in estimates])), replicates_R)


def _said(difference: Difference) -> str:
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


if __name__ == "__main__":
    main()
