import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bellm import Encoder
from bellm.errors import BellmError, SourceError
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.models import load_models
from bellm.io.vectors import new_vector_file
from bellm.metadata import encoder_identity

TEXTS = ["A heron waits.", "Snow fell.", "Why?", "Snow fell."]


def test_an_encoder_keeps_its_vectors(tiny_encoder: Encoder, tmp_path: Path) -> None:
    model = EvaluatedModel.of(tiny_encoder, "tiny", tmp_path)
    found = model.vectors(TEXTS)
    np.testing.assert_allclose(found, tiny_encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)
    again = EvaluatedModel.of(tiny_encoder, "tiny", tmp_path).vectors(TEXTS[::-1])
    np.testing.assert_array_equal(again, found[::-1])
    assert model.metadata["open_layers"] == [2, 3]
    assert model.metadata["batching_mode"] == "packed"


def test_settings_decide_where_vectors_are_kept(tiny_encoder: Encoder, tmp_path: Path) -> None:
    for encoder in (tiny_encoder, tiny_encoder.replace(bidirectional="none"), tiny_encoder.replace(prompt="raw")):
        np.testing.assert_allclose(
            EvaluatedModel.of(encoder, "tiny", tmp_path).vectors(TEXTS), encoder.encode(TEXTS), rtol=1e-4, atol=1e-5
        )
    assert len(list((tmp_path / "vectors").iterdir())) == 3


def test_two_trainings_of_a_model_do_not_share_vectors(tiny_folder: Path, tmp_path: Path) -> None:
    first, second = Encoder.from_pretrained(tiny_folder), Encoder.from_pretrained(tiny_folder)
    with torch.no_grad():  # So little that rounding could explain it.
        second.model.model.layers[0].mlp.up_proj.weight.mul_(1 + 1e-4)
    assert encoder_identity(first) == encoder_identity(Encoder.from_pretrained(tiny_folder)) != encoder_identity(second)
    models = [EvaluatedModel.of(encoder, "a model", tmp_path) for encoder in (first, second)]
    for model, encoder in zip(models, (first, second), strict=True):
        np.testing.assert_array_equal(model.vectors(["Snow"]), encoder.encode(["Snow"]))
    assert (first.encode(["Snow"]) != second.encode(["Snow"])).any()


def test_layers_in_another_order_are_another_model(tiny_folder: Path, tmp_path: Path) -> None:
    first, second = Encoder.from_pretrained(tiny_folder), Encoder.from_pretrained(tiny_folder)
    layers = second.model.model.layers
    layers[0].load_state_dict(first.model.model.layers[1].state_dict())
    layers[1].load_state_dict(first.model.model.layers[0].state_dict())
    assert encoder_identity(first) != encoder_identity(second)


def test_a_sentence_transformers_model_that_was_trained_on_has_vectors_of_its_own(
    tiny_folder: Path, tmp_path: Path
) -> None:
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    module = models.Transformer(str(tiny_folder))
    model = SentenceTransformer(modules=[module, models.Pooling(module.get_embedding_dimension(), "mean")])
    vectors = []
    for _ in range(2):
        model.save(str(tmp_path / "model"))
        [loaded] = load_models([f"st:{tmp_path / 'model'}"], tmp_path / "cache")
        vectors.append(loaded.vectors(["Snow"]))
        np.testing.assert_array_equal(vectors[-1], loaded.encode(["Snow"], "text"))
        with torch.no_grad():  # So little that rounding could explain it.
            next(model.parameters()).mul_(1 + 1e-4)
    assert (vectors[0] != vectors[1]).any()


def test_roles_have_vectors_of_their_own(tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(prompt="instruct:Find the same thing")
    model = EvaluatedModel.of(encoder, "tiny", tmp_path)
    np.testing.assert_allclose(model.vectors(TEXTS, "query"), encoder.encode_query(TEXTS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.vectors(TEXTS, "document"), encoder.encode_document(TEXTS), rtol=1e-4, atol=1e-5)
    assert model.num_truncated(["s " * 115, "snow"], "query") == 1
    assert model.num_truncated(["s " * 115, "snow"], "document") == 0


def test_settings_behind_the_source(tiny_folder: Path, tmp_path: Path) -> None:
    sources = [f"{tiny_folder}?bidirectional=first:1&prompt=raw&layer=2&max_tokens=64", str(tiny_folder)]
    model, other = load_models(sources, tmp_path, pooling="mean")
    metadata = model.metadata
    assert [metadata[name] for name in ("open_layers", "prompt", "layer", "max_tokens", "pooling")] == [
        [0], "raw", 2, 64, "mean"
    ]  # fmt: skip
    assert other.metadata["open_layers"] == [2, 3]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("layers=2", "'layers' is no setting of an encoder. Did you mean layer? Settings: bidirectional,"),
        ("layer=top", "layer='top' cannot be read"),
        ("max_tokens=top", "max_tokens='top' is no whole number"),
        ("last:8", "'last:8' is no setting of an encoder"),
        ("pooling=sum", "pooling='sum' is not one of"),
    ],
)
def test_settings_that_are_none(tiny_folder: Path, tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises(BellmError, match=message.replace("?", r"\?")):
        load_models([f"{tiny_folder}?{query}"], tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_of_vectors(tiny_encoder: Encoder, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"v{suffix}"
    vectors = tiny_encoder.encode(TEXTS)
    with new_vector_file(str(file)) as write:
        write(TEXTS, vectors)
    [model] = load_models([f"vectors:{file}"], tmp_path)
    np.testing.assert_allclose(model.vectors(TEXTS[:2], "query"), vectors[:2], rtol=1e-6)
    with pytest.raises(SourceError, match="has no vector for 1 of 2 texts, the first of them 'Rain"):
        model.vectors(["Why?", "Rain."])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.jsonl", '{"text": "a"}\n', "needs the columns text and vector"),
        ("v.jsonl", '{"text": "a", "vector": [1, NaN]}\n', "hold numbers that are none"),
        (
            "v.jsonl",
            '{"text": "a", "vector": [1]}\n{"text": "b", "vector": [1, 2]}\n',
            r"line 2: 2 numbers, but the first",
        ),
        ("v.jsonl", '{"text": "a", "vector": [[1]]}\n', r"v\.jsonl, line 1: its vector is no list of numbers\.$"),
        ("v.jsonl", '{"text": "a", "vector": ["x"]}\n', r"line 1: its vector is no list of numbers\.$"),
        ("v.jsonl", '{"text": 7, "vector": [1]}\n', "line 1: 7 is not a text"),
        ("v.jsonl", '"a"\n', "line 1: it has no columns"),
        ("v.jsonl", "", "holds no vectors"),
        ("v.parquet", "no parquet", "cannot be read"),
        ("v.npy", "", "its suffix is '.npy'"),
        ("", "", "No such file"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path: Path, name: str, content: str, message: str) -> None:
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        load_models([f"vectors:{tmp_path / (name or 'none.jsonl')}"], tmp_path)


def test_what_is_no_vector_for_each_text_is_refused() -> None:
    for gives in (np.ones(3), np.ones((3, 2)), [[1.0, 2.0]] * 3, 1.0):
        model = EvaluatedModel.of(SimpleNamespace(name="odd", encode=lambda texts, gives=gives: gives))
        with pytest.raises(BellmError, match=r"^odd: encode gave an array of shape \(.*\) for 2 texts\.$"):
            model.vectors(["Snow fell.", "Why?"])


def test_anything_with_one_method(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> Any:
        asked.append(texts)
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    model = EvaluatedModel.of(SimpleNamespace(encode=encode), "lengths")
    assert model.vectors(TEXTS).tolist() == [[14], [10], [4], [10]]
    assert model.vectors(["Why?"], "query").tolist() == [[4]]
    assert asked == [["A heron waits.", "Snow fell.", "Why?"], ["Why?"]]
    told: list[int] = []
    model.vectors(TEXTS, "text", told.append)
    assert told == [3]
    assert json.dumps(dict(model.metadata)) == "{}"


def test_files_and_settings_are_checked_before_a_model_is_loaded(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> Encoder:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Encoder, "from_pretrained", load)
    for source, message in (
        ("vectors:none.jsonl", "none.jsonl"),
        (f"{tiny_folder}?layer=top", "layer='top'"),
        (f"{tiny_folder}?pooling=sum", "pooling='sum'"),
        ("./none", "./none is no folder"),
    ):
        with pytest.raises(BellmError, match=message):
            load_models([str(tiny_folder), source], tmp_path)
