"""The settings of a training run: everything that decides an encoder's weights, apart from the data."""

import math
import os
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat

from bellm.encoder import Encoder
from bellm.errors import BellmError, SourceError, UnknownAttributeError, check_fields, did_you_mean, refuses_changes
from bellm.saving import weights_digest
from bellm.train.objectives import AutoObjective, Objective, needs_of

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters and freeze the model's weights (arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    """Suffixes of the names of the modules that get adapters."""
    four_bit: bool = False
    """Keep the frozen weights in four bits while training (QLoRA, arXiv 2305.14314). The adapters are saved on the
    original weights."""
    merged: bool = True
    """Whether the encoder is saved with its adapters merged, or the adapters alone, to be merged when it is loaded."""


@dataclass(frozen=True)
class FullFineTuning:
    """Train every weight, kept in float32."""


@dataclass(frozen=True)
class MNTP:
    """A first phase of masked next-token prediction with open layers (LLM2Vec, arXiv 2404.05961)."""

    steps: int
    mask_probability: float = 0.2
    """Share of the tokens that are masked."""
    learning_rate: float = 5e-5
    gradual: bool = False
    """Open the layers evenly over the steps, from the last down, instead of all at once."""


@refuses_changes("recipe = dataclasses.replace(recipe, {change})")
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a run.

    >>> Recipe(encoder_options={"bidirectional": "last:8"}, tuning=LoRA(rank=32), batch_size=128).learning_rate
    0.0002
    """

    model: str | Encoder = "smollm2"
    """What `Encoder.from_pretrained` takes, or an encoder: a copy of its weights learns."""
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `Encoder.from_pretrained`: bidirectional, prompt, pooling, max_tokens, dtype, ... Of
    `Encoder.replace` where `model` is an encoder."""
    tuning: LoRA | FullFineTuning = field(default_factory=LoRA)
    objective: Objective = field(default_factory=AutoObjective)
    mine: int | None = None
    """Hard negatives to mine for each anchor among the positives of its source, with the untrained encoder, before the
    first step; None mines nothing."""
    mntp: MNTP | None = None
    graphs: str | None = None
    """File of AMR graphs, as `bellm.data.read_graphs` takes it: in every step each text is itself or its graph, at even
    odds (MSE-AMR, arXiv 2210.09773). Texts without a graph are always themselves."""
    batch_size: int = 64
    """Examples of a step, over all processes."""
    epochs: float = 1.0
    max_steps: int | None = None
    """Stop here, whatever the epochs; the schedule ends here too."""
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    """How the learning rate decays after the warm-up, to zero at the end."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly to its peak."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    """Recompute the inside of every layer, for texts so long that not even one fits in memory otherwise."""
    sharded: bool = False
    """Shard weights, gradients and optimizer state over processes (FSDP), for a model that one device does not hold.
    Each process reads the model into main memory first. The whole encoder is scored, saved and returned on the device
    in `encoder_options`; give `cpu` where it fits nowhere else. The weights learned are the same."""
    seed: int = 42
    dev: Callable[[Encoder], SupportsFloat] | None = None
    """Scores the encoder during training, higher is better: the best weights are kept. Never a test set. Where the
    score has a `low` and a `high`, as `bellm.evaluate.DevEvaluator` gives, the model card shows them."""
    dev_every: int = 50
    """Steps between two scores."""
    patience: int | None = None
    """Stop after so many scores without a better one."""

    def __post_init__(self) -> None:
        """Check types, ranges and combinations."""
        check_fields(self)
        for name in ("batch_size", "dev_every", "mine", "max_steps", "patience"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise BellmError(f"{name}={number} is too small: give at least 1.")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise BellmError(f"{name}={getattr(self, name)} must be more than 0.")
        for name in ("epochs", "learning_rate"):
            if math.isinf(getattr(self, name)):
                raise BellmError(f"{name}={getattr(self, name)} must be finite; max_steps ends a run early.")
        if not 0 <= self.warmup <= 1:
            raise BellmError(f"warmup={self.warmup} is a share of the steps: give 0 to 1.")
        if self.patience is not None and self.dev is None:
            raise BellmError("patience counts dev scores: give dev too.")
        if isinstance(self.model, Encoder) and isinstance(self.tuning, LoRA) and not self.tuning.merged:
            raise BellmError(
                "LoRA(merged=False) saves adapters to be loaded onto their base model, which an encoder in memory does "
                "not name. Give model= as a source, or merge."
            )
        if self.sharded and (other := self._unshardable()):
            raise BellmError(f"sharded=True does not go with {other}. Leave one of them out.")

    def _unshardable(self) -> str:
        """The choice that needs a second model on the same weights, or weights that torch cannot shard."""
        if needs_of(self.objective).response_prompt is not None:
            return f"the objective {type(self.objective).__name__}"
        if self.mntp and self.mntp.gradual:
            return "MNTP(gradual=True)"
        return "LoRA(four_bit=True)" if isinstance(self.tuning, LoRA) and self.tuning.four_bit else ""

    def described(self) -> dict[str, Any]:
        """All fields that decide the weights as plain values: the config of a run in run.json."""
        elsewhere = ("sharded", "graphs")  # The content of the graphs is described with the data.
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.name not in elsewhere}

    def num_steps(self, per_epoch: int) -> int:
        """Steps of a run, given the batches of an epoch."""
        steps = self._mntp_steps + max(1, round(self.epochs * per_epoch))
        return min(steps, self.max_steps or steps)

    def mntp_at(self, step: int) -> MNTP | None:
        """The first phase's settings, where a step is in it."""
        return self.mntp if step < self._mntp_steps else None

    def learning_rate_at(self, step: int, total: int) -> float:
        """The learning rate of a step: each phase has a linear warm-up to its peak, then the schedule."""
        mntp, start = self.mntp_at(step), self._mntp_steps
        if mntp:
            return mntp.learning_rate * self.lr_factor(step, start)
        return self.learning_rate * self.lr_factor(step - start, total - start)

    def lr_factor(self, step: int, total: int) -> float:
        """The learning rate of a step of a phase as a share of its peak."""
        warmup_steps = math.ceil(self.warmup * total)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        left = (total - step) / max(total - warmup_steps, 1)
        return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]

    @property
    def _mntp_steps(self) -> int:
        return self.mntp.steps if self.mntp else 0


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Run a Python file that names its Recipe `recipe`.

    Raises:
        SourceError: There is no such file, or it fails: with the line.
    """
    file = os.fspath(path)
    if not os.path.isfile(file):
        raise SourceError(f"There is no recipe {file}.")
    try:
        recipe = runpy.run_path(file).get("recipe")
    except (Exception, SystemExit) as error:
        raise SourceError(_error_in(file, error)) from error
    if not isinstance(recipe, Recipe):
        raise SourceError(f"{file} names no `recipe`. It should end with: recipe = Recipe(...).")
    return recipe


@contextmanager
def user_errors(call: Any) -> Iterator[None]:
    """Turn an error inside a function that a user wrote into one line with its file and line number."""
    try:
        yield
    except Exception as error:
        file, line = defined_in(call)
        said = isinstance(error, BellmError) and not isinstance(error, UnknownAttributeError)
        if said or not file or Path(file).is_relative_to(Path(__file__).parents[1]):
            raise
        raise BellmError(_error_in(file, error, line)) from error


def defined_in(call: Any) -> tuple[str, int]:
    """File and line that define a function, or an object that can be called; an empty name where nothing says so."""
    while isinstance(call, partial):
        call = call.func
    code = getattr(call, "__code__", None) or getattr(type(call).__call__, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code else ("", 0)


def _error_in(file: str, error: BaseException, line: int | None = None) -> str:
    """An error of a user's file in one line, with the number of the last line there that it came through."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename == file:
        line, what = error.lineno, error.msg
    for frame in traceback.extract_tb(error.__traceback__):
        line = frame.lineno if frame.filename == file else line
    if isinstance(error, BellmError):
        what = str(error)
    if isinstance(error, TypeError) and (unknown := re.search(r"unexpected keyword argument '(\w+)'", what)):
        known = [entry.name for kind in (Recipe, LoRA, MNTP) for entry in fields(kind)]
        what += f".{did_you_mean(unknown[1], known)}"
    return " ".join(f"{file}{f', line {line}' if line else ''}: {what}".split())


def _plain(value: Any) -> Any:
    if isinstance(value, Encoder):
        config = value.config.digest()
        return {"name": value.name, "config": config, "dtype": value.dtype_name, "weights": weights_digest(value.model)}
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
