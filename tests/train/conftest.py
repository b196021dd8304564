"""Where the research data is; it is not part of this repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of research data, read only."""
    folder = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no research data in {folder}: set BELLM_DATA")
    return folder
