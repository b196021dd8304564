"""A step of contrastive LoRA training through bellm and through sentence-transformers' trainer.

The same model, texts, adapters, batch and precision: triplets with PromptEOL around each text, last-token pooling,
InfoNCE with hard negatives (MultipleNegativesRankingLoss) at temperature 0.05, AdamW. Both see the same batches and
their losses are shown beside each other. Each system runs in a process of its own, in turns; figures are medians over
the steps of all rounds but each process's first. `--growth` shows step time and peak memory against the batch size,
with chunks of cached gradients, over 2048 triplets each. Needs bellm[bench,train]; texts are generated, so that anyone
can run it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from flops import machine
from rich.console import Console
from rich.table import Table

from bellm import Encoder
from bellm.prompts import PROMPTS, SLOT

SYSTEMS = ("sentence-transformers", "bellm", "bellm, cached")
RANK, ALPHA, RATE = 16, 32, 2e-4
_SHOWN = 4  # Losses, in the table.


@dataclass(frozen=True)
class Steps:
    """What a system did in one process."""

    system: str
    batch: int
    seconds: list[float]
    losses: list[float]
    tokens: int
    """Tokens of a step, prompts included, padding not."""
    peak_bytes: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a Llama-like model (smollm2)")
    parser.add_argument("--batch", type=int, default=64, help="triplets of a step (64)")
    parser.add_argument("--steps", type=int, default=4, help="in a round, the first not counted (4)")
    parser.add_argument("--rounds", type=int, default=3, help="of each system (3)")
    parser.add_argument("--growth", action="store_true", help="batches of 64, 256 and 1024 triplets, cached, instead")
    parser.add_argument("--quick", action="store_true", help="one round of 2 steps of 16 triplets")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(run(options.one[0], Path(options.one[1]), options.batch, options.steps))))
        return
    if options.quick:
        options.batch, options.steps, options.rounds = 16, 2, 1
    with tempfile.TemporaryDirectory() as place:
        save(options.model, Path(place))
        if options.growth:
            batches = (16, 32) if options.quick else (64, 256, 1024)
            # As many triplets for each: what is kept of shapes that were seen grows with their number.
            found = [apart("bellm, cached", place, batch, 2 * batches[-1] // batch) for batch in batches]
        else:
            rounds = range(options.rounds)
            found = [apart(system, place, options.batch, options.steps) for _ in rounds for system in SYSTEMS]
    rows = table_of(found)
    Console().print(shown(rows, f"{options.model}, LoRA rank {RANK}, {machine()}"))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def save(model: str, place: Path) -> None:
    """Write the model as bellm loads it, and its weights with a tokenizer without chat template for the peer."""
    encoder = Encoder.from_pretrained(model, prompt="prompteol", pooling="last")
    encoder.save_pretrained(place / "encoder")
    with encoder.causal() as plain:
        plain.save_pretrained(place / "plain")
    encoder.tokenizer.chat_template = None
    encoder.tokenizer.save_pretrained(place / "plain")


def apart(system: str, place: str, batch: int, steps: int) -> Steps:
    """Run a system in a process of its own."""
    command = [sys.executable, __file__, "--batch", str(batch), "--steps", str(steps), "--one", system, place]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Steps(**json.loads(done.stdout.splitlines()[-1]))


def run(system: str, place: Path, batch: int, steps: int) -> Steps:
    """Some steps of a system in this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    triplets = list(sentences(batch * steps))
    took = theirs if system == "sentence-transformers" else ours
    seconds, losses = took(place, triplets, batch, cached="cached" in system)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "plain")
    rows = tokenizer([prompted(text) for triplet in triplets for text in triplet]).input_ids
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Steps(system, batch, seconds[1:], losses, sum(map(len, rows)) // steps, peak)


def ours(
    place: Path, triplets: Sequence[Sequence[str]], batch: int, *, cached: bool
) -> tuple[list[float], list[float]]:
    """Seconds and losses of each step of bellm."""
    from bellm.train import Example, LoRA, Recipe
    from bellm.train.train_step import TrainStep
    from bellm.train.trainable import load_trainable

    recipe = Recipe(model=str(place / "encoder"), tuning=LoRA(RANK, ALPHA))
    encoder, autocast = load_trainable(recipe)
    train_step = TrainStep(encoder, recipe.objective, autocast=autocast, max_held_tokens=0 if cached else 1 << 30)
    parameters = [each for each in encoder.model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    seconds, losses = [], []
    for start in range(0, len(triplets), batch):
        examples = [
            Example(anchor, (positive,), (other,)) for anchor, positive, other in triplets[start : start + batch]
        ]
        started = time.perf_counter()
        losses.append(train_step.learn(examples, seed=start).loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds, losses


def theirs(
    place: Path, triplets: Sequence[Sequence[str]], batch: int, *, cached: bool
) -> tuple[list[float], list[float]]:
    """Seconds and losses of each step of sentence-transformers' trainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    assert not cached
    dtype = Encoder.from_pretrained(place / "encoder").model.dtype
    body = Transformer(str(place / "plain"), model_kwargs={"dtype": dtype})
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "lasttoken")])
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    columns = {
        name: [prompted(triplet[number]) for triplet in triplets]
        for number, name in enumerate(("anchor", "positive", "negative"))
    }
    clock = _clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            batch_sampler=_in_order(),
        )
        trainer = SentenceTransformerTrainer(
            model, arguments, Dataset.from_dict(columns), loss=MultipleNegativesRankingLoss(model), callbacks=[clock]
        )
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return clock.seconds, losses


def _clock() -> Any:
    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Time of each step, from its first text to its new weights."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.started = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    return Clock()


def _in_order() -> Any:
    from sentence_transformers.base.sampler import DefaultBatchSampler

    class InOrder(DefaultBatchSampler):  # type: ignore[misc]
        """The rows as they come."""

        def __iter__(self) -> Iterator[list[int]]:
            rows = list(range(len(self.sampler)))
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]

    return InOrder


def prompted(text: str) -> str:
    """A text in the prompt."""
    return PROMPTS["prompteol"].template.replace(SLOT, text)


def sentences(count: int) -> Iterator[tuple[str, str, str]]:
    """Triplets of generated sentences as long as those of NLI data: log-normal, 17, 9 and 10 words on average."""
    draw = np.random.default_rng(0)
    words = "a the two people man woman dog child near under street river old red quickly plays sits holds ball bench "
    pool = np.array((words + "music crowd water horse green coat is are looking at with of and market train").split())
    for _ in range(count):
        lengths = np.exp(draw.normal([2.71, 2.12, 2.19], [0.54, 0.44, 0.47])).astype(int).clip(3, 100)
        one, same, other = (" ".join(draw.choice(pool, length)).capitalize() + "." for length in lengths)
        yield one, same, other


def table_of(found: Sequence[Steps]) -> list[dict[str, Any]]:
    """A row for each system and batch."""
    rows: list[dict[str, Any]] = []
    for system, batch in dict.fromkeys((one.system, one.batch) for one in found):
        here = [one for one in found if (one.system, one.batch) == (system, batch)]
        seconds = statistics.median(second for one in here for second in one.seconds)
        rows.append(
            {
                "system": system,
                "triplets": batch,
                "seconds": seconds,
                "tokens_per_second": here[0].tokens / seconds,
                "ratio": 0.0,
                "peak_bytes": max(one.peak_bytes for one in here),
                "losses": here[0].losses,
            }
        )
    for row in rows:
        row["ratio"] = rows[0]["seconds"] / row["seconds"] * row["triplets"] / rows[0]["triplets"]
    return rows


def shown(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The rows for people."""
    table = Table("system", "triplets", "s a step", "tokens/s", "ratio", "peak MiB", "losses", title=title)
    for row in rows:
        losses = " ".join(f"{loss:.3f}" for loss in row["losses"][:_SHOWN])
        cells = f"{row['triplets']}|{row['seconds']:.2f}|{row['tokens_per_second']:.0f}|{row['ratio']:.2f}"
        table.add_row(row["system"], *cells.split("|"), f"{row['peak_bytes'] / 2**20:.0f}", losses)
    return table


if __name__ == "__main__":
    main()
