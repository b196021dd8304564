"""Where the time of a batch goes: matrix products, attention, element-wise work, calls.

The workloads of benchmarks/encode.py on bellm alone, on a CPU, under torch's profiler (which itself costs a few
percent). `shared` are tokens that need no computing since another text begins with them. Needs the research data
(BELLM_DATA or ../shared/data).
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from flops import common_prefix, machine
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from workloads import MAX_TOKENS, WORKLOADS, Workload, draw

from bellm import Encoder
from bellm.engine.memory_budget import default_batch_tokens
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.readout import HiddenStateReadout
from bellm.engine.tokenization import deduplicate

PRODUCTS = {"aten::mm", "aten::addmm"}
ATTENTION = {"aten::bmm", "aten::_softmax"}
ELEMENTS = {
    f"aten::{name}{suffix}"
    for name in ("add", "mul", "copy", "silu", "pow", "cat", "neg", "index_select", "sum", "div", "rsqrt", "fill")
    for suffix in ("", "_")
}
STEPS = ("products", "attention", "elements", "calls")


@dataclass(frozen=True)
class Row:
    """One workload."""

    workload: str
    batch_tokens: int
    """Median of the batches profiled."""
    shared: float
    """Share of all tokens that need no computing."""
    milliseconds: float
    """A batch under the profiler, median."""
    products: float
    """Share of that time; so are the next three."""
    attention: float
    elements: float
    calls: float
    """Everything else: Python, torch's dispatch, views."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a Llama-like model (smollm2)")
    parser.add_argument("--tokens", type=int, help="most tokens of a batch (what bellm takes)")
    parser.add_argument("--quick", action="store_true", help="fewer texts and batches")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    encoder = Encoder.from_pretrained(options.model, max_tokens=MAX_TOKENS, device="cpu")
    encoder.tokenizer.chat_template = None
    count = 2 if options.quick else 6
    rows = [measure(encoder, workload, options.tokens, count, quick=options.quick) for workload in WORKLOADS]
    Console().print(table(f"{encoder.name}, {encoder.dtype_name}; {machine()}", rows))
    if options.json:
        record = {"machine": machine(), "dtype": encoder.dtype_name, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(encoder: Encoder, workload: Workload, budget: int | None, count: int, *, quick: bool) -> Row:
    """Profile the first batches of a workload but one, which warms up."""
    chosen = encoder.replace(prompt=workload.prompt, pooling=workload.pooling, bidirectional=workload.bidirectional)
    texts = draw(workload, encoder.tokenizer, quick=quick)
    tokens, _ = deduplicate(chosen.tokenize(texts.bare), by_span=False)
    packed_model = check_packing(chosen.model).packed_model
    assert packed_model is not None, chosen.batching_mode
    budget = budget or default_batch_tokens(chosen.model)
    with torch.inference_mode():
        batching_mode = PackedRunner(packed_model, tokens, HiddenStateReadout(workload.pooling, encoder.num_layers))
        batches = batching_mode.batches(range(len(tokens)), budget)
        batching_mode.vectors(batches[0])
        chosen_batches = batches[1 : count + 1] or batches[:1]
        found = [steps(batching_mode, batch) for batch in chosen_batches]
    start = tokens.ids[0][: common_prefix(min(tokens.ids), max(tokens.ids))]
    sizes = {id(batch): computed([tokens.ids[number] for number in batch], start) for batch in batches}
    seconds = statistics.median(took for took, _ in found)
    shares = {step: statistics.median(parts[step] / took for took, parts in found) for step in STEPS}
    size = int(statistics.median(sizes[id(batch)] for batch in chosen_batches))
    return Row(
        workload=workload.name,
        batch_tokens=size,
        shared=1 - sum(sizes.values()) / sum(map(len, tokens.ids)),
        milliseconds=1000 * seconds,
        **shares,
    )


def steps(batching_mode: PackedRunner, batch: Sequence[int]) -> tuple[float, dict[str, float]]:
    """Seconds of a batch, and of each step in it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        batching_mode.vectors(batch)
        seconds = time.perf_counter() - started
    parts = dict.fromkeys(STEPS, 0.0)
    for event in profiler.key_averages():
        for step, names in (("products", PRODUCTS), ("attention", ATTENTION), ("elements", ELEMENTS)):
            if event.key in names:
                parts[step] += event.self_cpu_time_total / 1e6
    parts["calls"] = seconds - sum(parts.values())
    return seconds, parts


def computed(rows: Sequence[Sequence[int]], start: Sequence[int]) -> int:
    """Tokens of a batch that the closed layers work on; what all texts start with has been computed before."""
    return sum(len(row) - common_prefix(before, row) for before, row in zip([start, *rows], rows, strict=False))


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table("workload", "tokens a batch", "shared", "ms", *STEPS, title=title)
    for row in rows:
        shares = (row.products, row.attention, row.elements, row.calls)
        cells = (f"{row.shared:.0%}", f"{row.milliseconds:.0f}", *(f"{share:.0%}" for share in shares))
        grid.add_row(row.workload, str(row.batch_tokens), *cells)
    return grid


if __name__ == "__main__":
    main()
