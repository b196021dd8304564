"""A Ray cluster: the one that is there, or one on this machine while it is needed; what each worker gets of it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch

from bellm.errors import BellmError


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Be connected to a cluster, quietly.

    It is the one that this process is connected to, that RAY_ADDRESS names or that runs on this machine; without any,
    one is started here and ended with the work.
    """
    begun = not ray.is_initialized()
    if begun:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home otherwise.
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        if begun:
            ray.shutdown()


def share_cluster(workers: int | None) -> tuple[int, int, float]:
    """Number of workers, and the CPUs and GPUs of each; None is one for each GPU, or for each machine without any."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    workers = workers or gpus or sum(node["Alive"] for node in ray.nodes())
    if workers > cpus:
        raise BellmError(f"{workers} workers are too many for a cluster of {cpus} cores: give at most as many.")
    return workers, cpus // workers, min(1.0, gpus / workers)


def use_share() -> None:
    """Let torch have as many threads as Ray has given CPUs to this worker."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
