from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellm import Encoder
from bellm.corpus import corpus_config
from bellm.corpus.corpus_config import CorpusConfig
from bellm.corpus.job import embed_corpus
from bellm.errors import BellmError, FingerprintError, SourceError
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import InputType, Vectors


@pytest.fixture
def out(tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path) -> Path:
    """A corpus of one text, embedded with other settings than the encoder was saved with."""
    (tmp_path / "a.txt").write_text("A heron stands in the water.\n", encoding="utf-8")
    choices = {"bidirectional": "none", "prompt": "instruct:Find the bird", "pooling": "mean", "layer": 3}
    encoder = Encoder.from_pretrained(tiny_folder, **choices, max_tokens=90)
    embed_corpus(encoder, [str(tmp_path / "a.txt")], tmp_path / "out", source=str(tiny_folder))
    return tmp_path / "out"


def test_the_encoder_of_a_corpus_is_loaded_as_it_was(out: Path, tiny_folder: Path) -> None:
    known = corpus_config.read_encoder_ref(out)
    assert known.source == str(tiny_folder)
    encoder = known.load(attention="eager")
    assert encoder.config == known.config
    assert encoder.config.bidirectional == ()
    assert encoder.config.prompt.query == "Instruct: Find the bird\nQuery: {text}"
    assert (encoder.config.pooling, encoder.config.layer, encoder.config.max_tokens) == ("mean", 3, 90)


def test_another_model_is_refused(out: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    other = tiny_encoder.replace()
    weight = other.model.get_input_embeddings().weight
    kept = weight.data
    try:
        weight.data = kept * 1.5
        other.save_pretrained(tmp_path / "other")
    finally:
        weight.data = kept
    with pytest.raises(FingerprintError, match=r"other does not give the vectors that it gave to the corpus"):
        corpus_config.read_encoder_ref(out, str(tmp_path / "other")).load()


def test_a_source_that_has_gone(out: Path, tmp_path: Path) -> None:
    with pytest.raises(BellmError):
        corpus_config.read_encoder_ref(out, str(tmp_path / "gone")).load()
    with pytest.raises(SourceError, match=r"no manifest\.json"):
        corpus_config.read_encoder_ref(tmp_path)


def test_a_little_noise_on_the_weights_is_another_model(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A heron stands in the water.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("The invoice was paid twice.\n", encoding="utf-8")
    first, second = (Encoder.from_pretrained(tiny_folder, dtype="bfloat16") for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in second.model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(weight.float() * (1 + 0.002 * noise))
    # So little that rounding to bfloat16 could explain it.
    distance = relative_distance(second.fingerprint(), first.fingerprint())
    assert 0 < distance < tolerances("bfloat16").fingerprint
    embed_corpus(first, [str(tmp_path / "a.txt")], tmp_path / "out", source=str(tiny_folder))
    with pytest.raises(SourceError, match=r"out holds the vectors of another model: .* has other weights"):
        embed_corpus(second, [str(tmp_path / "b.txt")], tmp_path / "out")
    second.save_pretrained(tmp_path / "noisy")
    with pytest.raises(FingerprintError, match=r"noisy does not give .*\(it has other weights\)"):
        corpus_config.read_encoder_ref(tmp_path / "out", str(tmp_path / "noisy")).load()
    assert corpus_config.read_encoder_ref(tmp_path / "out").load().dtype_name == "bfloat16"


def test_a_model_that_gives_no_numbers_begins_no_corpus(tiny_encoder: Encoder, tmp_path: Path) -> None:
    class Broken:
        embedding_dim = 2

        def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
            return np.full((len(texts), 2), np.nan, dtype=np.float32)

        def fingerprint(self) -> Vectors:
            return self.encode(["a"])

        def describe(self) -> dict[str, Any]:
            return {"name": "broken", "dtype": "float16", "embedding_dim": 2}

    (tmp_path / "a.txt").write_text("A heron.\n", encoding="utf-8")
    with pytest.raises(BellmError, match=r"not finite in float16\. Load it with dtype float32"):
        embed_corpus(Broken(), [str(tmp_path / "a.txt")], tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]


def test_of_long_settings_the_part_that_differs_is_shown() -> None:
    prompts = {"query": "Represent this: " * 9, "document": "{text}"}
    there = CorpusConfig(encoder={"prompts": prompts})
    here = CorpusConfig(encoder={"prompts": prompts | {"query": prompts["query"] + "now"}})
    [difference] = there.differences(here)
    assert difference.startswith("prompts.query is '...")
    was, now = difference.split(" there and ")
    assert was.removeprefix("prompts.query is ") != now.removesuffix(" here")
    assert len(difference) < 200
