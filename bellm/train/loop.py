"""Train an encoder: the loop, which goes on wherever it was stopped."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from bellm.backbone import adapters
from bellm.encoder import Encoder
from bellm.errors import BellmError, NoOpWarning, SourceError
from bellm.train import checkpoint
from bellm.train.batches import Batches
from bellm.train.dataset import Dataset
from bellm.train.distributed import Answer, Distributed
from bellm.train.examples import Example
from bellm.train.fsdp import gather_parameters
from bellm.train.mntp import gradual_layers
from bellm.train.model_card import training_card
from bellm.train.recipe import Recipe
from bellm.train.run_dir import BEST, CHECKPOINT, METRICS, MODEL, MetricsLog, check_config, lock_run_dir
from bellm.train.schedule import TrainPhase, lr_factor, num_steps, phase_at, step_seed
from bellm.train.signals import Interrupted, graceful_stop, resumable_errors
from bellm.train.train_step import StepResult, TrainStep
from bellm.train.trainable import export_encoder, load_trainable, rebuild_encoder

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every step with its number, the number of all, and its record."""

_PLACE = {"device", "attention", "trust_remote_code"}
"""Settings that a saved encoder does not hold."""


def train(
    recipe: Recipe,
    sources: Sequence[tuple[Dataset, float]],
    output: Path,
    *,
    checkpoint_every: int = 50,
    progress: Progress | None = None,
    until: int | None = None,
) -> Encoder:
    """Train an encoder, or go on where training in this folder was stopped.

    Whatever stops it, the same call goes on from the last checkpoint with the same data in the same order: on a
    processor to the same weights, bit by bit. Where several processes were started (see `Processes`), each makes this
    call, on a folder that all of them can read; the first one alone writes, scores and calls `progress`.

    Args:
        recipe: How.
        sources: What it learns from, each with its weight; see `Batches`.
        output: Folder for the encoder, the record of each step and the checkpoint.
        checkpoint_every: Steps after which the state is written.
        progress: Called after every step.
        until: Pause after this step. The state is kept, and the same call with a later step or none goes on as if there
            had been no pause.

    Returns:
        The encoder with the best weights, or the last where nothing scores them, as it is saved in `output/model`; at a
        pause the encoder as it stands.

    Raises:
        SourceError: The folder holds another run, or is in use or past the pause, or the disk refuses.
        BellmError: The recipe does not suit the data, or the gradient is no longer a number.
        Interrupted: Ctrl-C or a polite kill; the state was written.
    """
    distributed = Distributed()
    recipe = replace(recipe, sharded=recipe.sharded and distributed.world_size > 1)
    batches = Batches(sources, recipe.batch_size, recipe.seed)
    total = num_steps(batches.per_epoch, recipe)
    stop = total if until is None else min(until, total)
    if stop < total and recipe.sharded:
        raise BellmError(f"until={until} does not go with sharded=True: no process has the whole encoder at a pause.")
    described = {**recipe.described(), "data": batches.described(), "steps": total}
    with resumable_errors(output), distributed.relied_on(), ExitStack() as held:

        def begin() -> bool:
            held.enter_context(lock_run_dir(output))
            check_config(output, described)
            return (output / MODEL).exists()

        if not distributed.broadcast(begin):
            run = _Run(recipe, batches, output, total, distributed)
            run.go(stop, checkpoint_every, progress)
            if stop < total:
                return run.round_result()
            run.finish(described)
        elif stop < total:
            raise _past(output, total, stop)
        place = {name: recipe.encoder_options[name] for name in _PLACE & set(recipe.encoder_options)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoOpWarning)  # It was said at the start.
            return Encoder.from_pretrained(output / MODEL, **place)


class _Run:
    """One run of training in one folder."""

    def __init__(self, recipe: Recipe, batches: Batches, output: Path, total: int, distributed: Distributed) -> None:
        self.recipe, self.batches, self.output, self.total = recipe, batches, output, total
        self.distributed = distributed
        self.encoder, autocast = load_trainable(recipe)
        self.train_step = TrainStep(
            self.encoder,
            recipe.objective,
            distributed=distributed,
            autocast=autocast,
            gradient_checkpointing=recipe.gradient_checkpointing,
            sharded=recipe.sharded,
        )
        self.parameters = self.train_step.parameters
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.state: dict[str, Any] = {
            "step": 0,
            "best": None,
            "best_interval": [None, None],
            "best_step": 0,
            "num_truncated": 0,
        }
        if distributed.broadcast((output / CHECKPOINT).exists):
            self.state = checkpoint.load_checkpoint(output / CHECKPOINT, self.parameters, self.optimiser)
        self.metrics = distributed.broadcast(partial(MetricsLog, output / METRICS, self.state["step"]))

    def go(self, stop: int, checkpoint_every: int, progress: Progress | None) -> None:
        """Take the steps that are left up to `stop`."""
        if self.state["step"] > stop:
            raise _past(self.output, self.state["step"], stop)
        with graceful_stop() as asked:
            while self.state["step"] < stop and not self._out_of_patience():
                record = self._step(self.state["step"])
                record["dev"] = self._score()
                self.state = self.distributed.broadcast(partial(self._note, record, progress))
                step, stops = self.state["step"], self.distributed.any(asked)
                if step % checkpoint_every == 0 or step == stop or stops:
                    checkpoint.save_checkpoint(
                        self.output / CHECKPOINT, self.parameters, self.optimiser, self.state, self.distributed
                    )
                if stops:
                    raise Interrupted(
                        f"step {step} of {self.total} is kept in {self.output}; the same command goes on."
                    )

    def round_result(self) -> Encoder:
        """The encoder with the last weights, its adapters in them as when a saved one is loaded."""
        encoder = export_encoder(self.encoder, self.recipe)
        encoder.model = adapters.merge_adapters(encoder.model)
        return encoder

    def finish(self, described: Mapping[str, Any]) -> None:
        """Write the encoder."""
        if self.distributed.broadcast((self.output / BEST).exists):
            best = checkpoint.load_checkpoint(self.output / BEST, self.parameters, None)
            self.state |= {name: best[name] for name in ("best", "best_interval", "best_step")}
        self._with_encoder(partial(self._save, described))

    def _save(self, described: Mapping[str, Any], encoder: Encoder) -> None:
        notes = training_card(described, self.state, self.metrics.records())
        export_encoder(encoder, self.recipe).save_pretrained(self.output / MODEL, notes=notes)

    def _step(self, number: int) -> dict[str, Any]:
        started = time.monotonic()
        phase = phase_at(number, self.total, self.recipe)
        rate = phase.learning_rate * lr_factor(phase.step, phase.steps, self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        learned = self._learn(phase, self.batches[number].examples, step_seed(self.recipe.seed, number))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_grad_norm)
        if not math.isfinite(norm):
            raise BellmError(
                f"Step {number + 1} has a loss of {learned.loss} and a gradient of length {float(norm)}: nothing can "
                "be learned from that. Lower the learning rate, or train in float32."
            )
        self.optimiser.step()
        seconds = time.monotonic() - started
        self.state["step"] = number + 1
        self.state["num_truncated"] += self.distributed.total(learned.num_truncated)
        return {
            "step": number + 1,
            "loss": learned.loss,
            "tokens_per_second": round(self.distributed.total(learned.num_tokens) / seconds, 1),
            "learning_rate": rate,
            "grad_norm": float(norm),
            "seconds": round(seconds, 3),
        }

    def _learn(self, phase: TrainPhase, examples: Sequence[Example], seed: int) -> StepResult:
        mntp = self.recipe.mntp
        if mntp is None or not phase.adapts:
            return self.train_step.learn(examples, seed)
        layers = self.encoder.config.bidirectional
        if mntp.gradual:
            layers = gradual_layers(phase.step, phase.steps, layers)
        return self.train_step.adapt(examples, seed, mask_probability=mntp.mask_probability, layers=layers)

    def _note(self, record: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
        """Record a step; returns where training stands."""
        self.metrics.add(record)
        if progress:
            progress(self.state["step"], self.total, record)
        return self.state

    def _score(self) -> float | None:
        """Score the encoder when it is time to, and keep the best weights."""
        step = self.state["step"]
        if not self.recipe.dev or (step % self.recipe.dev_every and step != self.total):
            return None
        score, interval = self._with_encoder(partial(_scored, self.recipe.dev))
        if self.state["best"] is None or score > self.state["best"]:
            self.state |= {"best": score, "best_interval": interval, "best_step": step}
            checkpoint.save_checkpoint(self.output / BEST, self.parameters, None, self.state, self.distributed)
        return score

    def _with_encoder(self, call: Callable[[Encoder], Answer]) -> Answer:
        """Let the first process alone do something with the encoder, which it has to make where weights are shared."""
        if not self.recipe.sharded:
            return self.distributed.broadcast(partial(call, self.encoder))
        learned = gather_parameters(self.parameters, self.distributed)
        return self.distributed.broadcast(lambda: call(rebuild_encoder(self.recipe, learned)))

    def _out_of_patience(self) -> bool:
        patience, since = self.recipe.patience, self.state["step"] - self.state["best_step"]
        return patience is not None and since >= patience * self.recipe.dev_every


def _past(output: Path, step: int, stop: int) -> SourceError:
    return SourceError(f"{output} is at step {step}, past the pause after {stop}. Choose another folder, or remove it.")


def _scored(dev: Callable[[Encoder], SupportsFloat], encoder: Encoder) -> tuple[float, list[float | None]]:
    """A score and the ends of its interval, where it has one."""
    found = dev(encoder)
    return float(found), [getattr(found, end, None) for end in ("low", "high")]
