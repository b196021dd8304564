"""Train an encoder: the loop, its record, and its way back after an interruption."""

import json
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from filelock import FileLock, Timeout

from bellm import durable
from bellm.encoder import Encoder
from bellm.errors import BellmError, NoOpWarning, SourceError
from bellm.train import checkpoint
from bellm.train.adaptation import opened_at
from bellm.train.batches import Batches
from bellm.train.card import card
from bellm.train.dataset import Dataset
from bellm.train.examples import Example
from bellm.train.learner import Learned, Learner
from bellm.train.processes import Answer, Processes
from bellm.train.recipe import Recipe
from bellm.train.sharded import gathered
from bellm.train.tuning import finished, prepared, whole

RUN, METRICS, CHECKPOINT, BEST, MODEL = (
    "run.json",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "best.safetensors",
    "model",
)
"""What a folder of training holds; MODEL is the encoder, and the rest may go once it is there."""

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every step with its number, the number of all, and its record."""


_PLACE = {"device", "attention", "trust_remote_code"}
"""Settings that a saved encoder does not hold."""


class Interrupted(KeyboardInterrupt):
    """Training stopped when asked; the same call goes on."""


def train(
    recipe: Recipe,
    sources: Sequence[tuple[Dataset, float]],
    output: Path,
    *,
    checkpoint_every: int = 50,
    progress: Progress | None = None,
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

    Returns:
        The encoder with the best weights, or the last where nothing scores them, as it is saved in `output/model`.

    Raises:
        SourceError: The folder holds another run, or is in use, or the disk refuses.
        BellmError: The recipe does not suit the data, or the gradient is no longer a number.
        Interrupted: Ctrl-C or a polite kill; the state was written.
    """
    processes = Processes()
    recipe = replace(recipe, sharded=recipe.sharded and processes.world > 1)
    batches = Batches(sources, recipe.batch_size, recipe.seed)
    total = _total(recipe, batches)
    described = {**recipe.described(), "data": batches.described(), "steps": total}
    with _resumable(output), processes.relied_on(), ExitStack() as held:

        def begin() -> bool:
            held.enter_context(_alone(output))
            _agree(output, described)
            return (output / MODEL).exists()

        if not processes.from_first(begin):
            run = _Run(recipe, batches, output, total, processes)
            run.go(checkpoint_every, progress)
            run.finish(described)
        place = {name: recipe.settings[name] for name in _PLACE & set(recipe.settings)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoOpWarning)  # It was said at the start.
            return Encoder.load(output / MODEL, **place)


class _Run:
    """One run of training in one folder."""

    def __init__(self, recipe: Recipe, batches: Batches, output: Path, total: int, processes: Processes) -> None:
        self.recipe, self.batches, self.output, self.total = recipe, batches, output, total
        self.processes = processes
        self.encoder, autocast = prepared(recipe)
        self.learner = Learner(
            self.encoder,
            recipe.objective,
            processes=processes,
            autocast=autocast,
            gradient_checkpointing=recipe.gradient_checkpointing,
            sharded=recipe.sharded,
        )
        self.parameters = self.learner.parameters
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
        if processes.from_first((output / CHECKPOINT).exists):
            self.state = checkpoint.load(output / CHECKPOINT, self.parameters, self.optimiser)
        self.metrics = processes.from_first(partial(_Metrics, output / METRICS, self.state["step"]))

    def go(self, checkpoint_every: int, progress: Progress | None) -> None:
        """Take the steps that are left."""
        with _until_asked() as asked:
            while self.state["step"] < self.total and not self._out_of_patience():
                record = self._step(self.state["step"])
                record["dev"] = self._score()
                self.state = self.processes.from_first(partial(self._note, record, progress))
                step, stops = self.state["step"], self.processes.any(asked)
                if step % checkpoint_every == 0 or step == self.total or stops:
                    checkpoint.save(
                        self.output / CHECKPOINT, self.parameters, self.optimiser, self.state, self.processes
                    )
                if stops:
                    raise Interrupted(
                        f"step {step} of {self.total} is kept in {self.output}; the same command goes on."
                    )

    def finish(self, described: Mapping[str, Any]) -> None:
        """Write the encoder."""
        if self.processes.from_first((self.output / BEST).exists):
            best = checkpoint.load(self.output / BEST, self.parameters, None)
            self.state |= {name: best[name] for name in ("best", "best_interval", "best_step")}
        self._with_encoder(partial(self._save, described))

    def _save(self, described: Mapping[str, Any], encoder: Encoder) -> None:
        notes = card(described, self.state, self.metrics.records())
        finished(encoder, self.recipe).save(self.output / MODEL, notes=notes)

    def _step(self, number: int) -> dict[str, Any]:
        started = time.monotonic()
        stage = _stage(self.recipe, number, self.total)
        rate = stage.learning_rate * height(stage.step, stage.steps, self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        learned = self._learn(stage, self.batches[number].examples, _seed(self.recipe.seed, number))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_grad_norm)
        if not math.isfinite(norm):
            raise BellmError(
                f"Step {number + 1} has a loss of {learned.loss} and a gradient of length {float(norm)}: nothing can "
                "be learned from that. Lower the learning rate, or train in float32."
            )
        self.optimiser.step()
        seconds = time.monotonic() - started
        self.state["step"] = number + 1
        self.state["num_truncated"] += self.processes.total(learned.num_truncated)
        return {
            "step": number + 1,
            "loss": learned.loss,
            "tokens_per_second": round(self.processes.total(learned.num_tokens) / seconds, 1),
            "learning_rate": rate,
            "grad_norm": float(norm),
            "seconds": round(seconds, 3),
        }

    def _learn(self, stage: "_Stage", examples: Sequence[Example], seed: int) -> Learned:
        adaptation = self.recipe.adaptation
        if adaptation is None or not stage.adapts:
            return self.learner.learn(examples, seed)
        layers = self.encoder.settings.bidirectional
        if adaptation.gradual:
            layers = opened_at(stage.step, stage.steps, layers)
        return self.learner.adapt(examples, seed, share=adaptation.share, layers=layers)

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
            checkpoint.save(self.output / BEST, self.parameters, None, self.state, self.processes)
        return score

    def _with_encoder(self, call: Callable[[Encoder], Answer]) -> Answer:
        """Let the first process alone do something with the encoder, which it has to make where weights are shared."""
        if not self.recipe.sharded:
            return self.processes.from_first(partial(call, self.encoder))
        learned = gathered(self.parameters, self.processes)
        return self.processes.from_first(lambda: call(whole(self.recipe, learned)))

    def _out_of_patience(self) -> bool:
        patience, since = self.recipe.patience, self.state["step"] - self.state["best_step"]
        return patience is not None and since >= patience * self.recipe.dev_every


@dataclass(frozen=True)
class _Stage:
    """A part of training with a schedule of its own."""

    adapts: bool
    """Whether it is the adaptation rather than the vectors."""
    step: int
    """In the stage, from 0."""
    steps: int
    learning_rate: float


def _stage(recipe: Recipe, step: int, total: int) -> _Stage:
    first = recipe.adaptation.steps if recipe.adaptation else 0
    if recipe.adaptation and step < first:
        return _Stage(True, step, first, recipe.adaptation.learning_rate)
    return _Stage(False, step - first, total - first, recipe.learning_rate)


class _Metrics:
    """One JSON line for each step; lines of steps that are taken again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
        durable.write(path, b"".join(lines))

    def add(self, record: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SourceError(
                f"{self._path} cannot be written: {error.strerror or error}. The last checkpoint is kept: mend this "
                "and give the same command again."
            ) from error

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


def height(step: int, total: int, recipe: Recipe) -> float:
    """The learning rate of a step as a share of its height: up in a line, down as the recipe's schedule says."""
    warm = math.ceil(recipe.warmup * total)
    if step < warm:
        return (step + 1) / warm
    left = (total - step) / max(total - warm, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[recipe.schedule]


def _scored(dev: Callable[[Encoder], SupportsFloat], encoder: Encoder) -> tuple[float, list[float | None]]:
    """A score and the ends of its interval, where it has one."""
    found = dev(encoder)
    return float(found), [getattr(found, end, None) for end in ("low", "high")]


def _total(recipe: Recipe, batches: Batches) -> int:
    first = recipe.adaptation.steps if recipe.adaptation else 0
    steps = first + max(1, round(recipe.epochs * batches.per_epoch))
    return min(steps, recipe.max_steps or steps)


def _seed(seed: int, step: int) -> int:
    """A seed for each step, far from those of its neighbours' chunks."""
    return (seed * 1_000_003 + step) * 65_536 % 2**63


def _agree(output: Path, described: Mapping[str, Any]) -> None:
    """Begin a folder, also one in which another run kept nothing, or make sure that it is of this run.

    Raises:
        SourceError: It is of another.
    """
    path, plain = output / RUN, json.loads(json.dumps(described))
    there = [name for name in (MODEL, CHECKPOINT) if (output / name).exists()]
    if not there:
        (output / BEST).unlink(missing_ok=True)
        durable.write(path, (json.dumps(plain, indent=1) + "\n").encode())
        return
    if not path.exists():
        raise SourceError(f"{output} holds {there[0]!r} and no {RUN}: it is of no run. Choose another folder.")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Choose another folder.") from error
    if other := [name for name in plain if known.get(name) != plain[name]]:
        name = other[0]
        raise SourceError(
            f"{output} holds a run with other {', '.join(other)} ({name} was {_short(known.get(name))}, is "
            f"{_short(plain[name])}). Choose another folder, or remove it."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """Say of a Ctrl-C outside the steps, or a second one, that not everything is lost."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(f"what {output} holds is kept; the same command goes on.") from None


def _alone(output: Path) -> AbstractContextManager[object]:
    """Keep a second run out; the system lets go of the lock whatever ends this one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock").acquire(timeout=0)
        durable.remove_drafts(output)
        for draft in output.glob(f".{MODEL}-*"):
            shutil.rmtree(draft)
        return lock
    except Timeout as error:
        raise SourceError(f"Another run is training in {output}.") from error
    except OSError as error:
        raise SourceError(f"{output} cannot be written: {error.strerror or error}.") from error


class _Asked:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.stop = False

    def __bool__(self) -> bool:
        return self.stop


@contextmanager
def _until_asked() -> Iterator[_Asked]:
    """Turn Ctrl-C and a polite kill into a question that is asked between steps; a second one stops at once."""
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        asked.stop = True
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
