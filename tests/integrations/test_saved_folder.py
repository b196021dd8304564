"""A folder that bellm saved, opened by sentence-transformers and mteb: the vectors of bellm, or an error."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from bellm import Encoder, MultiViewEncoder
from bellm.errors import BellmError, SourceError
from bellm.evaluate import MtebEncoder, load_model
from tests.evaluate.test_mteb_encoder import OurSearch
from tests.processes import run

TEXTS = ["Snow fell all night in the street, and nobody came.", "A heron.", "Why does bread rise?"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Encoder) -> Encoder:
    prompt = {"prompt": "instruct:Find the like", "pooling": "mean-text", "truncate_dim": 12, "normalize": True}
    return tiny_encoder.replace(**prompt)


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "encoder"
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_sentence_transformers_gives_the_encoders_vectors(
    model: SentenceTransformer, encoder: Encoder, method: str
) -> None:
    assert np.allclose(getattr(model, method)(TEXTS), getattr(encoder, method)(TEXTS), atol=1e-5)
    if method != "encode":
        name = method.removeprefix("encode_")
        assert np.allclose(model.encode(TEXTS, prompt_name=name), getattr(encoder, method)(TEXTS), atol=1e-5)
    assert model.encode(TEXTS[0]).shape == (12,)
    assert (model.get_embedding_dimension(), model.max_seq_length) == (12, encoder.config.max_tokens)


def test_arguments_of_encode_do_what_they_say(model: SentenceTransformer, encoder: Encoder) -> None:
    found = model.encode(TEXTS, prompt="In short: ", batch_size=1, truncate_dim=8, convert_to_tensor=True)
    wanted = encoder.encode([f"In short: {text}" for text in TEXTS])[:, :8]
    assert isinstance(found, torch.Tensor)
    assert np.allclose(found.numpy(), wanted, atol=1e-5)
    assert np.allclose(model.similarity(found, found).numpy(), encoder.similarity(wanted, wanted), atol=1e-5)


def test_moved_weights_are_those_that_embed(folder: Path, encoder: Encoder) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", model_kwargs={"dtype": "float32"})
    before = model.encode(TEXTS)
    model.max_seq_length = 40
    assert model[0].encoder.config.max_tokens == 40
    assert np.allclose(model.encode(TEXTS), before, atol=1e-5)
    model.bfloat16()
    assert model[0].encoder.dtype_name == "bfloat16"
    assert 0 < np.abs(model.encode(TEXTS) - before).max() < 0.1


def test_what_it_saves_is_an_encoder_again(
    model: SentenceTransformer, encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    model.save(str(tmp_path / "again"))
    again = Encoder.from_pretrained(tmp_path / "again", device="cpu")
    assert again.config == encoder.config
    assert np.array_equal(again.encode(TEXTS), Encoder.from_pretrained(folder, device="cpu").encode(TEXTS))
    there = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    assert np.allclose(there.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_a_folder_is_refused_by_those_that_do_not_run_bellm(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"module class 'bellm.integrations.sentence_transformer.EncoderModule'"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ValueError, match="EncoderModule"):
        SentenceTransformerEncoderWrapper(str(folder), device="cpu")
    with warnings.catch_warnings(), pytest.raises(NotImplementedError, match="No model implementation"):
        warnings.simplefilter("ignore")  # It looks for the folder on the Hub.
        mteb.get_model(str(folder))
    with pytest.raises(SourceError, match=r"st:.* was saved by bellm. Give it without st:"):
        load_model(f"st:{folder}")


def test_several_views_are_refused_by_a_line_that_names_bellm(encoder: Encoder, tmp_path: Path) -> None:
    MultiViewEncoder([encoder, encoder.replace(prompt="raw")]).save_pretrained(folder := tmp_path / "both")
    with pytest.raises(ValueError, match=r"module class 'bellm.integrations.sentence_transformer.EncoderModule'"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(SourceError, match=r"holds several views, .* open it with bellm\.MultiViewEncoder"):
        SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    with pytest.raises(SourceError, match=r"st:.* was saved by bellm. Give it without st:"):
        load_model(f"st:{folder}")


def test_without_bellm_it_cannot_be_loaded(folder: Path) -> None:
    code = (
        "import sys; sys.modules['bellm'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        "SentenceTransformer(sys.argv[1], trust_remote_code=True)"
    )
    done = run([sys.executable, "-c", code, folder])
    assert done.returncode == 1
    assert "No module named 'bellm.integrations'" in done.stderr


def test_mteb_gives_the_encoders_scores(folder: Path, encoder: Encoder) -> None:
    score, wanted = (
        mteb.evaluate(each, OurSearch(), cache=None, show_progress_bar=False).task_results[0].get_score()
        for each in (SentenceTransformerEncoderWrapper(str(folder), trust_remote_code=True), MtebEncoder(encoder))
    )
    assert score == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_kwargs": {"load_in_8bit": True}}, "bellm has no load_in_8bit"),
        ({"processor_kwargs": {"model_max_length": 8}}, "bellm has no model_max_length"),
        ({"model_kwargs": {"dtype": "int7"}}, "dtype='int7' is not one of"),
    ],
)
def test_arguments_without_meaning_are_refused(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BellmError, match=said):
        SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)


def test_plain_transformers_still_loads_the_causal_model(folder: Path, tiny_model: LlamaForCausalLM) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids_1L = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(plain(ids_1L).logits, tiny_model(ids_1L).logits)
    assert json.loads((folder / "modules.json").read_text())[0]["path"] == ""
