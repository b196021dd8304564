"""Tables from the host to a device, and results back, without one waiting for the other."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(table: NDArray[np.generic], device: torch.device) -> Tensor:
    """A table on a device. The copy to a CUDA device is queued, from memory that the device reads by itself."""
    tensor = torch.from_numpy(table)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """A result on its way to the host: a CUDA device goes on computing while it is copied."""

    def __init__(self, result: Tensor) -> None:
        """Queue the copy."""
        self._copied: torch.cuda.Event | None = None
        if result.is_cuda:
            self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            self._host.copy_(result, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._host = result

    def numpy(self) -> NDArray[np.floating[Any]]:
        """Wait for the copy."""
        if self._copied:
            self._copied.synchronize()
        found: NDArray[np.floating[Any]] = self._host.cpu().numpy()
        return found
