"""When what is learned, and how fast.

A run may have a stage before the vectors, which has a schedule of its own.
"""

import math
from dataclasses import dataclass

from bellm.train.recipe import Recipe


@dataclass(frozen=True)
class TrainPhase:
    """A part of training with a schedule of its own."""

    adapts: bool
    """Whether it is the adaptation rather than the vectors."""
    step: int
    """In the stage, from 0."""
    steps: int
    learning_rate: float


def phase_at(step: int, total: int, recipe: Recipe) -> TrainPhase:
    """The stage that a step of a run is in."""
    first = recipe.mntp.steps if recipe.mntp else 0
    if recipe.mntp and step < first:
        return TrainPhase(True, step, first, recipe.mntp.learning_rate)
    return TrainPhase(False, step - first, total - first, recipe.learning_rate)


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """The learning rate of a step as a share of its height: up in a line, down as the recipe's schedule says."""
    warm = math.ceil(recipe.warmup * total)
    if step < warm:
        return (step + 1) / warm
    left = (total - step) / max(total - warm, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[recipe.schedule]


def num_steps(per_epoch: int, recipe: Recipe) -> int:
    """Steps of a run, given the batches of an epoch."""
    first = recipe.mntp.steps if recipe.mntp else 0
    steps = first + max(1, round(recipe.epochs * per_epoch))
    return min(steps, recipe.max_steps or steps)


def step_seed(seed: int, step: int) -> int:
    """A seed for each step, far from those of its neighbours' chunks."""
    return (seed * 1_000_003 + step) * 65_536 % 2**63
