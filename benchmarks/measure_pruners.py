"""What pruning rests on, measured on a real model and its own calibration texts.

Spectra: how many exponents the bound of AlphaPruning's code moves, log10(0.95 peak) where 0.95 peak is meant. Errors:
squared error of the outputs of each matrix over their squares on the texts, by method. Memory: the peak of a process
that prunes with few and with many texts, which grows by the states of one layer where those of all are not held.
Texts are those of STS-Benchmark's training set, in the encoder's prompt. Data: BELLM_DATA or ../shared/data.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import transformers
from measure_sts import data_folder, read_pairs
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bellm import Encoder
from bellm.backbone.layerwise import LayerwisePass, equal_length_batches
from bellm.backbone.weight_matrices import find_matrices
from bellm.compress import drop_layers, hill_alpha, prune, spread_texts
from bellm.compress.pruners import InputStatistics, PruneMethod, prune_matrix, relative_error
from bellm.compress.spectra import eigenvalues
from bellm.engine.memory_budget import default_batch_tokens

MOVED = 0.001  # Share by which an exponent has to differ to count as moved.


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--bidirectional", default="last:8", help="open layers")
    parser.add_argument(
        "--sparsity", type=float, default=0.5, help="share of the weights of each matrix for the errors"
    )
    parser.add_argument("--texts", type=int, default=128, help="calibration texts for the errors")
    parser.add_argument("--memory", default="256,2048", help="few and many texts for the memory")
    parser.add_argument("--only", choices=("spectra", "errors", "memory"), help="measure this alone")
    parser.add_argument("--peak", type=int, help="prune with so many texts in this process, and print its peak as JSON")
    parser.add_argument("--quick", action="store_true", help="three layers and few texts")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.quick:
        options.texts, options.memory = 16, "16,64"
    encoder = Encoder.from_pretrained(options.model, bidirectional=options.bidirectional)
    if options.quick:
        encoder = drop_layers(encoder, encoder.num_layers - 3)
    train = read_pairs(data_folder() / "stsbenchmark" / "sts-train.csv")
    texts = sorted({*train.left, *train.right}, key=len)
    if options.peak:
        print(json.dumps(peak_of_pruning(encoder, spread_texts(texts, options.peak))))
        return
    started, console = time.process_time(), Console(width=120)
    if options.only in (None, "spectra"):
        console.print(spectra(encoder))
    if options.only in (None, "errors"):
        console.print(errors(encoder, spread_texts(texts, options.texts), options.sparsity))
    console.print(f"{time.process_time() - started:.0f} CPU s")
    if options.only in (None, "memory"):
        console.print(memory([int(number) for number in options.memory.split(",")]))


def spectra(encoder: Encoder) -> str:
    """How many exponents another bound moves, and how far."""
    matrices = [matrix for layer in find_matrices(encoder.model) for matrix in layer]
    apart = []
    for matrix in matrices:
        values_N = eigenvalues(matrix.weight_OI)
        apart.append(abs(alpha_of_their_bound(values_N) / hill_alpha(values_N) - 1))
    moved = sum(each > MOVED for each in apart)
    return f"spectra: the bound moves {moved} of {len(matrices)} matrices, by up to {max(apart):.0%}"


def alpha_of_their_bound(values_N: NDArray[np.float64]) -> float:
    """AlphaPruning's loop with its lower bound: eigenvalues are compared with the logarithm of 0.95 of the peak."""
    values_N = np.sort(values_N)
    values_N = values_N[values_N > values_N.max() * 1e-12]
    counts, edges = np.histogram(np.log10(values_N), 100)
    peak, best = 10 ** edges[counts.argmax()], (np.inf, np.nan)
    for index, start in enumerate(values_N[:-1]):
        if np.log10(0.95 * peak) <= start <= 1.5 * peak:
            tail = values_N[index:]
            alpha = 1 + len(tail) / np.log(tail / start).sum()
            distance = np.abs(1 - (tail / start) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
            best = min(best, (distance, alpha))
    return float(best[1])


@torch.no_grad()
def errors(encoder: Encoder, texts: list[str], sparsity: float) -> Table:
    """Relative errors of the three methods, the mean over layers of each matrix; the layers below are whole."""
    methods = get_args(PruneMethod)
    batches = equal_length_batches(encoder.tokenize(texts).ids, default_batch_tokens(encoder.model))
    forward = LayerwisePass(encoder.model, batches)
    found: dict[str, list[list[float]]] = {}
    for matrices in find_matrices(encoder.model):
        statistics = {matrix.name: InputStatistics() for matrix in matrices}

        def add(name: str, rows_NI: Tensor, known: dict[str, InputStatistics] = statistics) -> None:
            known[name].add(rows_NI, with_gram=True)

        forward.observe(matrices, add)
        for matrix in matrices:
            weight_OI, inputs = matrix.weight_OI.float(), statistics[matrix.name]
            gram_II = torch.as_tensor(inputs.gram_II)
            pruned = (prune_matrix(weight_OI, round(sparsity * weight_OI.numel()), one, inputs) for one in methods)
            found.setdefault(matrix.name, []).append([relative_error(weight_OI, each, gram_II) for each in pruned])
        forward.advance()
    every = [row for rows in found.values() for row in rows]
    ordered = sum(row[2] < row[1] < row[0] for row in every)
    title = f"squared error of the outputs, {sparsity:.0%} removed, {len(texts)} texts"
    caption = f"SparseGPT's is below Wanda's, and that below magnitude's, in {ordered} of {len(every)} matrices"
    table = Table("mean over layers", *methods, title=title, caption=caption)
    for name, rows in [*found.items(), ("all", every)]:
        table.add_row(name, *(f"{100 * value:.1f} %" for value in np.mean(rows, axis=0)))
    return table


def memory(numbers: list[int]) -> Table:
    """Peaks of processes that prune with these numbers of texts, each above what it held before."""
    table = Table(
        "texts", "tokens", "peak, MB", "states of one layer, MB", "of all layers, MB", title="memory of pruning"
    )
    peaks = []
    for number in numbers:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--peak", str(number)], capture_output=True, text=True, check=True
        )
        peaks.append(json.loads(done.stdout))
        one, layers = peaks[-1]["states"] / 1e6, peaks[-1]["layers"]
        table.add_row(
            str(number), str(peaks[-1]["tokens"]), f"{peaks[-1]['peak'] / 1e6:.0f}", f"{one:.1f}", f"{one * layers:.0f}"
        )
    grown, states = (peaks[-1][name] - peaks[0][name] for name in ("peak", "states"))
    table.caption = f"from the first to the last the peak grows by {grown / states:.1f} times the states of one layer"
    return table


def peak_of_pruning(encoder: Encoder, texts: list[str]) -> dict[str, int]:
    """Prune by Wanda, and say how far the resident size of this process rose above what it was."""
    tokens = sum(len(ids) for ids in encoder.tokenize(texts).ids)
    width, size = encoder.model.config.hidden_size, encoder.model.dtype.itemsize
    prune(encoder, 0.5, texts=texts[:2])  # What is done once.
    Path("/proc/self/clear_refs").write_text("5")  # Begins the peak anew.
    before = _status("VmRSS")
    prune(encoder, 0.5, texts=texts)
    return {
        "tokens": tokens,
        "states": tokens * width * size,
        "layers": encoder.num_layers,
        "peak": _status("VmHWM") - before,
    }


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
