"""What a model card says of training."""

from collections.abc import Mapping, Sequence
from typing import Any


def training_card(described: Mapping[str, Any], state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown on data, recipe and the way the loss and the dev score went."""
    facts = "\n".join(f"| {name} | `{value}` |" for name, value in described.items() if value not in (None, {}, []))
    lines = ["## Training", "", "| | |", "|---|---|", facts, "", _course(records)]
    if state["best"] is not None:
        low, high = state["best_interval"]
        interval = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
        lines.append(
            f"Best dev score: {state['best']:.4f}{interval} at step {state['best_step']}; its weights are kept."
        )
    if state["num_truncated"]:
        lines.append(f"{state['num_truncated']} texts were cut.")
    return "\n".join(lines) + "\n"


def _course(records: Sequence[Mapping[str, Any]]) -> str:
    shown = [record for record in records if record["dev"] is not None] or [*records[:1], *records[-1:]]
    rows = "\n".join(f"| {one['step']} | {one['loss']:.4f} | {_dev(one['dev'])} |" for one in shown)
    return f"| step | loss | dev |\n|---|---|---|\n{rows}\n"


def _dev(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
