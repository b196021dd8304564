"""Exports of one encoder in their runtimes against bellm's engine: texts per CPU second, and STS-Benchmark beside it.

All systems take turns on the same texts in this one process: short sentences without a prompt, with PromptEOL, and
documents. CPU time is that of all threads. `cosine` is that with the engine's vector, mean and least. STS is Spearman
x100 on pairs of the test part, on which nothing was chosen; differences under two points are noise for 300 pairs.
llama.cpp takes causal and wholly open models only: it runs the same prompt causally. vLLM is not among them: it takes
an environment of its own.

`--matrix` prints instead what every format holds, by open layers, pooling and prompt, on a tiny model: the distance
from the encoder, measured in a process without bellm, or that it is refused. `--memory` exports a random model of a
billion weights, and prints the largest memory of its process and of the proof's, over the size of the weights.

Exports are kept in bellm's cache. Needs the research data (BELLM_DATA or ../shared/data), but for `--matrix`.
"""

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from flops import machine
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM
from workloads import Workload, draw

from bellm import BellmError, Encoder
from bellm.compress import drop_layers
from bellm.engine.graph_encoder import GraphEncoder
from bellm.export import export
from bellm.export.export_formats import FormatName
from bellm.export.exporting import write_export
from bellm.export.onnx_graph import convert_to_openvino, quantize_graph
from bellm.io.atomic import atomic_directory, make_folder
from bellm.io.cache import default_cache_folder
from bellm.saving import weights_digest
from bellm.tensors.similarity import paired_cosine_similarity
from bellm.types import Vectors

SETTINGS: dict[str, dict[str, Any]] = {
    "raw": {"prompt": "raw", "pooling": "mean"},
    "prompteol": {"prompt": "prompteol", "pooling": "last"},
    "documents": {"prompt": "raw", "pooling": "mean"},
}

MATRIX: tuple[FormatName, ...] = ("sentence-transformers", "transformers", "onnx", "openvino", "gguf", "tei")

Embed = Callable[[Sequence[str]], Vectors]


@dataclass
class System:
    """One runtime on one workload."""

    workload: str
    name: str
    embed: Embed
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    vectors: Vectors | None = None

    def run(self, texts: Sequence[str]) -> None:
        """Embed, and keep CPU time and vectors."""
        started = time.process_time()
        self.vectors = np.asarray(self.embed(texts), dtype=np.float32)
        self.seconds.append(time.process_time() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--bidirectional", default="last:8", help="open layers; 'none' and 'all' fit all systems")
    parser.add_argument("--pairs", type=int, default=300, help="sentence pairs; a tenth as many documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--static", action="store_true", help="also a table: the vocabulary is embedded, which takes long"
    )
    parser.add_argument("--matrix", action="store_true", help="what each format holds, on a tiny model")
    parser.add_argument("--formats", nargs="+", choices=MATRIX, default=MATRIX, help="of --matrix and --memory")
    parser.add_argument("--memory", action="store_true", help="memory of exporting a billion weights")
    parser.add_argument("--quick", action="store_true", help="four layers, 20 pairs, one round")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    if options.matrix:
        print_matrix(("transformers", "gguf") if options.quick else options.formats)
        return
    if options.memory:
        print_memory(random_encoder(options.model, 64 if options.quick else 4096), options.formats)
        return
    if options.quick:
        options.pairs, options.rounds = 20, 1
    encoder: Encoder = Encoder.from_pretrained(options.model, dtype="float32", bidirectional="none", max_tokens=512)
    if options.quick:
        encoder = drop_layers(encoder, encoder.num_layers - 4)
        options.bidirectional = "last:2"
    encoder = encoder.replace(bidirectional=options.bidirectional)
    rows = []
    for name, settings in SETTINGS.items():
        changed = encoder.replace(**settings)
        rows += measure(name, changed, options.pairs, options.rounds, with_static=options.static)
        Console().print(table(f"{encoder.name}, {encoder.num_layers} layers, {machine()}", rows))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def measure(name: str, encoder: Encoder, num_pairs: int, rounds: int, *, with_static: bool) -> list[dict[str, Any]]:
    """Let all systems embed the texts of a workload in turn."""
    is_documents = name == "documents"
    num = max(num_pairs // 10, 2) if is_documents else num_pairs
    workload = Workload(name, encoder.config.prompt.name, encoder.config.pooling, num, num, documents=is_documents)
    texts = draw(workload, encoder.tokenizer)
    systems = open_systems(name, encoder, with_static=with_static)
    for each in systems:
        each.embed(texts.bare[:4])
    for number in range(rounds):
        for index in np.random.default_rng(number).permutation(len(systems)):
            systems[index].run(texts.bare)
    rows = []
    reference = systems[0].vectors
    assert reference is not None
    for each in systems:
        assert each.vectors is not None
        row: dict[str, Any] = {"workload": name, "system": each.name, "note": each.note}
        row["texts_per_cpu_second"] = len(texts.bare) / statistics.median(each.seconds)
        row["ratio"] = statistics.median(systems[0].seconds) / statistics.median(each.seconds)
        if each.vectors.shape == reference.shape:
            cosines = paired_cosine_similarity(each.vectors, reference)
            row |= {"cosine": float(cosines.mean()), "least_cosine": float(cosines.min())}
        if len(texts.gold):
            scores = paired_cosine_similarity(each.vectors[texts.left], each.vectors[texts.right])
            row["sts"] = 100 * float(spearmanr(scores, texts.gold).statistic)
        rows.append(row)
    return rows


def open_systems(name: str, encoder: Encoder, *, with_static: bool) -> list[System]:
    """The engine, and every runtime that is at hand."""
    onnx = exported(encoder, "onnx")
    int8 = derived(onnx, "int8", lambda folder: quantize_graph(folder / "model.onnx", 8))
    systems = [System(name, "bellm", lambda texts: encoder.encode(texts, progress=False))]
    for title, folder in {
        "ONNX Runtime": onnx,
        "ONNX Runtime, 8 bits": int8,
        "OpenVINO": derived(onnx, "openvino", convert_to_openvino),
        "OpenVINO, 8 bits": derived(int8, "openvino", convert_to_openvino),
    }.items():
        systems.append(System(name, title, GraphEncoder.from_pretrained(folder).encode))
    systems.append(System(name, "sentence-transformers", open_sentence_transformers(encoder)))
    if with_static:
        systems.append(System(name, "static", open_static(encoder)))
    if find_spec("llama_cpp"):
        causal = "" if len(encoder.config.bidirectional) in (0, encoder.num_layers) else "causal"
        systems.append(System(name, "llama.cpp", open_llama_cpp(encoder), causal))
    return systems


def open_sentence_transformers(encoder: Encoder) -> Embed:
    """Batches of 32."""
    from sentence_transformers import SentenceTransformer

    folder = exported(encoder, "sentence-transformers")
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    return lambda texts: model.encode(list(texts), show_progress_bar=False)


def open_static(encoder: Encoder) -> Embed:
    """The table in model2vec."""
    from model2vec import StaticModel

    table = StaticModel.from_pretrained(exported(encoder, "static"))
    return lambda texts: table.encode(list(texts))


def open_llama_cpp(encoder: Encoder) -> Embed:
    """Keys and values in float32, one text after the other."""
    import llama_cpp

    if len(encoder.config.bidirectional) not in (0, encoder.num_layers):
        encoder = encoder.replace(bidirectional="none")
    path = exported(encoder, "gguf") / "model.gguf"
    kinds = {"type_k": 0, "type_v": 0}
    model = llama_cpp.Llama(str(path), embedding=True, n_ctx=768, n_batch=768, n_ubatch=768, verbose=False, **kinds)
    template = encoder.config.template_for("text")
    return lambda texts: model.embed([template.replace("{text}", text) for text in texts], normalize=False)


def exported(encoder: Encoder, name: FormatName) -> Path:
    """Folder of an export in bellm's cache."""
    asked = repr((weights_digest(encoder.model), encoder.describe(), name)).encode()
    folder = default_cache_folder() / "exports" / hashlib.sha256(asked).hexdigest()[:24]
    if not folder.exists():
        make_folder(folder.parent)
        with atomic_directory(folder) as draft:
            write_export(encoder, name, draft)
    return folder


def derived(source: Path, name: str, change: Callable[[Path], None]) -> Path:
    """Copy of an exported folder with a change to it, in the cache."""
    folder = source.with_name(f"{source.name}-{name}")
    if not folder.exists():
        with atomic_directory(folder) as draft:
            shutil.copytree(source, draft, dirs_exist_ok=True)
            change(draft)
            if name == "openvino":
                path = draft / "export.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "format": "openvino"}))
    return folder


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows as they are printed."""
    shown = Table(title=title)
    for column in ("workload", "system", "texts / CPU s", "x engine", "cosine", "least", "STS-B", "note"):
        shown.add_column(column)
    for row in rows:
        numbers = [f"{row['texts_per_cpu_second']:.1f}", f"{row['ratio']:.2f}"]
        numbers += [f"{row[key]:.4f}" if key in row else "-" for key in ("cosine", "least_cosine")]
        numbers.append(f"{row['sts']:.1f}" if "sts" in row else "-")
        shown.add_row(row["workload"], row["system"], *numbers, row["note"])
    return shown


def random_encoder(model: str, width: int) -> Encoder:
    """A Llama of four layers with random weights, and the tokenizer of a model."""
    tokenizer = Encoder.from_pretrained(model).tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=7 * width // 2,
        num_hidden_layers=4,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        max_position_embeddings=1024,
        initializer_range=2 / width**0.5,
    )
    torch.manual_seed(0)
    return Encoder.from_pretrained(LlamaForCausalLM(config).eval(), tokenizer=tokenizer, bidirectional="last:2")


def print_matrix(formats: Sequence[FormatName]) -> None:
    """Export a tiny model with every combination of open layers, pooling and prompt, as Markdown."""
    encoder = random_encoder("smollm2", 32)
    print("| open layers, pooling, prompt | " + " | ".join(formats) + " |\n" + "|---" * (len(formats) + 1) + "|")
    for opened, pooling, prompt in product(("none", "last:2", "all"), ("last", "mean"), ("prompteol", "instruct")):
        changed = encoder.replace(bidirectional=opened, pooling=pooling, prompt=prompt)
        print(f"| {opened}, {pooling}, {prompt} | {' | '.join(cell(changed, name) for name in formats)} |", flush=True)


def print_memory(encoder: Encoder, formats: Sequence[FormatName]) -> None:
    """Largest memory of this process and of those that prove the export, over the bytes of the weights."""
    size = sum(weight.numel() * weight.element_size() for weight in encoder.model.base_model.parameters())
    for name in formats:
        with tempfile.TemporaryDirectory() as work:
            export(encoder, name, Path(work, "out"))
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ours, proof = (1024 * resource.getrusage(kind).ru_maxrss / size for kind in kinds)
        print(
            f"{name}: weights {size / 1e9:.2f} GB; memory {ours:.2f} of that here, {proof:.2f} in the proof", flush=True
        )


def cell(encoder: Encoder, name: FormatName) -> str:
    """The largest distance of an export, or that it is refused."""
    with tempfile.TemporaryDirectory() as work:
        try:
            return f"{export(encoder, name, Path(work, 'out')).max_difference:.0e}"
        except BellmError as error:
            return "refused" if "cannot hold" in str(error) else f"- ({error})"[:60]


if __name__ == "__main__":
    main()
