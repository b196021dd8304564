"""Identity of an encoder, and the versions of the packages it runs on."""

import importlib.metadata
import platform

from bellm.encoder import Encoder
from bellm.saving import weights_digest


def encoder_identity(encoder: Encoder, weights: str = "") -> str:
    """Name, settings and a digest of the weights: the same only where the vectors are.

    Two trainings of one model may differ so little that their vectors look equal but for rounding. `weights` is that
    digest where it is known already: to take it reads every weight.
    """
    centered = encoder.config.centering != "none" and encoder.statistics
    by = f" {encoder.statistics.digest}" if encoder.statistics and centered else ""
    return f"{encoder.name} {encoder.config.digest()} {weights or weights_digest(encoder.model)}{by}"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that vectors and scores come from."""
    packages = "bellm torch transformers numpy scipy scikit-learn sentence-transformers pytrec-eval-terrier bm25s"
    versions = {"python": platform.python_version()}
    for name in packages.split():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
