"""A disk that is full is one line, and leaves nothing half-written."""

import resource
from pathlib import Path
from typing import Any

import pytest

from bellm import Encoder
from bellm.errors import SourceError
from bellm.export import export


@pytest.mark.parametrize(
    "name",
    [
        "transformers",
        "gguf",
        "static",
        pytest.param("onnx", marks=pytest.mark.slow),
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param("tei", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left(tiny_encoder: Encoder, name: Any, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(bidirectional="all", prompt="raw", pooling="mean")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, before[1])
    )  # As a disk with so much left; Python ignores SIGXFSZ.
    try:
        with pytest.raises(SourceError, match=r"out cannot be written: "):
            export(encoder, name, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
