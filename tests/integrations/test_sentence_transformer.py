"""A SentenceTransformer that is an encoder, by itself and in the libraries that ask for one."""

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, util

from bellm import BellmError, Encoder
from bellm.integrations import EncoderModule, as_sentence_transformer

TEXTS = ["A heron.", "Snow fell all night in the street.", "", "Why does it rise?"]


@pytest.fixture
def encoder(tiny_encoder: Encoder) -> Encoder:
    return tiny_encoder.replace(prompt="instruct:Find birds", pooling="mean")


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-5)


def test_vectors_are_those_of_the_encoder(encoder: Encoder) -> None:
    model = as_sentence_transformer(encoder)
    assert isinstance(model, SentenceTransformer)
    near(model.encode(TEXTS), encoder.encode(TEXTS))
    near(model.encode(TEXTS, batch_size=2, show_progress_bar=False), encoder.encode(TEXTS))
    near(model.encode_query(TEXTS), encoder.encode_query(TEXTS))
    near(model.encode_document(TEXTS), encoder.encode_document(TEXTS))
    near(model.encode(TEXTS, prompt_name="query"), encoder.encode_query(TEXTS))
    near(model.encode(TEXTS, prompt_name="document"), encoder.encode_document(TEXTS))
    assert np.abs(model.encode_query(TEXTS) - model.encode(TEXTS)).max() > 1e-2
    near(model.encode("A heron."), encoder.encode("A heron."))
    near(model.encode("heron.", prompt="A "), encoder.encode("A heron."))
    near(model.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True), encoder.encode(TEXTS, normalize=True))
    near(model.encode(TEXTS, truncate_dim=8), encoder.encode(TEXTS, truncate_dim=8))
    near(model.similarity(model.encode(TEXTS), model.encode(TEXTS)), encoder.similarity(*2 * [encoder.encode(TEXTS)]))
    assert model.get_embedding_dimension() == encoder.embedding_dim
    hits = util.semantic_search(model.encode_query("A heron."), model.encode_document(TEXTS), top_k=1)
    wanted = encoder.similarity(encoder.encode_query("A heron."), encoder.encode_document(TEXTS))
    assert hits[0][0]["corpus_id"] == int(wanted.argmax())


def test_it_moves_alone(encoder: Encoder) -> None:
    model = as_sentence_transformer(encoder)
    assert model.device == encoder.device
    model.half()
    assert (model[0].encoder.dtype_name, encoder.dtype_name) == ("float16", "float32")
    np.testing.assert_allclose(model.float().encode(TEXTS), encoder.encode(TEXTS), atol=0.05)
    model.max_seq_length = 40
    assert (model.max_seq_length, encoder.max_seq_length) == (40, 128)


def test_what_it_cannot_do_is_one_line(encoder: Encoder) -> None:
    model = as_sentence_transformer(encoder)
    with pytest.raises(BellmError, match="An encoder learns in bellm"):
        model.train()(model.preprocess(TEXTS))
    with pytest.raises(BellmError, match="input_type='cluster' is not one of"):
        model.encode(TEXTS, task="cluster")
    with pytest.raises(
        BellmError, match=r"is put before each text as it is, .*encoder\.replace\(prompt='Find \{text\}:'\)"
    ):
        model.encode(TEXTS, prompt="Find {text}:")
    with torch.no_grad():
        assert (
            EncoderModule(encoder).train()({"texts": TEXTS, "input_type": "text"})["sentence_embedding"].shape[0] == 4
        )
