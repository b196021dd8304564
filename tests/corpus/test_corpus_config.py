from pathlib import Path

import pytest

from bellm import Encoder
from bellm.corpus import corpus_config
from bellm.corpus.job import embed_corpus
from bellm.errors import BellmError, FingerprintError, SourceError


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
