"""What identifies an encoder, and the versions of the packages it runs on."""

import hashlib
import importlib.metadata
import platform
from typing import Any

import torch

from bellm.encoder import Encoder

_SAMPLE = 1024  # Numbers of each weight that are looked at; training changes all of them.


def encoder_identity(encoder: Encoder) -> str:
    """What tells an encoder's vectors from those of every other: name, settings, dtype and weights.

    Two trainings of one model differ in their weights alone, and perhaps by so little that vectors look rounded.
    """
    weights = hashlib.sha256()
    for name, weight in encoder.model.named_parameters():
        flat = weight.detach().flatten()
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(_SAMPLE, flat.numel()), dtype=torch.float64)
        weights.update(f"{name} {tuple(weight.shape)}".encode())
        weights.update(flat[places.long().to(flat.device)].double().cpu().numpy().tobytes())
    return f"{encoder.name} {encoder.config.digest()} {encoder.dtype_name} {weights.hexdigest()}"


def encoder_metadata(source: str, encoder: Encoder) -> dict[str, Any]:
    """What an encoder was loaded from, and what it says of itself, as commands print it and a corpus keeps it."""
    return {"source": source, **encoder.describe()}


def package_versions() -> dict[str, str]:
    """Of Python, and of the packages that vectors and scores come from, as far as they are installed."""
    names = (
        "bellm",
        "torch",
        "transformers",
        "numpy",
        "scipy",
        "scikit-learn",
        "sentence-transformers",
        "pytrec-eval-terrier",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
