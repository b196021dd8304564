"""Phases, number of steps, learning-rate schedule and seeds of a run."""

import math
from dataclasses import dataclass

from bellm.train.recipe import Recipe


@dataclass(frozen=True)
class TrainPhase:
    """Masked next-token prediction or contrastive training, each with a schedule of its own."""

    is_mntp: bool
    step: int
    """In the phase, from 0."""
    steps: int
    learning_rate: float


def phase_at(step: int, total: int, recipe: Recipe) -> TrainPhase:
    """The phase that a step of a run is in."""
    mntp_steps = recipe.mntp.steps if recipe.mntp else 0
    if recipe.mntp and step < mntp_steps:
        return TrainPhase(True, step, mntp_steps, recipe.mntp.learning_rate)
    return TrainPhase(False, step - mntp_steps, total - mntp_steps, recipe.learning_rate)


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """The learning rate of a step as a share of its peak: linear warm-up, then the recipe's schedule."""
    warmup_steps = math.ceil(recipe.warmup * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (total - step) / max(total - warmup_steps, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[recipe.schedule]


def num_steps(per_epoch: int, recipe: Recipe) -> int:
    """Steps of a run, given the batches of an epoch."""
    mntp_steps = recipe.mntp.steps if recipe.mntp else 0
    steps = mntp_steps + max(1, round(recipe.epochs * per_epoch))
    return min(steps, recipe.max_steps or steps)


def step_seed(seed: int, step: int) -> int:
    """A seed for each step; chunks add their index to it, so steps are 65 536 apart."""
    return (seed * 1_000_003 + step) * 65_536 % 2**63
