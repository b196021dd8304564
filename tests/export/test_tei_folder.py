"""A folder for text-embeddings-inference holds any map and all that is done to vectors, in a graph."""

import json
from pathlib import Path
from typing import Any

import pytest

from bellm import Encoder
from tests.export.exports import compared, exported

HELD: list[Any] = [
    {"bidirectional": "last:2", "prompt": "instruct", "hint": "Mind it.", "pooling": "mean", "normalize": True},
    pytest.param(
        {"bidirectional": "all", "prompt": "raw", "pooling": "last", "truncate_dim": 12, "max_tokens": 40},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("settings", HELD)
@pytest.mark.slow
def test_its_onnx_backend_gives_the_vectors(tiny_encoder: Encoder, settings: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found = exported(tiny_encoder.replace(**settings), "tei", folder)
    assert found["max_difference"] < 1e-4
    assert not list(folder.glob("*.safetensors"))  # What other backends of the server would run causally.
    path = folder / "config_sentence_transformers.json"
    prompts = json.loads(path.read_text())["prompts"]
    path.write_text(json.dumps({"prompts": {**prompts, "query": "Ask: "}}))
    (tmp_path / "out-work").rename(tmp_path / "before")
    assert not compared(folder).holds
