"""A mixture of experts trained from scratch on plain text, read by its states and by its routers (MoEE).

A small OLMoE learns to predict the next token of WikiText-2 and sentences of Wikipedia, with its own tokenizer; minutes
on two cores. Then STS-Benchmark's test pairs are scored with its states (hidden), its routing weights, both side by
side (concat), and their sum with the weight that the training texts choose without labels; with intervals, and tests
against the states alone, corrected for all of the table. Two layers of states side by side are the control: a second
vector that is no routing. No figure chooses anything. Data: `plain` and `stsbenchmark` in BELLM_DATA or ../shared/data.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from flops import machine
from measure_sts import data_folder
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder, MultiViewEncoder
from bellm.evaluate import EvaluatedModel, evaluate
from bellm.report import statistics
from bellm.report.statistics import Difference
from bellm.types import Embedder, PoolingName

FILES = ("wikitext-2-raw/wiki.test.raw", "wikitext-2-tokens/valid.txt", "wiki1m_sample/wiki1m_for_simcse.txt")
POOLINGS: tuple[PoolingName, ...] = ("last", "mean")
TASK = "STSBenchmark"
VOCABULARY, LENGTH, ROWS = 4096, 128, 16
RATE, WARM_UP = 2e-3, 40
ALPHA_TEXTS = 500


def main() -> None:
    """Train where the model is not there yet, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help=f"of {ROWS} x {LENGTH} tokens (500); 0 trains nothing")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    parser.add_argument("--model", type=Path, help="folder that keeps the model, or has it already (none)")
    parser.add_argument("--quick", action="store_true", help="10 steps on a tenth of the texts, and one pooling")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = read_texts()[:: 10 if options.quick else 1]
    with tempfile.TemporaryDirectory() as place:
        folder = options.model or Path(place) / "model"
        if not (folder / "training.json").exists():
            train(texts, folder, 10 if options.quick else options.steps, options.seed)
        record = json.loads((folder / "training.json").read_text())
        rows = [row for pooling in POOLINGS[: 1 if options.quick else None] for row in measure(folder, texts, pooling)]
    gains = {str(number): Difference(**row["difference"]) for number, row in enumerate(rows) if row["difference"]}
    for number, gain in statistics.holm_correction(gains).items():
        rows[int(number)]["difference"] = asdict(gain)
    title = f"{TASK}, {record['steps']} steps, {record['tokens']} tokens, loss {record['loss']:.2f}, {machine()}"
    Console().print(table(title, rows))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **record, "rows": rows}, indent=1) + "\n")


def read_texts() -> list[str]:
    """Lines of the plain texts, without headings and empty ones."""
    lines = [line.strip() for name in FILES for line in (data_folder() / "plain" / name).open(encoding="utf-8")]
    return [line for line in lines if line and not line.startswith("=")]


def train(texts: list[str], folder: Path, steps: int, seed: int) -> None:
    """Train a tokenizer and a model, and save them with what was done."""
    started = time.perf_counter()
    tokenizer = train_tokenizer(texts)
    ids = [token for row in tokenizer(texts).input_ids for token in row]
    rows_RL = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            num_experts=16,
            num_experts_per_tok=4,
            max_position_embeddings=512,
            router_aux_loss_coef=0.01,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 - step / max(steps, 1))
    )
    order = torch.cat([torch.randperm(len(rows_RL)) for _ in range(steps * ROWS // len(rows_RL) + 1)])
    losses = [float("nan")]
    for step in track(range(steps), "training"):
        batch_BL = rows_RL[order[step * ROWS : (step + 1) * ROWS]]
        found = model(batch_BL, labels=batch_BL, output_router_logits=True)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append((found.loss - model.config.router_aux_loss_coef * found.aux_loss).item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "steps": steps,
        "seed": seed,
        "tokens": steps * ROWS * LENGTH,
        "tokens_of_the_texts": len(ids),
        "loss": float(np.nanmean(losses[-50:])) if steps else float(np.log(VOCABULARY)),
        "parameters": model.num_parameters(),
        "seconds": round(time.perf_counter() - started),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts, with a token before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", model_max_length=512)


def measure(folder: Path, texts: list[str], pooling: PoolingName) -> list[dict[str, Any]]:
    """Scores of every view with one pooling, and differences to the states alone."""
    hidden = Encoder.from_pretrained(folder, prompt="raw", pooling=pooling, dtype="float32")
    routing = hidden.with_settings(readout="routing")
    draw = np.random.default_rng(0).choice(len(texts), ALPHA_TEXTS, replace=False)
    summed = MultiViewEncoder.moee(hidden, texts=[texts[row] for row in draw])
    views: Mapping[str, Embedder] = {
        "hidden": hidden,
        "routing": routing,
        "concat": MultiViewEncoder([hidden, routing]),
        f"sum, alpha {summed.weights[1]:.3g}": summed,
        "hidden of two layers": hidden.with_settings(layer="-1,3"),
    }
    report = evaluate([EvaluatedModel.of(view, name) for name, view in views.items()], [TASK], data=data_folder())
    record = report.to_json()
    return [
        {
            "pooling": pooling,
            "read": run["model"],
            "numbers": view.embedding_dim,
            **run["scores"][TASK],
            "difference": run.get("differences", {}).get(TASK),
        }
        for run, view in zip((record, *record["compared"]), views.values(), strict=True)
    ]


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    grid = Table("pooling", "read", "numbers", "Spearman x100", "95 %", "over hidden", "95 %", "p", title=title)
    for row in rows:
        cells = [row["pooling"], row["read"], str(row["numbers"]), f"{row['value']:.2f}"]
        cells.append(f"{row['low']:.1f} to {row['high']:.1f}")
        if gain := row["difference"]:
            cells += [f"{gain['value']:+.2f}", f"{gain['low']:+.1f} to {gain['high']:+.1f}", f"{gain['p_value']:.3f}"]
        grid.add_row(*cells)
    return grid


if __name__ == "__main__":
    main()
