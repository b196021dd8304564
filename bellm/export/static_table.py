"""Write an encoder as a table of its vocabulary, for model2vec: a text's vector is the mean of its tokens'.

Each token's text goes through the encoder in its prompt. Vectors are centered, turned to their principal axes, and
weighted by how rare the token is (SIF, Arora et al. 2017), with ranks for frequencies as in Zipf's law.

Shapes: V vocabulary, K token texts, D width of the encoder's vectors, W width of a row.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from bellm.encoder import Encoder
from bellm.engine.tokenization import special_tokens
from bellm.errors import BellmError
from bellm.io.atomic import write_json
from bellm.tensors.similarity import normalize_rows
from bellm.types import Vectors

_WIDTH, _SIF = 256, 1e-4
"""As model2vec has them."""


def write_static(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write table, tokenizer and the files by which model2vec and sentence-transformers know them."""
    token_texts = _token_texts(encoder)
    texts = list(dict.fromkeys(text for text in token_texts if text))
    if len(texts) < 2:
        raise BellmError(
            f"The tokenizer of {encoder.name} has {len(texts)} tokens that are text: no table is made of them."
        )
    row_of = {text: row for row, text in enumerate(texts)}
    vectors_KW = _principal_axes(encoder.encode_with_stats(texts).vectors)
    table_VW = np.zeros((len(token_texts), vectors_KW.shape[1]), dtype=np.float32)
    known = [index for index, text in enumerate(token_texts) if text]
    table_VW[known] = vectors_KW[[row_of[token_texts[index]] for index in known]] * _weights(len(known))[:, None]
    save_file({"embeddings": table_VW}, folder / "model.safetensors")
    tokenizer = copy.deepcopy(encoder.tokenizer).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": table_VW.shape[1]}
    learned = {"apply_zipf": True, "sif_coefficient": _SIF, "embedding_dtype": "float32"}
    write_json(folder / "config.json", {**settings, **learned, "normalize": True, "max_length": None})
    modules = [("StaticEmbedding", "."), ("Normalize", "1_Normalize")]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    (folder / "1_Normalize").mkdir()
    return {"embedding_dim": table_VW.shape[1], "num_texts": len(texts)}


def embed_by_table(encoder: Encoder, folder: Path, texts: Sequence[str]) -> Vectors:
    """What any runtime is to make of texts: the mean of their tokens' rows, of length 1; zeros for no token."""
    table_VW = load_file(folder / "model.safetensors")["embeddings"]
    rows = encoder.tokenizer(list(texts), add_special_tokens=False).input_ids
    return normalize_rows(np.stack([table_VW[ids].mean(0) if ids else np.zeros_like(table_VW[0]) for ids in rows]))


def _token_texts(encoder: Encoder) -> list[str]:
    """Text of every token, without spaces around it; empty for special tokens, spaces and parts of characters."""
    tokenizer = encoder.tokenizer
    specials = special_tokens(tokenizer)
    texts = []
    for index in range(len(tokenizer)):
        text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
        texts.append("" if text in specials or "\N{REPLACEMENT CHARACTER}" in text else text.strip())
    return texts


def _principal_axes(vectors_KD: Vectors) -> Vectors:
    """Centered vectors on the axes of largest variance, without scaling."""
    width = min(_WIDTH, *vectors_KD.shape)
    centered_KD = vectors_KD - vectors_KD.mean(0, dtype=np.float64)
    _, axes_DD = np.linalg.eigh(centered_KD.T @ centered_KD)
    return np.asarray(centered_KD @ axes_DD[:, ::-1][:, :width], dtype=np.float32)


def _weights(count: int) -> Vectors:
    """SIF weights of tokens in the order of a vocabulary, the most frequent first."""
    frequency = 1 / np.arange(2, count + 2)
    return np.asarray(_SIF / (_SIF + frequency / frequency.sum()), dtype=np.float32)
