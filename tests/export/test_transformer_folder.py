"""Folders of transformers and sentence-transformers hold map, prompts, pooling and all that is done to vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.compress import center
from bellm.export import export
from tests.decoders import with_tokens_of
from tests.export.exports import exported

HOLDS: list[dict[str, Any]] = [
    {"bidirectional": "last:2"},
    {"bidirectional": "last:2", "pooling": "mean", "prompt": "instruct", "hint": "Mind it."},
    {"bidirectional": "none", "pooling": "weighted-mean", "prompt": "Text: {text}", "normalize": True},
    {"bidirectional": "all", "pooling": "max", "truncate_dim": 12, "normalize": True},
    {"bidirectional": "0,2", "pooling": "first", "prompt": "raw"},
    {"bidirectional": "last:2", "prompt": "<s>Say {{ it }}: {text}\n% raw %</s>", "hint": "Mind it."},
    {"bidirectional": "none", "prompt": "raw", "pooling": "mean"},
]


@pytest.mark.parametrize("settings", HOLDS, ids=lambda each: " ".join(map(str, each.values())))
def test_sentence_transformers_gives_the_vectors(tiny_encoder: Encoder, settings: Any, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(**settings)
    found = exported(encoder, "sentence-transformers", tmp_path / "out")
    assert found["max_difference"] < 1e-5
    assert found["rank_agreement"] == 1
    assert found["remote_code"] == (settings["bidirectional"] not in ("none", "all"))


@pytest.mark.parametrize("settings", HOLDS[:4], ids=lambda each: " ".join(map(str, each.values())))
def test_transformers_gives_the_vectors(tiny_encoder: Encoder, settings: Any, tmp_path: Path) -> None:
    assert exported(tiny_encoder.replace(**settings), "transformers", tmp_path / "out")["max_difference"] < 1e-5


@pytest.mark.parametrize("centering", ["mean", "whitening"])
def test_centered_vectors_are_held(tiny_encoder: Encoder, centering: str, tmp_path: Path) -> None:
    texts = [f"On day {number} it snowed {number % 7} times." for number in range(80)]
    encoder = center(tiny_encoder, texts, whitening=centering == "whitening").replace(truncate_dim=20, normalize=True)
    found = exported(encoder, "sentence-transformers", tmp_path / "out")
    assert found["max_difference"] < 1e-4
    with pytest.raises(BellmError, match=r"transformers cannot hold centering='\w+': take centering='none'\. It goes"):
        export(encoder, "transformers", tmp_path / "none")


ARCHITECTURES = [
    "bloom",
    "falcon",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "llama4_text",
    "mistral",
    "opt",
    "phi3",
    "qwen3",
]


@pytest.mark.parametrize("window", ["keep", "open"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_of_many_architectures(
    name: str, window: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = with_tokens_of(tiny_tokenizer, name)
    options: dict[str, Any] = {"bidirectional": "1,3", "window": window, "pooling": "mean"}
    encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, **options)
    found = exported(encoder, "transformers", tmp_path / "out")
    assert found["remote_code"]
    assert found["max_difference"] < 1e-5


@pytest.mark.parametrize("name", ["sentence-transformers", "transformers"])
@pytest.mark.parametrize("bidirectional", ["last:2", "all", "none"])
def test_an_export_is_a_source(tiny_encoder: Encoder, name: str, bidirectional: str, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(bidirectional=bidirectional, prompt="instruct", pooling="mean", truncate_dim=20)
    exported(encoder, name, tmp_path / "out")
    again = Encoder.from_pretrained(tmp_path / "out", device="cpu")
    assert again.config == encoder.config
    texts = ["Snow", "A heron waits. </s>", ""]
    np.testing.assert_allclose(again.encode_query(texts), encoder.encode_query(texts), atol=1e-6)


def test_nothing_runs_a_map_causally(tiny_encoder: Encoder, tmp_path: Path) -> None:
    exported(tiny_encoder, "transformers", tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(tmp_path / "out")
