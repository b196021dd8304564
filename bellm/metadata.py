"""Identity of an encoder, and the versions of the packages it runs on."""

import hashlib
import importlib.metadata
import platform

import torch

from bellm.encoder import Encoder

_SAMPLE = 1024  # Numbers of each weight that are looked at; training changes all of them.


def encoder_identity(encoder: Encoder) -> str:
    """Name, settings, dtype and a SHA-256 of the weights: the same only where the vectors are.

    Two trainings of one model may differ so little that their vectors look equal but for rounding.
    """
    weights = hashlib.sha256()
    for name, weight in encoder.model.named_parameters():
        flat = weight.detach().flatten()
        indices = torch.linspace(0, max(flat.numel() - 1, 0), min(_SAMPLE, flat.numel()), dtype=torch.float64)
        weights.update(f"{name} {tuple(weight.shape)}".encode())
        weights.update(flat[indices.long().to(flat.device)].double().cpu().numpy().tobytes())
    return f"{encoder.name} {encoder.config.digest()} {encoder.dtype_name} {weights.hexdigest()}"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that vectors and scores come from."""
    packages = "bellm torch transformers numpy scipy scikit-learn sentence-transformers pytrec-eval-terrier"
    versions = {"python": platform.python_version()}
    for name in packages.split():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
