"""The settings of a training run: everything that decides an encoder's weights, apart from the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from bellm.errors import BellmError
from bellm.train.objectives import AutoObjective, Objective, needs_of

if TYPE_CHECKING:
    from bellm.encoder import Encoder

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a run.

    >>> Recipe(encoder_options={"bidirectional": "last:8"}, tuning=LoRA(rank=32), batch_size=128).learning_rate
    0.0002
    """

    model: str = "smollm2"
    """What `Encoder.from_pretrained` takes."""
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `Encoder.from_pretrained`: bidirectional, prompt, pooling, max_tokens, dtype, ..."""
    tuning: LoRA | FullFineTuning = field(default_factory=LoRA)
    objective: Objective = field(default_factory=AutoObjective)
    mine: int | None = None
    """Hard negatives to mine for each anchor among the positives of its source, with the untrained encoder, before the
    first step; None mines nothing."""
    mntp: MNTP | None = None
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
    dev: "Callable[[Encoder], SupportsFloat] | None" = None
    """Scores the encoder during training, higher is better: the best weights are kept. Never a test set. Where the
    score has a `low` and a `high`, as `bellm.evaluate.DevEvaluator` gives, the model card shows them."""
    dev_every: int = 50
    """Steps between two scores."""
    patience: int | None = None
    """Stop after so many scores without a better one."""

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        for name in ("batch_size", "dev_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise BellmError(f"{name}={getattr(self, name)} must be more than 0.")
        for name in ("mine", "max_steps", "patience"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if not 0 <= self.warmup <= 1:
            raise BellmError(f"warmup={self.warmup} is a share of the steps: give 0 to 1.")
        if self.patience is not None and self.dev is None:
            raise BellmError("patience counts dev scores: give dev too.")
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
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.name != "sharded"}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BellmError(f"{name}={value} is too small: give at least {least}.")


def _plain(value: Any) -> Any:
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
