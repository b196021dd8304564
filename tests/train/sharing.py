"""What tests/train/test_sharded.py runs in two processes that share a model's weights.

Arguments: a saved encoder, and a folder for what came of it.
"""

import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from bellm import Encoder
from bellm.backbone.architecture import get_layers
from bellm.train.distributed import Distributed, gather_parameters
from bellm.train.examples import Example
from bellm.train.loop import train
from bellm.train.objectives import InfoNCE
from bellm.train.recipe import MNTP, FullFineTuning, LoRA, Recipe
from bellm.train.train_step import StepResult, TrainStep
from tests.train import reference
from tests.train.rows import dataset, triplets
from tests.train.together import score

HELD = 1 << 30  # More tokens than any step here has.
TUNINGS: dict[str, LoRA | FullFineTuning] = {"adapters": LoRA(rank=3), "all weights": FullFineTuning()}
WAYS: dict[str, dict[str, Any]] = {
    "cached": {"max_held_tokens": 0},
    "held": {"max_held_tokens": HELD},
    "checkpointed": {"gradient_checkpointing": True, "max_held_tokens": 0},
}
ONE = [Example("A heron waits.", ("It waits for a fish.",), ("Snow fell in the morning, and the street was white.",))]
STEPS = {"vectors": triplets(5), "one row": ONE, "adapted": triplets(3)}
"""Of five rows one process has two, and so fewer chunks; one row goes to both."""


def recipe(source: str, tuning: str) -> Recipe:
    return Recipe(
        model=source,
        encoder_options={"dtype": "float32"},
        tuning=TUNINGS[tuning],
        batch_size=5,
        mntp=MNTP(1, learning_rate=1e-3),
        max_steps=3,
        learning_rate=5e-3,
        weight_decay=0.01,
        gradient_checkpointing=True,  # Padded batches for one process too.
        dev=score,
        dev_every=2,
    )


def encoder_of(source: str, tuning: str) -> Encoder:
    encoder = Encoder.from_pretrained(source, verify=False)
    return reference.exact(encoder if tuning == "all weights" else reference.with_lora(encoder))


def steps(train_step: TrainStep) -> dict[str, tuple[StepResult, dict[str, Tensor]]]:
    """What each step was, and the gradients that it gave this process."""
    found = {}
    for name, examples in STEPS.items():
        if name == "adapted":
            learned = train_step.adapt(examples, 0, mask_probability=0.3, layers=(2, 3))
        else:
            learned = train_step.learn(examples, 0)
        found[name] = learned, reference.gradients(train_step.encoder.model)
    return found


def whole_layers(encoder: Encoder) -> list[int]:
    """How many layers are whole, each time that one computes; filled while they do."""
    counts: list[int] = []
    layers = [layer.module for layer in get_layers(encoder.model)]

    def count(*_: object) -> None:
        counts.append(sum(not isinstance(next(layer.parameters()), DTensor) for layer in layers))

    for layer in layers:
        next(layer.children()).register_forward_pre_hook(count)
    return counts


def main(source: str, folder: Path) -> None:
    distributed, found = Distributed(), {}
    for tuning in TUNINGS:
        for runner, options in WAYS.items():
            encoder = encoder_of(source, tuning)
            whole = sum(each.numel() for each in encoder.model.parameters())
            train_step = TrainStep(encoder, InfoNCE(), chunk_tokens=60, sharded=True, **options)
            parts: list[Any] = list(encoder.model.parameters())
            found[f"{tuning} {runner} share"] = sum(each.to_local().numel() for each in parts) / whole
            counts = whole_layers(encoder)
            for name, (learned, gradients) in steps(train_step).items():
                found[f"{tuning} {runner} {name}"] = asdict(learned)
                if tensors := gather_parameters(gradients, distributed):
                    save_file(tensors, folder / f"{tuning} {runner} {name}.safetensors")
            found[f"{tuning} {runner} whole layers"] = [min(counts), max(counts)]
        shared = replace(recipe(source, tuning), sharded=True)
        trained = train(shared, [(dataset(14), 1.0)], folder / tuning, checkpoint_every=2)
        found[f"{tuning} vector"] = trained.encode(["Snow"])[0].tolist()
    (folder / f"found {distributed.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for gradient checkpointing by its old name.
    main(sys.argv[1], Path(sys.argv[2]))
