"""What a run records of its steps: metrics.jsonl, TensorBoard logs, and the training section of the model card."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bellm.errors import SourceError
from bellm.io import atomic

_FOLDERS = re.compile(r"""(?<![\w.:/])((~|\.{1,2})?/([^\s/'"`|]+/)*|([\w.-]+/){2,})(?=[^\s/])""")
"""The folders of a path on this machine, which a public card does not show."""


class MetricsLog:
    """One JSON line for each step; lines of steps that are taken again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [record for record in self.records() if record["step"] <= step]
        atomic.write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a step's line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SourceError(
                f"{self._path} cannot be written: {error.strerror or error}. The last checkpoint is kept: mend this "
                "and give the same command again."
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """All lines so far; what another program wrote there is left out."""
        text = self._path.read_bytes().decode(errors="replace") if self._path.exists() else ""
        return [record for line in text.split("\n") if (record := _parse_record(line))]


class TensorBoardLog:
    """Writes a run's metrics for TensorBoard, beside those of earlier starts; a `TrainProgress` of `train`."""

    def __init__(self, folder: Path) -> None:
        """Begin a log; a SourceError says that TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SourceError("Logs for TensorBoard need it: pip install 'bellm[train]'.") from error
        self._folder = folder
        self._open = SummaryWriter
        self._writer: Any = None

    def __call__(self, step: int, total: int, record: Mapping[str, Any]) -> None:
        """Log the numbers of a step."""
        if self._writer is None:
            # What an interrupted run logged of this step and later ones is taken back.
            self._writer = self._open(str(self._folder), purge_step=step)
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _parse_record(line: str) -> dict[str, Any] | None:
    """The record of a step; None for anything else."""
    try:
        record: dict[str, Any] = json.loads(line)
        return record if math.isfinite(record["step"] + record["loss"] + (record["dev"] or 0)) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def training_card(described: Mapping[str, Any], state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the run's config, its losses and its dev scores, for the model card; of paths only the last name."""
    known = {name: value for name, value in described.items() if value not in (None, {}, [])}
    settings = [f"| {name} | `{_FOLDERS.sub('', str(value))}` |" for name, value in known.items()]
    # Steps that were scored; without any the first and the last.
    shown = [record for record in records if record["dev"] is not None] or [*records[:1], *records[-1:]]
    rows = [
        f"| {each['step']} | {each['loss']:.4f} | {'' if each['dev'] is None else format(each['dev'], '.4f')} |"
        for each in shown
    ]
    lines = ["## Training", "", "| | |", "|---|---|", *settings, ""]
    lines += ["| step | loss | dev |", "|---|---|---|", *rows, ""]
    if state["best"] is not None:
        low, high = state["best_interval"]
        interval = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
        best = f"{state['best']:.4f}{interval} at step {state['best_step']}"
        lines.append(f"Best dev score: {best}; its weights are kept.")
    if state["num_truncated"]:
        lines.append(f"{state['num_truncated']} texts were cut.")
    return "\n".join(lines) + "\n"
