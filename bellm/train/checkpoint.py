"""The state of training in one file that is there whole or not at all."""

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
    optimiser: torch.optim.Optimizer | None,
    progress: Mapping[str, Any],
    distributed: Distributed | None = None,
) -> None:
    """Write trainable weights, what the optimiser remembers of each, and where training stands.

    The file is the same whether one process holds the weights or several share them. All of `processes` make this call,
    None being those that were started together, and the first of them writes.

    Raises:
        SourceError: The disk refuses; what was there before is kept.
    """
    distributed = distributed or Distributed()
    tensors = {f"{_WEIGHT}{name}": parameter.detach() for name, parameter in parameters.items()}
    if optimiser:
        for name, parameter in parameters.items():
            moments = optimiser.state[parameter].items()
            tensors |= {f"{_MOMENT}{moment}:{name}": value for moment, value in moments}
    distributed.broadcast(partial(_write, path, gather_parameters(tensors, distributed), progress))


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Read what `save` wrote into these parameters and this optimiser; returns where training stood.

    Raises:
        SourceError: The file cannot be read, or is not of this model.
    """
    try:
        with safe_open(path, "pt") as file:
            _fill(file, parameters, optimiser)
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{path} cannot be read ({' '.join(str(error).split())[:160]}). Remove it to begin anew."
        ) from error
    return progress


def _write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    with atomic.atomic_write(path) as file:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file.name, _metadata(progress))
        except SafetensorError as error:
            raise OSError(f"{error}") from error
        with Path(file.name).open("rb") as written:  # safetensors puts a file of its own in the draft's place.
            os.fsync(written.fileno())


def _fill(file: Any, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None) -> None:
    state: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        if optimiser and key.startswith(_MOMENT):
            moment, name = key.removeprefix(_MOMENT).split(":", 1)
            value = file.get_tensor(key)
            state[name][moment] = value if moment == "step" else local_shard(value, parameters[name])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(local_shard(file.get_tensor(f"{_WEIGHT}{name}"), parameter))
            if optimiser and state[name]:
                optimiser.state[parameter] = state[name]


def _metadata(progress: Mapping[str, Any]) -> dict[str, str]:
    return {"progress": json.dumps(progress)}
