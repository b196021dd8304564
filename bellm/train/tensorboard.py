"""Metrics for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bellm.errors import SourceError


class TensorBoardLog:
    """Writes a run's metrics where TensorBoard looks for them; a `Progress` of `train`."""

    def __init__(self, folder: Path) -> None:
        """Begin a log, beside those of earlier starts.

        Raises:
            SourceError: TensorBoard is not installed.
        """
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
