"""The parallel variant: two branches on the input embeddings, run as two halves of one batch.

Rows 0..B-1 of a doubled batch are the causal branch and skip open layers; rows B..2B-1 are the bidirectional branch and
skip closed layers. The last layer adds the halves, so that the final norm, the head and the caller get a batch of B.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bellm.backbone.hooks import Arguments, BellmHook


@dataclass
class BranchHook(BellmHook):
    """Forward hook of a decoder layer that applies it to its own branch's half of the batch alone."""

    bidirectional: bool  # Whether the layer belongs to the bidirectional branch.
    merges: bool  # Whether the layer is the last and adds the two branches.

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the layer's output with the other branch's rows as they came in."""
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output if isinstance(output, Tensor) else output[0]
        half = len(before) // 2
        causal = before[:half] if self.bidirectional else after[:half]
        bidirectional = after[half:] if self.bidirectional else before[half:]
        hidden = causal + bidirectional if self.merges else torch.cat([causal, bidirectional])
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


class DoubleBatchHook(BellmHook):
    """Forward pre-hook of the decoder that repeats the batch."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the call's arguments with all rows repeated after the last."""
        ids = args[0] if args else kwargs.get("input_ids")
        rows = len(kwargs["inputs_embeds"] if ids is None else ids)

        def twice(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
            return torch.cat([value, value]) if is_batch else value

        return tuple(map(twice, args)), {name: twice(value) for name, value in kwargs.items()}
