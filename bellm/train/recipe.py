"""How an encoder is trained: everything that decides its weights, apart from the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from bellm.errors import BellmError

if TYPE_CHECKING:
    from bellm.encoder import Encoder
from bellm.train.objectives import GRL, AutoObjective, Objective

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class LoRA:
    """Train low-rank adapters and leave the weights as they are (arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32
    """The adapters' answer counts alpha / rank."""
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    """Ends of the names of the modules that get adapters."""
    four_bit: bool = False
    """Keep the frozen weights in four bits while training (QLoRA, arXiv 2305.14314). The adapters are saved on the
    weights as they came."""
    merged: bool = True
    """Whether the encoder is saved with the adapters in its weights, or they alone, to be merged when it is loaded."""


@dataclass(frozen=True)
class FullFineTuning:
    """Train every weight, kept in float32."""


@dataclass(frozen=True)
class MNTP:
    """A stage before the vectors: masked next-token prediction with open layers (LLM2Vec, arXiv 2404.05961)."""

    steps: int
    mask_probability: float = 0.2
    """Of the tokens that are masked."""
    learning_rate: float = 5e-5
    gradual: bool = False
    """Open the layers one after the other, from the last down, instead of all at once."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train an encoder."""

    model: str = "smollm2"
    """What `Encoder.from_pretrained` takes."""
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Choices for `Encoder.from_pretrained`: bidirectional, prompt, pooling, max_tokens, dtype, ..."""
    tuning: LoRA | FullFineTuning = field(default_factory=LoRA)
    objective: Objective = field(default_factory=AutoObjective)
    mntp: MNTP | None = None
    batch_size: int = 64
    """Examples of a step, over all processes."""
    epochs: float = 1.0
    max_steps: int | None = None
    """Stop here, whatever the epochs say; the schedule ends here too."""
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    """How the learning rate goes down after warming up, to zero at the end."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate goes up to its height."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    """Compute the inside of every layer twice, for texts so long that not even one fits in memory otherwise."""
    sharded: bool = False
    """Share the weights, their gradients and what the optimiser remembers among processes (FSDP), for a model that one
    device does not hold. Each process reads the model into main memory first. The whole encoder is scored, saved and
    returned on the device in `encoder_options`; give `cpu` where it fits nowhere else. What is learned is the same."""
    seed: int = 42
    dev: "Callable[[Encoder], SupportsFloat] | None" = None
    """Scores the encoder while it learns, higher is better: the best weights are kept. Never a test set. Where the
    score has a `low` and a `high`, as `bellm.evaluate.DevEvaluator` gives, the model card shows them."""
    dev_every: int = 50
    """Steps between two scores."""
    patience: int | None = None
    """Stop after so many scores without a better one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("batch_size", "dev_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise BellmError(f"{name}={getattr(self, name)} must be more than 0.")
        for name in ("max_steps", "patience"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if not 0 <= self.warmup <= 1:
            raise BellmError(f"warmup={self.warmup} is a share of the steps: give 0 to 1.")
        if self.patience is not None and self.dev is None:
            raise BellmError("patience counts dev scores: give dev too.")
        if self.sharded and (other := self._unshardable()):
            raise BellmError(f"sharded=True does not go with {other}. Leave one of them out.")

    def _unshardable(self) -> str:
        """What takes a second model on the same weights, or other weights than torch shares out."""
        if isinstance(self.objective, GRL):
            return "the objective GRL"
        if self.mntp and self.mntp.gradual:
            return "MNTP(gradual=True)"
        return "LoRA(four_bit=True)" if isinstance(self.tuning, LoRA) and self.tuning.four_bit else ""

    def described(self) -> dict[str, Any]:
        """All that decides the weights as plain values, for records and to tell one recipe from another."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "sharded"}


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
