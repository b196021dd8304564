"""Where bellm keeps what it can make again: vectors of evaluations, converted models, what was measured of a model."""

import os
from pathlib import Path


def default_cache_folder() -> Path:
    """`BELLM_CACHE`, or `bellm` where the system keeps caches."""
    given = os.environ.get("BELLM_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellm"
