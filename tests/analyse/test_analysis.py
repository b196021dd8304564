"""Real encoders of four layers: models, layers of one, layers of two."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import BellmError, BellmWarning, Encoder
from bellm.analyse import MEASURES, compare_representations, compare_vectors
from bellm.analyse import analysis as analysis_module
from bellm.analyse import comparison as comparison_module
from bellm.analyse.analysis import LAYER_MEASURES
from bellm.analyse.layer_vectors import every_layer
from bellm.engine import padded
from bellm.evaluate import EvaluatedModel

WORDS = ("heron", "invoice", "bread", "snow", "train", "kitchen", "street", "bank")
TEXTS = [f"The {one} is {how} the {other}." for one in WORDS for other in WORDS[:4] for how in ("near", "not")]
QUICK: dict[str, Any] = {"permutations": 20, "resamples": 0}


def named(encoder: Encoder, name: str = "heron") -> EvaluatedModel:
    return EvaluatedModel.of(encoder, name)


@pytest.mark.filterwarnings("ignore::bellm.errors.NoOpWarning")
@pytest.mark.parametrize("pooling", ["last", "mean-text"])
def test_layers_are_those_that_the_encoder_reads(tiny_encoder: Encoder, tmp_path: Path, pooling: str) -> None:
    encoder = tiny_encoder.replace(pooling=pooling, prompt="prompteol", normalize=True, truncate_dim=8)
    vectors_NKD = every_layer(named(encoder), TEXTS, tmp_path)
    assert vectors_NKD.shape == (len(TEXTS), 5, 32)
    for layer in range(5):
        expected = encoder.replace(layer=layer, normalize=False, truncate_dim=32).encode(TEXTS)
        np.testing.assert_allclose(vectors_NKD[:, layer], expected, atol=2e-5)


def test_layers_are_read_once(tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = every_layer(named(tiny_encoder), TEXTS, tmp_path)
    rows: list[int] = []
    vectors = padded.PaddedRunner.vectors
    monkeypatch.setattr(
        padded.PaddedRunner, "vectors", lambda self, numbers: rows.extend(numbers) or vectors(self, numbers)
    )
    done: list[int] = []
    np.testing.assert_array_equal(every_layer(named(tiny_encoder), TEXTS, tmp_path, done.append), first)
    assert len(rows) < len(TEXTS) / 2  # The fingerprint's, and those of the packing check.
    assert sum(done) == len(TEXTS)
    assert not np.array_equal(every_layer(named(tiny_encoder.replace(bidirectional="all")), TEXTS, tmp_path), first)


def test_layers_and_vectors_of_one_encoder_are_kept_apart(tiny_encoder: Encoder, tmp_path: Path) -> None:
    model = EvaluatedModel.of(tiny_encoder, "heron", tmp_path)
    vectors = model.vectors(TEXTS)
    layers_NKD = every_layer(model, TEXTS, tmp_path)
    np.testing.assert_array_equal(every_layer(model, TEXTS, tmp_path), layers_NKD)
    np.testing.assert_array_equal(EvaluatedModel.of(tiny_encoder, "heron", tmp_path).vectors(TEXTS), vectors)


@pytest.mark.filterwarnings("ignore::bellm.errors.NoOpWarning")
def test_layers_that_all_give_one_vector_are_refused(tiny_encoder: Encoder) -> None:
    blind = named(tiny_encoder.replace(bidirectional="none", pooling="first"))
    with pytest.raises(BellmError, match="heron gives the same vector for all texts, in every layer"):
        compare_representations([blind], TEXTS, layers=True, **QUICK)


def test_the_record_says_how_many_texts_were_sampled(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (analysis_module, comparison_module):
        monkeypatch.setattr(module, "MOST_TEXTS", 40)
    pair = [named(tiny_encoder, "a"), named(tiny_encoder.replace(bidirectional="none"), "b")]
    found = compare_representations(pair, TEXTS, measures=["rsa"], permutations=0, resamples=0)
    assert found.metadata["sampled_texts"] == 40


def test_models_are_compared_on_their_vectors(tiny_encoder: Encoder) -> None:
    causal, opened = tiny_encoder.replace(bidirectional="none"), tiny_encoder
    found = compare_representations([named(causal, "causal"), named(opened, "open")], TEXTS, **QUICK)
    vectors = {"causal": causal.encode(TEXTS), "open": opened.encode(TEXTS)}
    assert found.comparisons == tuple(compare_vectors(vectors, **QUICK))
    assert found.measures == tuple(MEASURES)
    assert found.rows == found.columns == ("causal", "open")
    assert found.num_texts == len(TEXTS)
    assert found.agreement is None
    measures = found.comparisons[0].measures
    assert measures["cka_debiased"].p == pytest.approx(1 / 21)
    assert 0 < (measures["cka_debiased"].calibrated or 0) < 1
    assert measures["uniformity_difference"].null_mean is None


def test_layers_of_one_model_are_compared_with_each_other(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.warns(BellmWarning, match="same for all texts: heron layer 0"):
        found = compare_representations(
            [named(tiny_encoder.replace(prompt="prompteol", pooling="last"))],
            TEXTS,
            layers=True,
            cache=tmp_path,
            **QUICK,
        )
    assert found.rows == found.columns == tuple(f"heron layer {layer}" for layer in (1, 2, 3, 4))
    assert len(found.comparisons) == 6
    assert found.measures == LAYER_MEASURES
    assert found.agreement is not None
    assert found.by_names["heron layer 1", "heron layer 2"].measures["cka_debiased"].p == pytest.approx(1 / 21)


def test_layers_of_two_models_are_compared_across(tiny_encoder: Encoder) -> None:
    causal, opened = (
        tiny_encoder.replace(bidirectional=which, prompt="raw", pooling="mean") for which in ("none", "last:2")
    )
    names = ["cka_debiased", "procrustes"]
    found = compare_representations(
        [named(causal, "causal"), named(opened, "open")], TEXTS, layers=True, measures=names, permutations=0
    )
    assert len(found.comparisons) == 25
    assert found.measures == ("procrustes", "cka_debiased")
    for layer in range(5):
        same = found.by_names[f"causal layer {layer}", f"open layer {layer}"].measures["procrustes"].value
        # Layers below the first open one are those of the causal model.
        assert (same < 1e-3) == (layer <= 2), layer
    assert found.comparisons[0].measures["procrustes"].null_mean is None


def test_the_record_has_it_all(tiny_encoder: Encoder) -> None:
    others = [named(tiny_encoder.replace(bidirectional=which), which) for which in ("none", "last:3", "all")]
    found = compare_representations([named(tiny_encoder), *others], TEXTS, seed=3, measures=["cka", "rsa"], **QUICK)
    record = json.loads(json.dumps(found.to_json()))
    assert [record["model"], *(each["model"] for each in record["compared"])] == ["heron", "none", "last:3", "all"]
    assert record["metadata"]["open_layers"] == [2, 3]
    assert [(pair["a"], pair["b"]) for pair in record["comparisons"]][:2] == [("heron", "none"), ("heron", "last:3")]
    assert {"value", "null_mean", "null_sd", "p", "calibrated", "low", "high"} <= set(
        record["comparisons"][0]["measures"]["cka"]
    )
    assert record["agreement"]["measures"] == ["rsa", "cka"]
    assert (record["texts"], record["permutations"], record["half_samples"], record["seed"]) == (len(TEXTS), 20, 0, 3)
    assert "bellm" in record["versions"]


def test_repeated_texts_are_left_out(tiny_encoder: Encoder) -> None:
    pair = [named(tiny_encoder, "a"), named(tiny_encoder.replace(bidirectional="none"), "b")]
    options: dict[str, Any] = {"measures": ["knn_jaccard"], **QUICK}
    with pytest.warns(BellmWarning, match="3 of 67 texts are repeated, and left out"):
        found = compare_representations(pair, [*TEXTS, *TEXTS[:3]], **options)
    assert found.comparisons == compare_representations(pair, TEXTS, **options).comparisons


class Lists:
    """The least that has vectors."""

    def encode(self, texts: list[str]) -> Any:
        return np.array([[len(text), text.count("e")] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("models", "texts", "options", "message"),
    [
        (1, TEXTS, {}, "One model makes no pair. Give another, or compare its layers"),
        (3, TEXTS, {"layers": True}, "Layers of 3 models: give one, or two"),
        (2, TEXTS[:20], {}, "20 distinct texts are too few: give 24 or more"),
        (2, TEXTS, {"measures": ["cosine"]}, "measures='cosine' is not one of"),
        (2, TEXTS, {"permutations": 3}, "3 permutations cannot show anything"),
        (1, TEXTS, {"layers": True}, "Lists has no layers that bellm can read"),
        (2, TEXTS, {}, "Several models are called Lists: give each a name"),
    ],
)
def test_what_cannot_be_compared(models: int, texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BellmError, match=message):
        compare_representations([Lists() for _ in range(models)], texts, **options)
