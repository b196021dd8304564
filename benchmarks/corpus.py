"""Corpus embedding: memory and time up to a million lines, resuming after a kill, and the overhead of the folder.

Lines are made on the spot (seed 0) and go through a tiny random model, so that everything but the model shows; the
overhead is measured with a real one. Each job is a process of its own, whose peak memory the system counts.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging

from bellm import Encoder
from bellm.corpus import job
from bellm.corpus.job import CorpusProgress, embed_corpus
from bellm.corpus.row_ranges import SHARD_ROWS

WORDS = [consonant + vowel + end for consonant in "bdfgklmnprst" for vowel in "aeiou" for end in ("n", "r", "st", "ll")]
LINES = (100_000, 1_000_000)
QUICK_LINES = (10_000, 100_000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="model of the overhead: Hub id, folder, GGUF file or alias")
    parser.add_argument("--quick", action="store_true", help="ten and a hundred thousand lines, a small overhead run")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.job:
        run_job(*options.job)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.model, quick=options.quick)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, model: str, *, quick: bool) -> dict[str, Any]:
    """All figures."""
    encoder = str(folder / "encoder")
    tiny_encoder().save_pretrained(encoder)
    growth = []
    for lines in QUICK_LINES if quick else LINES:
        corpus = write_lines(folder / f"{lines}.txt", lines)
        growth.append({"lines": lines, **finished(encoder, corpus, folder / f"{lines}")})
    return {
        "machine": platform.processor() or platform.machine(),
        "growth": growth,
        "nothing_to_do": finished(encoder, corpus, folder / f"{lines}"),
        "resumed": resumed(encoder, folder / f"{growth[0]['lines']}.txt", folder / "killed"),
        "overhead": overhead(model, folder, 256 if quick else 2048),
    }


def tiny_encoder() -> Encoder:
    """A Llama of two layers with a vocabulary of whole words, its weights drawn with seed 0."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    model = LlamaForCausalLM(config).eval()
    return Encoder.from_pretrained(model, tokenizer=wrapped, bidirectional="all", prompt="raw", pooling="mean")


def write_lines(path: Path, count: int) -> Path:
    """Lines of 5 to 15 words, the same for the same count."""
    drawn = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for length in drawn.integers(5, 16, count):
            file.write(" ".join(WORDS[word] for word in drawn.integers(0, len(WORDS), length)) + "\n")
    return path


def run_job(encoder: str, corpus: str, out: str) -> None:
    """Embed in this process, and say how long it took and when the first rows were done."""
    loaded = Encoder.from_pretrained(encoder)
    start = time.perf_counter()
    first: list[float] = []

    def watch(_: CorpusProgress) -> None:
        first.append(time.perf_counter() - start)

    report = embed_corpus(loaded, [corpus], out, progress=watch)
    print(json.dumps({"seconds": report.seconds, "new_rows": report.new_rows, "first": min(first, default=0.0)}))


def started(encoder: str, corpus: Path, out: Path) -> subprocess.Popen[str]:
    """A job in a process of its own, on one thread: more of them only wait for each other on a tiny model."""
    command = [sys.executable, __file__, "--job", encoder, str(corpus), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(encoder: str, corpus: Path, out: Path) -> dict[str, Any]:
    """Run a job to its end; its times, start of Python included in that of the CPU, and its peak memory."""
    process = started(encoder, corpus, out)
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"The job on {corpus.name} ended with {process.returncode}.")
    # macOS counts bytes where Linux counts KiB.
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {**json.loads(said), "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mib": peak}


def resumed(encoder: str, corpus: Path, out: Path) -> dict[str, Any]:
    """Kill a job half-way and run it again."""
    whole = sum(1 for _ in corpus.open("rb"))
    process = started(encoder, corpus, out)
    while process.poll() is None and len(list(out.glob("shards/*.parquet"))) * SHARD_ROWS < whole / 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = finished(encoder, corpus, out)
    kept = whole - again["new_rows"]
    return {"lines": whole, "kept": kept, "first_new_rows_after": again["first"]}


def overhead(model: str, folder: Path, lines: int) -> dict[str, Any]:
    """Share of a run that is not the model's, with four shards; and the same texts encoded in one call."""
    encoder = Encoder.from_pretrained(model)
    corpus = write_lines(folder / "overhead.txt", lines)
    texts = corpus.read_text(encoding="utf-8").splitlines()
    encoder.encode(texts[:32])
    start = time.perf_counter()
    encoder.encode_with_stats(texts)
    one_call = time.perf_counter() - start
    with timed_spans() as seconds:
        report = embed_corpus(encoder, [str(corpus)], folder / "overhead", shard_rows=lines // 4)
    return {
        "model": encoder.name,
        "lines": lines,
        "seconds": report.seconds,
        "embedding": sum(seconds),
        "share": 1 - sum(seconds) / report.seconds,
        "one_call": one_call,
    }


@contextmanager
def timed_spans() -> Iterator[list[float]]:
    """Count the seconds that jobs spend in the encoder."""
    seconds: list[float] = []
    embed_span = job.embed_rows

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        encoded = list(embed_span(*arguments, **options))
        seconds.append(time.perf_counter() - start)
        return encoded

    job.embed_rows = timed
    try:
        yield seconds
    finally:
        job.embed_rows = embed_span


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    table = Table("lines", "seconds", "lines/s", "CPU seconds", "peak MiB", title="A tiny model, shards of 8192 rows")
    for row in found["growth"]:
        rate = row["lines"] / row["seconds"]
        figures = (f"{row['seconds']:.1f}", f"{rate:,.0f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_mib']:.0f}")
        table.add_row(f"{row['lines']:,}", *figures)
    Console().print(table)
    resumed, overhead, last = found["resumed"], found["overhead"], found["growth"][-1]
    print(
        f"Killed with {resumed['kept']:,} of {resumed['lines']:,} lines done: the first new rows came "
        f"{resumed['first_new_rows_after']:.1f} s after the same command began. With all {last['lines']:,} lines done, "
        f"proving that took {found['nothing_to_do']['seconds']:.1f} s."
    )
    print(
        f"{overhead['model']}, {overhead['lines']} lines in four shards: {overhead['seconds']:.1f} s, "
        f"{100 * overhead['share']:.2f} % of them outside the encoder; in one call of the encoder "
        f"{overhead['one_call']:.1f} s."
    )


if __name__ == "__main__":
    main()
