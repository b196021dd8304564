"""What tests/train/test_processes.py runs in two processes: `torchrun --nproc-per-node 2 -m tests.train.together`.

Arguments: a saved encoder, and a folder for what came of it.
"""

import json
import sys
import warnings
from pathlib import Path

from safetensors.torch import save_file

from bellm import Encoder
from bellm.train.examples import Example
from bellm.train.learner import Learner
from bellm.train.loop import train
from bellm.train.objectives import Contrastive, Grl, Objective
from bellm.train.processes import Processes
from bellm.train.recipe import Lora, Recipe
from tests.train import reference
from tests.train.rows import dataset, triplets

CASES: dict[str, tuple[Objective, list[Example]]] = {
    "halves": (Contrastive(), triplets(6, negatives=2)),
    "symmetric": (Contrastive(symmetric=True), triplets(4)),
    "unequal": (Contrastive(), triplets(5)),
    "empty": (Contrastive(), [Example("A heron waits.", ("It waits for a fish.", "A bird."), ("Snow fell.",))]),
    "generative": (Grl(), triplets(5, negatives=2)),
    "generative, empty": (Grl(), triplets(1)),
}
"""Objectives, and batches: with two processes, some have a part that is empty."""

ADAPTED = {"two": triplets(3), "adapted, empty": triplets(1)}


def recipe(source: str) -> Recipe:
    return Recipe(model=source, tuning=Lora(rank=2), batch_size=5, max_steps=4, learning_rate=5e-3, dev=score)


def score(encoder: Encoder) -> float:
    return float(encoder.encode(["A heron waits."]).sum())


def main(source: str, folder: Path) -> None:
    processes = Processes()
    encoder = reference.with_lora(Encoder.load(source))
    losses = {}
    for name, (objective, examples) in CASES.items():
        losses[name] = Learner(encoder, objective, chunk_tokens=60).learn(examples, 0).loss
        save_file(reference.gradients(encoder.model), folder / f"{name} {processes.rank}.safetensors")
    for name, examples in ADAPTED.items():
        Learner(encoder, Contrastive()).adapt(examples, 0, share=0.3, layers=(2, 3))
        save_file(reference.gradients(encoder.model), folder / f"{name} {processes.rank}.safetensors")
    shown: list[int] = []
    trained = train(recipe(source), [(dataset(14), 1.0)], folder / "out", progress=lambda step, *_: shown.append(step))
    found = {"world": processes.world, "losses": losses, "shown": shown, "vector": trained.encode(["Snow"])[0].tolist()}
    (folder / f"found {processes.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for gradient checkpointing by its old name.
    main(sys.argv[1], Path(sys.argv[2]))
