"""What tests/train/test_distributed.py runs in two processes: `torchrun --nproc-per-node 2 -m tests.train.together`.

Arguments: a saved encoder, and a folder for what came of it.
"""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bellm import Encoder
from bellm.errors import BellmError
from bellm.train.distributed import Distributed
from bellm.train.embedded_batch import EmbeddedBatch
from bellm.train.examples import Example
from bellm.train.loop import train
from bellm.train.objectives import GRL, InfoNCE, Objective
from bellm.train.recipe import LoRA, Recipe
from bellm.train.train_step import TrainStep
from tests.train import reference
from tests.train.rows import dataset, triplets

CASES: dict[str, tuple[Objective, list[Example]]] = {
    "halves": (InfoNCE(), triplets(6, negatives=2)),
    "symmetric": (InfoNCE(symmetric=True), triplets(4)),
    "unequal": (InfoNCE(), triplets(5)),
    "one row": (InfoNCE(), [Example("A heron waits.", ("It waits for a fish.", "A bird."), ("Snow fell.",))]),
    "generative": (GRL(), triplets(5, negatives=2)),
    "generative, one row": (GRL(), triplets(1)),
}
"""Objectives, and batches: some have fewer rows than there are processes."""

ADAPTED = {"adapted": triplets(3), "adapted, one row": triplets(1)}


def recipe(source: str) -> Recipe:
    return Recipe(model=source, tuning=LoRA(rank=2), batch_size=5, max_steps=4, learning_rate=5e-3, dev=score)


def score(encoder: Encoder) -> float:
    return float(encoder.encode(["A heron waits."]).sum())


def short(encoder: Encoder) -> Encoder:
    """One that cuts some texts, which are to be counted."""
    return encoder.replace(max_tokens=30, verify=False)


def refusal(encoder: Encoder) -> str:
    """Of a row that only the last process has."""
    rows = [*triplets(3), Example("A heron waits.", ("It waits.",))]
    with pytest.raises(BellmError) as refused:
        TrainStep(encoder, GRL()).learn(rows, 0)
    return str(refused.value)


def dropped_out(source: str) -> list[list[float]]:
    """Vectors of one anchor in each process, with dropout."""
    seen: list[list[float]] = []

    def objective(batch: EmbeddedBatch) -> torch.Tensor:
        seen.extend(batch.anchors_BD.tolist())
        return batch.anchors_BD.sum()

    encoder = reference.with_lora(Encoder.from_pretrained(source), dropout=0.5)
    TrainStep(encoder, objective).learn(triplets(1) * 2, 0)
    return seen


def without(encoder: Encoder) -> list[str]:
    """Weights that have no part in vectors, after a step."""
    TrainStep(encoder, InfoNCE()).learn(triplets(4), 0)
    return [name for name, each in encoder.model.named_parameters() if each.grad is None]


def main(source: str, folder: Path) -> None:
    distributed = Distributed()
    encoder = short(reference.exact(reference.with_lora(Encoder.from_pretrained(source))))
    learned = {}
    for name, (objective, examples) in CASES.items():
        learned[name] = asdict(TrainStep(encoder, objective, chunk_tokens=60).learn(examples, 0))
        save_file(reference.gradients(encoder.model), folder / f"{name} {distributed.rank}.safetensors")
    for name, examples in ADAPTED.items():
        learned[name] = asdict(TrainStep(encoder, InfoNCE()).adapt(examples, 0, mask_probability=0.3, layers=(2, 3)))
        save_file(reference.gradients(encoder.model), folder / f"{name} {distributed.rank}.safetensors")
    shown: list[int] = []
    trained = train(recipe(source), [(dataset(14), 1.0)], folder / "out", progress=lambda step, *_: shown.append(step))
    found = {
        "world": distributed.world_size,
        "learned": learned,
        "refusal": refusal(encoder),
        "without": without(Encoder.from_pretrained(source)),
        "dropped out": dropped_out(source),
        "shown": shown,
        "vector": trained.encode(["Snow"])[0].tolist(),
    }
    (folder / f"found {distributed.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for gradient checkpointing by its old name.
    main(sys.argv[1], Path(sys.argv[2]))
