"""Checkpoints: trainable weights, optimizer state and progress in one safetensors file, written atomically."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bellm.errors import SourceError
from bellm.io import atomic
from bellm.train.distributed import Distributed
from bellm.train.fsdp import gather_parameters, local_shard

_WEIGHT, _MOMENT = "weight:", "moment:"


def save_checkpoint(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    progress: Mapping[str, Any],
    distributed: Distributed | None = None,
) -> None:
    """Write trainable weights, their optimizer state and the progress of the run.

    The file is the same for sharded and unsharded weights. All processes make this call, and the main one writes.

    Args:
        path: The file.
        parameters: Trainable weights by name.
        optimizer: Whose state is kept; None keeps weights alone.
        progress: Plain values.
        distributed: The processes; None for those that were launched together.

    Raises:
        SourceError: The disk refuses; what was there before is kept.
    """
    distributed = distributed or Distributed()
    tensors = {f"{_WEIGHT}{name}": parameter.detach() for name, parameter in parameters.items()}
    if optimizer:
        for name, parameter in parameters.items():
            moments = optimizer.state[parameter].items()
            tensors |= {f"{_MOMENT}{moment}:{name}": value for moment, value in moments}
    distributed.broadcast(partial(_write, path, gather_parameters(tensors, distributed), progress))


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into these parameters and this optimizer; returns the progress.

    Raises:
        SourceError: The file cannot be read, or is not of this model.
    """
    try:
        with safe_open(path, "pt") as file:
            _fill(file, parameters, optimizer)
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{path} cannot be read ({' '.join(str(error).split())[:160]}). Remove it to begin anew."
        ) from error
    return progress


def _write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    with atomic.atomic_write(path) as file:
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                file.name,
                {"progress": json.dumps(progress)},
            )
        except SafetensorError as error:
            raise OSError(f"{error}") from error
        with Path(file.name).open("rb") as written:  # safetensors replaces the open file by one of its own.
            os.fsync(written.fileno())


def _fill(file: Any, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
    state: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        if optimizer and key.startswith(_MOMENT):
            moment, name = key.removeprefix(_MOMENT).split(":", 1)
            value = file.get_tensor(key)
            state[name][moment] = value if moment == "step" else local_shard(value, parameters[name])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(local_shard(file.get_tensor(f"{_WEIGHT}{name}"), parameter))
            if optimizer and state[name]:
                optimizer.state[parameter] = state[name]
