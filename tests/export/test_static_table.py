"""A table of token vectors: each token through the prompt, equal in model2vec and sentence-transformers."""

from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel
from safetensors.numpy import load_file

from bellm import Encoder
from tests.export.exports import exported

pytestmark = pytest.mark.filterwarnings("ignore")  # Of what model2vec imports.


def test_both_libraries_give_the_mean_of_tokens(tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(variant="parallel", pooling="mean-text")
    found = exported(encoder, "static", tmp_path / "out")
    assert found["max_difference"] < 1e-5
    assert found["min_cosine"] > 0.9999
    assert found["embedding_dim"] == encoder.embedding_dim
    table = StaticModel.from_pretrained(tmp_path / "out")
    vectors = table.encode(["Snow", " Snow", "", "heron heron"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1], atol=1e-5)


def test_rows_are_the_encoders_vectors_turned(tiny_encoder: Encoder, tmp_path: Path) -> None:
    exported(tiny_encoder, "static", tmp_path / "out")
    table_VW = load_file(tmp_path / "out" / "model.safetensors")["embeddings"]
    tokenizer = tiny_encoder.tokenizer
    assert len(table_VW) == len(tokenizer)
    assert not table_VW[tokenizer.all_special_ids].any()
    ids = [index for index in range(len(tokenizer)) if table_VW[index].any()]
    texts = [tokenizer.decode([index]).strip() for index in ids]
    chosen = [row for row, text in enumerate(texts) if texts.count(text) == 1][-40:]
    vectors_ND = tiny_encoder.encode([texts[row] for row in chosen])
    rows_NW = table_VW[[ids[row] for row in chosen]]
    unit = rows_NW / np.linalg.norm(rows_NW, axis=1, keepdims=True)
    centered_ND = vectors_ND - tiny_encoder.encode(sorted(set(texts))).mean(0)
    expected = centered_ND / np.linalg.norm(centered_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, expected @ expected.T, atol=1e-4)
