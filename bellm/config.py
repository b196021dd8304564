"""What an encoder is, apart from its weights: the facts that `bellm.json` keeps."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from bellm.errors import SourceError
from bellm.prompts import Prompt
from bellm.types import PoolingName, Variant, Window


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that decides an encoder's vectors, next to its weights."""

    bidirectional: tuple[int, ...] = ()
    """Open layers, resolved; empty is the causal model."""
    variant: Variant = "sequential"
    """`sequential`: open layers stay in the stack. `parallel`: they form a branch on the input embeddings."""
    window: Window = "keep"
    """Whether an opened sliding-window layer keeps its window or sees everything."""
    prompt: Prompt
    """How a text is put to the model."""
    pooling: PoolingName
    """How token states become one vector."""
    layer: int = -1
    """Which state is pooled: 0 for the embeddings, k after layer k, -1 for the final, normed one."""
    max_tokens: int
    """Longest input, prompt included; longer texts are cut and counted."""

    def __post_init__(self) -> None:
        """Refuse choices outside their closed sets."""
        for name, allowed in (("variant", Variant), ("window", Window), ("pooling", PoolingName)):
            if getattr(self, name) not in get_args(allowed):
                raise SourceError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}.")
        if self.max_tokens < 1:
            raise SourceError(f"max_tokens={self.max_tokens} is too small: give at least 1.")

    def digest(self) -> str:
        """SHA-256 of the settings, hexadecimal: the same for the same encoder, whoever wrote the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "EncoderConfig":
        """Read settings from the JSON object of `bellm.json`; keys of other purposes are left alone.

        Raises:
            SourceError: A setting is missing or not of its kind.
        """
        try:
            values = {field.name: record[field.name] for field in fields(cls)}
            values["prompt"] = Prompt(**values["prompt"])
            values["bidirectional"] = tuple(map(int, values["bidirectional"]))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"bellm.json cannot be read: {error!r}. Save the encoder again.") from error
