"""Rotary position embeddings whose frequencies depend on the longest text of a batch (dynamic NTK, longrope)."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel


def has_dynamic_frequencies(model: PreTrainedModel) -> bool:
    """Whether a forward pass of the model changes its rotary frequencies, so that two cannot run at once."""
    return any(kind in ("dynamic", "longrope") for kind, _ in _rope(model))


def longrope_short_context(model: PreTrainedModel) -> int | None:
    """Most tokens for which longrope (arXiv 2402.13753) takes its short factors; None where there is no longrope.

    transformers chooses by the longest text of a batch, and gives a short text next to a long one the long factors.
    """
    contexts = (config["original_max_position_embeddings"] for kind, config in _rope(model) if kind == "longrope")
    return min(contexts, default=None)


def split_by_length(rows: Sequence[int], lengths: Sequence[int], context: int | None) -> list[list[int]]:
    """Rows longer than a context, and the others; without empty parts, and all together without a context."""
    longer = [row for row in rows if context is not None and lengths[row] > context]
    within = [row for row in rows if context is None or lengths[row] <= context]
    return [part for part in (longer, within) if part]


def _rope(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Kind and parameters of each rotary embedding."""
    for module in model.modules():
        kind: str | dict[str, str] | None = vars(module).get("rope_type")
        if kind is not None:
            parameters: Any = getattr(module.config, "rope_parameters", None) or {}
            if isinstance(kind, dict):  # By type of layer.
                yield from ((each, parameters.get(layer_type, {})) for layer_type, each in kind.items())
            else:
                yield kind, parameters
