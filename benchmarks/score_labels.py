"""Label scores of `LabelScorer` against a few lines of transformers: the same numbers, prompts a CPU second.

Prompts are sentences of STS-Benchmark's test pairs in a sentiment prompt, without and with eight solved examples before
them, which all prompts share. The peers are a loop over prompts and labels, and padded batches of 16 prompts with their
labels, with the sum over the vocabulary in float64. Errors are against the same model in float64. Each runs in turns,
and CPU seconds are counted, so that other work on the machine matters little.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure_sts import data_folder, read_pairs
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm import Encoder
from bellm.augment import LabelScorer

INSTRUCTION = "Decide whether the sentiment of the sentence is negative or positive.\n"
SHOWN = (
    ("The soup was cold and the waiter rude.", "negative"),
    ("A lovely walk along the river in the sun.", "positive"),
    ("The train was late again, and nobody said why.", "negative"),
    ("Her garden is the finest in the street.", "positive"),
    ("I would not stay in this hotel for free.", "negative"),
    ("They laughed until the lights came on.", "positive"),
    ("The second half of the book is a chore.", "negative"),
    ("It is the best bread in town.", "positive"),
)
LABELS = ("negative", "positive")
LONG_LABELS = ("rather negative", "rather positive")
BATCH = 16

Scores = NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias (smollm2)")
    parser.add_argument("--prompts", type=int, default=96, help="sentences of each row (96)")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many rounds counts (3)")
    parser.add_argument("--quick", action="store_true", help="16 sentences, one round")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.rounds = 16, 1
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    encoder = Encoder.from_pretrained(options.model, dtype="float32")
    sentences = read_pairs(data_folder() / "stsbenchmark" / "sts-test.csv", options.prompts).left
    shown = "".join(f'Sentence: "{text}"\nSentiment: {label}\n\n' for text, label in SHOWN)
    rows: dict[str, dict[str, float]] = {}
    for name, before, labels in (
        ("zero-shot", "", LABELS),
        ("zero-shot, labels of two words", "", LONG_LABELS),
        ("eight examples", shown, LABELS),
    ):
        prompts = [f'{INSTRUCTION}{before}Sentence: "{text}"\nSentiment:' for text in sentences]
        rows[name] = measure(encoder, prompts, labels, options.rounds)
    speeds_table = Table("prompts", "tokens", "bellm", "loop", "padded", "of loop", "of padded")
    errors_table = Table("prompts", "bellm to loop", "error of bellm", "of the loop", "of the loop, sum in float32")
    for name, row in rows.items():
        speeds = [f"{row[each]:.1f}" for each in ("bellm", "loop", "padded")]
        ratios = [f"{row['bellm'] / row[each]:.1f}" for each in ("loop", "padded")]
        speeds_table.add_row(name, f"{row['tokens']:.0f}", *speeds, *ratios)
        errors = (row[each] for each in ("difference", "error", "loop_error", "float32_loop_error"))
        errors_table.add_row(name, *(f"{each:.1e}" for each in errors))
    Console().print(speeds_table, errors_table)
    Console().print(
        f"Prompts a CPU second, {len(sentences)} prompts, {options.model} in float32 on {platform.machine()}."
    )
    if options.json:
        record = {"model": options.model, "prompts": options.prompts, "machine": platform.machine(), "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(encoder: Encoder, prompts: Sequence[str], labels: Sequence[str], rounds: int) -> dict[str, float]:
    """Prompts a CPU second of each way, the largest difference of a score, and the largest errors against float64."""
    scorer = LabelScorer(encoder)
    with encoder.causal() as model:
        ways: dict[str, Callable[[], Scores]] = {
            "bellm": lambda: scorer.score(prompts, labels),
            "loop": lambda: looped(model, encoder.tokenizer, prompts, labels),
            "padded": lambda: padded(model, encoder.tokenizer, prompts, labels),
        }
        scorer.score(prompts[:2], labels)  # Checks and fuses modules once.
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, Scores] = {}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.process_time()
                scores[name] = way()
                seconds[name].append(time.process_time() - start)
        exact = looped(in_float64(model), encoder.tokenizer, prompts, labels)
        rounded = looped(model, encoder.tokenizer, prompts, labels, torch.float32)
    tokens = float(np.mean([len(encoder.tokenizer(prompt).input_ids) for prompt in prompts]))
    return {name: len(prompts) / min(each) for name, each in seconds.items()} | {
        "difference": largest(scores["bellm"] - scores["loop"]),
        "error": largest(scores["bellm"] - exact),
        "loop_error": largest(scores["loop"] - exact),
        "float32_loop_error": largest(rounded - exact),
        "tokens": tokens,
    }


def largest(differences: Scores) -> float:
    """The largest of them, whatever its sign."""
    return float(np.abs(differences).max())


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes in float64, norms too, which transformers has in float32."""
    copied = copy.deepcopy(model).double()
    for module in copied.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(exact_norm, module)
    return copied


def exact_norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the dtype of the states."""
    scale: torch.Tensor = torch.rsqrt(states.square().mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * states * scale  # type: ignore[no-any-return]


@torch.inference_mode()
def looped(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    dtype: torch.dtype = torch.float64,
) -> Scores:
    """One prompt with one label at a time; `dtype` is that of the sum over the vocabulary."""
    scores = np.zeros((len(prompts), len(labels)))
    for row, prompt in enumerate(prompts):
        start = len(tokenizer(prompt).input_ids)
        for column, label in enumerate(labels):
            ids = torch.tensor([tokenizer(f"{prompt} {label}").input_ids])
            log_probs = model(input_ids=ids).logits[0, start - 1 : -1].to(dtype).log_softmax(-1)
            scores[row, column] = log_probs.gather(1, ids[0, start:, None]).sum()
    return scores


@torch.inference_mode()
def padded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], labels: Sequence[str]
) -> Scores:
    """Padded batches of prompts of similar length with all their labels, logits at the label alone."""
    scores = np.zeros((len(prompts), len(labels)))
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for first in range(0, len(order), BATCH):
        cells = [(row, column) for row in order[first : first + BATCH] for column in range(len(labels))]
        rows = [tokenizer(f"{prompts[row]} {labels[column]}").input_ids for row, column in cells]
        starts = [len(tokenizer(prompts[row]).input_ids) for row, _ in cells]
        longest = max(map(len, rows))
        keep = longest - min(starts) + 1
        left = torch.tensor([[0] * (longest - len(row)) + row for row in rows])  # Padded left: labels are at the end.
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=left, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
        log_probs = logits[:, :-1].double().log_softmax(-1)
        for index, (row, column) in enumerate(cells):
            count = len(rows[index]) - starts[index]
            scores[row, column] = log_probs[index, -count:].gather(1, left[index, -count:, None]).sum()
    return scores


if __name__ == "__main__":
    main()
