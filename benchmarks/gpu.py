"""Tokens per second on a GPU against sentence-transformers and a plain transformers loop, after a check of the vectors.

Random Llama-shaped models (weights do not matter for speed) of 135 million, 1.2 and 7 billion parameters in bfloat16;
sentences, the same in PromptEOL, and documents of 512 tokens; no, the last 8 and all layers open. All systems share the
weights, run in turns and give figures as medians over the rounds; the others, which open nothing, run causally.
`share` is the matrix arithmetic that the encoder cannot avoid (benchmarks/flops.py) over the time and the rate of large
matrix products on this device. Then one training step, and its memory beside what `bellm train --plan` expects.

Stops after --seconds, and says what it left out. On a CPU only --quick runs: a tiny model, the same lines.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from flops import Shape, machine, needed_flops
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.adapters import add_lora
from bellm.errors import BellmWarning
from bellm.prompts import resolve_prompt
from bellm.tensors.similarity import cosine_similarity
from bellm.train.examples import Example
from bellm.train.objectives import InfoNCE
from bellm.train.train_step import TrainStep
from bellm.types import PoolingName, Vectors

WORDS = 30_000
MAX_TOKENS = 512
BATCH_SIZE = 64
SIZES = {
    "tiny": (10, 64, 4, 2, 176),
    "135M": (30, 576, 9, 3, 1536),
    "1.2B": (16, 2048, 32, 8, 8192),
    "7B": (32, 4096, 32, 8, 14336),
}
"""Layers, width, heads, key heads and inner width."""
MAPS = ("none", "last:8", "all")


@dataclass(frozen=True)
class Workload:
    """Texts of random words."""

    name: str
    prompt: str
    pooling: PoolingName
    num: int
    words: tuple[int, int]
    """Fewest and most words of a text."""


WORKLOADS = (
    Workload("raw", "raw", "mean", 2048, (5, 40)),
    Workload("prompteol", "prompteol", "last", 2048, (5, 40)),
    Workload("documents", "raw", "mean", 128, (MAX_TOKENS, MAX_TOKENS)),
)


@dataclass(frozen=True)
class Row:
    """One system on one cell."""

    size: str
    workload: str
    bidirectional: str
    system: str
    tokens_per_second: float
    ratio: float
    """To sentence-transformers on the same texts."""
    share: float
    """Of the device's rate of matrix products."""
    peak_gb: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["135M", "1.2B", "7B"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="begin no cell after so many (230)")
    parser.add_argument("--quick", action="store_true", help="a tiny model on whatever device there is")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.quick:
        parser.error("no CUDA device: only --quick runs on a CPU")
    warnings.simplefilter("ignore", BellmWarning)
    transformers.logging.set_verbosity_error()
    deadline = time.monotonic() + options.seconds
    place = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rate = product_rate(device)
    console = Console()
    console.print(f"{place}; {machine()}; matrix products in bfloat16: {rate / 1e12:.1f} TFLOP/s", soft_wrap=True)
    checks = check_vectors(device, "tiny" if options.quick else "135M")
    console.print(checks)
    rows: list[Row] = []
    steps: list[dict[str, Any]] = []
    for size in ["tiny"] if options.quick else options.sizes:
        if time.monotonic() > deadline:
            console.print(f"{size}: left out, time is up")
            continue
        with loaded(size, device, torch.bfloat16) as (model, tokenizer):
            for cell in cells(size, model, tokenizer, rate, options.rounds, options.quick, deadline):
                rows += cell
            steps.append(training_step(size, model, tokenizer))
    console.print(table(rows))
    for step in steps:
        console.print(step)
    if options.json:
        figures = {"device": place, "torch": torch.__version__, "products_per_second": rate, "vectors": checks}
        figures |= {"rows": [asdict(row) for row in rows], "steps": steps}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


@torch.inference_mode()
def product_rate(device: str) -> float:
    """Operations a second of one large product in bfloat16."""
    width = 8192 if device == "cuda" else 512
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    passes = 20
    return passes * 2 * width**3 / seconds(lambda: [torch.mm(left, right) for _ in range(passes)])


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """How long work takes, what it queued included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of some made-up words, and for those of the prompt."""
    prompt = resolve_prompt("prompteol").template.replace("{text}", " ")
    words = [*dict.fromkeys(prompt.split()), *(f"w{number}" for number in range(WORDS))]
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=MAX_TOKENS
    )


@contextmanager
def loaded(size: str, device: str, dtype: torch.dtype) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerFast]]:
    """A random model, made on the device, and its memory given back at the end."""
    layers, width, heads, key_heads, inner = SIZES[size]
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    try:
        yield model, tokenizer
    finally:
        del model
        if device == "cuda":
            torch.cuda.empty_cache()


def draw(workload: Workload, num: int) -> list[str]:
    """Texts of random words."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(workload.words[0], workload.words[1], num, endpoint=True)
    return [" ".join(f"w{word}" for word in rng.integers(WORDS, size=length)) for length in lengths]


def check_vectors(device: str, size: str) -> list[dict[str, Any]]:
    """Vectors of the device in bfloat16 against those of the CPU in float32: cosines, and the 10 nearest neighbors."""
    texts = draw(WORKLOADS[0], 64)
    found = []
    with loaded(size, "cpu", torch.float32) as (exact, tokenizer):
        encoder = Encoder.from_pretrained(exact, tokenizer=tokenizer, pooling="mean")
        wanted = {one: encoder.replace(bidirectional=one).encode(texts) for one in MAPS}
        state = exact.state_dict()
        with loaded(size, device, torch.bfloat16) as (model, _):
            model.load_state_dict(state)
            encoder = Encoder.from_pretrained(model, tokenizer=tokenizer, pooling="mean")
            for one in MAPS:
                opened = encoder.replace(bidirectional=one)
                vectors = opened.encode(texts)
                cosines = (unit(vectors) * unit(wanted[one])).sum(1)
                found.append(
                    {
                        "bidirectional": one,
                        "kernel": opened.attention_kernel,
                        "least_cosine": float(cosines.min()),
                        "mean_cosine": float(cosines.mean()),
                        "shared_neighbors": shared_neighbors(vectors, wanted[one]),
                    }
                )
    return found


def unit(vectors_ND: Vectors) -> Vectors:
    """Vectors of length 1."""
    found: Vectors = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return found


def shared_neighbors(left_ND: Vectors, right_ND: Vectors, k: int = 10) -> float:
    """Share of the k nearest texts by cosine that both have, the text itself left out."""
    nearest = [np.argsort(-cosine_similarity(each, each), axis=1)[:, 1 : k + 1] for each in (left_ND, right_ND)]
    return float(np.mean([len({*a} & {*b}) / k for a, b in zip(*nearest, strict=True)]))


def cells(
    size: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rate: float,
    rounds: int,
    quick: bool,
    deadline: float,
) -> Iterator[list[Row]]:
    """Rows of one workload after the other."""
    encoder = Encoder.from_pretrained(model, tokenizer=tokenizer, max_tokens=MAX_TOKENS)
    shape = Shape.of(model.config)
    with tempfile.TemporaryDirectory() as folder:
        peer = make_peer(model, tokenizer, folder)
        for workload in WORKLOADS:
            if time.monotonic() > deadline:
                print(f"{size}, {workload.name}: left out, time is up")
                continue
            num = workload.num // (64 if quick else 8 if size == "7B" else 1)
            texts = draw(workload, num)
            template = resolve_prompt(workload.prompt).template
            filled = [template.replace("{text}", f" {text} ") for text in texts]
            ids = [row[:MAX_TOKENS] for row in tokenizer(filled).input_ids]
            systems = systems_of(encoder, peer, workload, texts, filled)
            times: dict[str, list[float]] = {name: [] for name in systems}
            peaks = dict.fromkeys(systems, 0.0)
            for number in range(rounds + 1):  # The first one warms up.
                for name in np.random.default_rng(number).permutation(list(systems)):
                    reset_peak()
                    times[name].append(seconds(systems[name]))
                    peaks[name] = max(peaks[name], peak_gb())
            tokens = sum(map(len, ids))
            theirs = statistics.median(times["sentence-transformers"][1:])
            rows = []
            for name, (_, *measured) in times.items():
                median = statistics.median(measured)
                opened = name.partition(" ")[2] or "none"
                first = min(encoder.replace(bidirectional=opened).config.bidirectional, default=None)
                needed = needed_flops(ids, shape, first_open=first, last_only=workload.pooling == "last")
                system = name.partition(" ")[0]
                figures = tokens / median, theirs / median, needed / median / rate, peaks[name]
                rows.append(Row(size, workload.name, opened, system, *figures))
            yield rows


def make_peer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: str) -> Transformer:
    """sentence-transformers' module, which loads from a folder only, with the weights that all share."""
    config = LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": 1, "hidden_size": 64, "head_dim": 16})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(folder, max_seq_length=MAX_TOKENS)
    transformer.model = model.get_decoder()
    return transformer


def systems_of(
    encoder: Encoder, peer: Transformer, workload: Workload, texts: Sequence[str], filled: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; bellm with each map."""
    mode = {"last": "lasttoken", "mean": "mean"}[workload.pooling]
    width = encoder.model.config.hidden_size
    their = SentenceTransformer(modules=[peer, Pooling(width, mode)], device=str(encoder.device))

    def loop() -> None:
        with torch.inference_mode(), encoder.causal() as model:
            for start in range(0, len(filled), BATCH_SIZE):
                batch = encoder.tokenizer(
                    list(filled[start : start + BATCH_SIZE]),
                    padding=True,
                    truncation=True,
                    max_length=MAX_TOKENS,
                    return_tensors="pt",
                ).to(encoder.device)
                batch.pop("token_type_ids", None)
                states = model.get_decoder()(**batch).last_hidden_state.float()
                (states * batch["attention_mask"][..., None]).sum(1).cpu()

    systems: dict[str, Callable[[], object]] = {
        "sentence-transformers": lambda: their.encode(list(filled), batch_size=BATCH_SIZE, show_progress_bar=False),
        "transformers": loop,
    }
    for one in MAPS:
        opened = encoder.replace(bidirectional=one, prompt=workload.prompt, pooling=workload.pooling)
        systems[f"bellm {one}"] = partial(opened.encode, texts, progress=False)
    return systems


def training_step(size: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Seconds and memory of a contrastive step on adapters, 64 triplets of sentences, the last 8 layers open."""
    encoder = Encoder.from_pretrained(model, tokenizer=tokenizer, bidirectional="last:8", prompt="prompteol")
    encoder.model.requires_grad_(False)
    encoder = encoder.with_model(add_lora(encoder.model, rank=16, alpha=32, dropout=0.0, targets="all-linear"))
    texts = draw(WORKLOADS[0], 3 * 64)
    triplets = [Example(texts[start], (texts[start + 1],), (texts[start + 2],)) for start in range(0, len(texts), 3)]
    step = TrainStep(encoder, InfoNCE())
    step.learn(triplets, 0)
    reset_peak()
    taken = seconds(lambda: step.learn(triplets, 1))
    return {"size": size, "step_seconds": round(taken, 4), "peak_gb": round(peak_gb(), 3)}


def reset_peak() -> None:
    """Count the device's memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Most memory since then, in GB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def table(rows: Sequence[Row]) -> Table:
    """All rows."""
    shown = Table("model", "texts", "open", "system", "tokens/s", "x st", "share", "peak GB")
    for row in rows:
        shown.add_row(
            row.size,
            row.workload,
            row.bidirectional,
            row.system,
            f"{row.tokens_per_second:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.share:.0%}",
            f"{row.peak_gb:.1f}",
        )
    return shown


if __name__ == "__main__":
    main()
