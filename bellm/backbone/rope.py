"""Rotary position embeddings whose frequencies depend on the longest text of a batch (dynamic NTK, longrope)."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def has_dynamic_frequencies(model: PreTrainedModel) -> bool:
    """Whether a forward pass of the model changes its rotary frequencies, so that two cannot run at once."""
    return any(kind in ("dynamic", "longrope") for kind, _ in _rotary(model))


def longrope_short_context(model: PreTrainedModel) -> int | None:
    """Most tokens for which longrope (arXiv 2402.13753) takes its short factors; None where there is no longrope.

    transformers goes by the longest text of a batch, and gives a short one beside a long one the long factors.
    """
    contexts = (told["original_max_position_embeddings"] for kind, told in _rotary(model) if kind == "longrope")
    return min(contexts, default=None)


def split_by_length(rows: Sequence[int], lengths: Sequence[int], context: int | None) -> list[list[int]]:
    """Rows longer than a context, and the others, as far as there are any; all together without a context."""
    longer = [row for row in rows if context is not None and lengths[row] > context]
    within = [row for row in rows if context is None or lengths[row] <= context]
    return [part for part in (longer, within) if part]


def _rotary(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Kind of each rotary embedding, and its parameters."""
    for module in model.modules():
        if (kind := vars(module).get("rope_type")) is not None:
            yield from _kinds(module, kind)


def _kinds(module: nn.Module, kind: str | dict[str, str]) -> Iterator[tuple[str, Any]]:
    told: Any = getattr(module.config, "rope_parameters", None) or {}
    if isinstance(kind, dict):  # By type of layer.
        yield from ((one, told.get(layers, {})) for layers, one in kind.items())
    else:
        yield kind, told
