"""Vectors centered and whitened by texts of a user's own."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import BellmError, Encoder, MultiViewEncoder
from bellm.compress import center, drop_layers, prune, quantize
from bellm.data import STSPairs
from bellm.errors import BellmWarning
from bellm.evaluate import EvaluatedModel, STSTask, evaluate
from bellm.tensors.vector_statistics import VectorStatistics, hash_texts
from bellm.train import Recipe
from bellm.train.trainable import load_trainable
from tests.cli.test_cli import bellm
from tests.conftest import CORPUS
from tests.processes import run

TEXTS = list(CORPUS)
OWN = [f"{number} herons and {number * 7 % 13} fish in pond {number * 5 % 11}" for number in range(60)]


@pytest.fixture(scope="module")
def centered(tiny_encoder: Encoder) -> Encoder:
    return center(tiny_encoder, OWN)


@pytest.fixture(scope="module")
def white(tiny_encoder: Encoder) -> Encoder:
    return center(tiny_encoder, [*OWN, OWN[3]], whitening=True)


def test_the_mean_of_the_texts_is_taken_away(tiny_encoder: Encoder, centered: Encoder) -> None:
    mean_D = tiny_encoder.encode(OWN).mean(0)
    np.testing.assert_allclose(centered.encode(TEXTS), tiny_encoder.encode(TEXTS) - mean_D, atol=1e-5)
    np.testing.assert_allclose(centered.encode(OWN).mean(0), 0, atol=1e-5)
    np.testing.assert_array_equal(centered.replace(centering="none").encode(TEXTS), tiny_encoder.encode(TEXTS))
    assert (centered.config.centering, centered.batching_mode) == ("mean", "packed")


def test_whitened_vectors_have_no_covariance(tiny_encoder: Encoder, white: Encoder) -> None:
    np.testing.assert_allclose(np.cov(white.encode(OWN).T), np.eye(32), atol=2e-3)
    centered_ND = tiny_encoder.encode(TEXTS) - tiny_encoder.encode(OWN).mean(0)
    np.testing.assert_allclose(white.replace(centering="mean").encode(TEXTS), centered_ND, atol=1e-5)


def test_centering_comes_before_cutting_and_length(centered: Encoder, white: Encoder) -> None:
    for encoder in (centered, white):
        whole_ND = encoder.encode(TEXTS)
        short = encoder.replace(truncate_dim=8, normalize=True)
        expected_ND = whole_ND[:, :8] / np.linalg.norm(whole_ND[:, :8], axis=1, keepdims=True)
        np.testing.assert_allclose(short.encode(TEXTS), expected_ND, atol=1e-5)
        cut_ND = encoder.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
        np.testing.assert_allclose(cut_ND, expected_ND, atol=1e-5)


def test_the_first_whitened_numbers_are_the_axes_of_most_variance() -> None:
    scales_D = np.array([1, 5, 0.2, 3], dtype=np.float32)
    vectors_ND = (np.random.default_rng(0).normal(size=(5000, 4)) * scales_D + 7).astype(np.float32)
    statistics = VectorStatistics.measure(vectors_ND, map(str, range(5000)), "")
    assert statistics.whitening_DD is not None
    assert list(np.abs(statistics.whitening_DD).argmax(0)) == [1, 3, 0, 2]
    np.testing.assert_allclose(np.abs(statistics.whitening_DD).max(0), 1 / scales_D[[1, 3, 0, 2]], rtol=0.05)
    flat_ND = np.concatenate([vectors_ND, np.zeros((5000, 1), np.float32)], axis=1)
    flat = VectorStatistics.measure(flat_ND, map(str, range(5000)), "")
    assert np.isfinite(flat.apply(flat_ND, "whitening")).all()


def test_saved_loaded_and_under_the_fingerprint(white: Encoder, tmp_path: Path) -> None:
    white.replace(truncate_dim=8).save_pretrained(tmp_path / "white")
    loaded = Encoder.from_pretrained(tmp_path / "white")
    np.testing.assert_array_equal(loaded.encode(TEXTS), white.encode(TEXTS)[:, :8])
    assert loaded.describe()["centering_statistics"] == white.describe()["centering_statistics"]
    path = tmp_path / "white" / "vector_statistics.safetensors"
    kept = path.read_bytes()
    center(white.uncentered(), OWN[:40], whitening=True).save_pretrained(tmp_path / "other")
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(BellmError, match="does not give the vectors it was saved with"):
        Encoder.from_pretrained(tmp_path / "white")
    path.write_bytes(kept[:100])
    with pytest.raises(BellmError, match=r"vector_statistics\.safetensors cannot be read"):
        Encoder.from_pretrained(tmp_path / "white")
    path.unlink()
    with pytest.raises(BellmError, match=r"vector_statistics\.safetensors cannot be read"):
        Encoder.from_pretrained(tmp_path / "white")


@pytest.mark.filterwarnings("ignore::bellm.errors.NoOpWarning")
def test_nothing_is_left_of_vectors_that_are_all_the_same(tiny_encoder: Encoder) -> None:
    for whitening in (False, True):
        with pytest.raises(BellmError, match="have the same vector, and nothing would be left"):
            center(tiny_encoder.replace(bidirectional="none", pooling="first"), OWN, whitening=whitening)


def test_what_does_not_go_with_a_mean_is_one_line(tiny_encoder: Encoder, centered: Encoder) -> None:
    few = center(tiny_encoder, OWN[:20])
    for refused, said in (
        (lambda: center(tiny_encoder, OWN[:9]), "9 different texts are too few for a mean: give at least 10"),
        (lambda: center(tiny_encoder, OWN[:32], whitening=True), "32 different texts are too few to whiten 32 numbers"),
        (lambda: few.replace(centering="whitening"), "needs more texts than the 32 numbers"),
        (lambda: tiny_encoder.replace(centering="mean"), "there is none: learn it"),
        (lambda: centered.replace(prompt="raw"), "give other vectors than those whose mean is known"),
        (lambda: centered.encode(TEXTS, prompt="Say {text}"), "give other vectors than those whose mean is known"),
        (lambda: centered.replace(bidirectional="none"), "give other vectors than those whose mean is known"),
        (lambda: prune(centered, 0.5, method="magnitude"), "a mean that pruning would leave behind"),
        (lambda: drop_layers(centered, 1), "a mean that dropping layers would leave behind"),
        (lambda: quantize(centered), "a mean that quantizing would leave behind"),
        (lambda: load_trainable(Recipe(model=centered)), "a mean that training would leave behind"),
    ):
        with pytest.raises(BellmError, match=said) as raised:
            refused()
        assert "\n" not in str(raised.value)
    with centered.causal(), pytest.raises(BellmError, match="not that of the causal model"):
        centered.encode(TEXTS)
    assert centered.replace(prompt="raw", centering="none", max_tokens=99).encode(TEXTS).shape == (6, 32)
    assert centered.replace(max_tokens=99, normalize=True).config.centering == "mean"


def test_views_are_centered_too(tiny_encoder: Encoder, centered: Encoder, tmp_path: Path) -> None:
    views = [centered, centered.replace(centering="none", pooling="mean"), center(tiny_encoder, OWN[:20])]
    both = MultiViewEncoder(views)
    parts = [view.replace(normalize=True).encode(TEXTS) / np.sqrt(3) for view in views]
    np.testing.assert_allclose(both.encode(TEXTS), np.concatenate(parts, axis=1), atol=1e-5)
    both.save_pretrained(tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").glob("view-*")) == ["view-1", "view-3"]
    loaded = MultiViewEncoder.from_pretrained(tmp_path / "both")
    np.testing.assert_allclose(loaded.encode(TEXTS), both.encode(TEXTS), atol=1e-5)


def test_evaluation_says_where_the_mean_has_seen_the_texts(centered: Encoder, tmp_path: Path) -> None:
    gold_N = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    seen = STSTask("seen", data=STSPairs("seen", tuple(OWN[:3]), tuple(TEXTS[:3]), gold_N, ("",) * 3))
    unseen = STSTask("unseen", data=STSPairs("unseen", tuple(TEXTS[3:]), tuple(TEXTS[:3]), gold_N, ("",) * 3))
    with pytest.warns(BellmWarning, match="of which 3 are among the 6 of seen") as warned:
        evaluate([centered], [seen, unseen], resamples=2)
    assert len(warned) == 1
    evaluate([centered.replace(centering="none")], [seen], resamples=2)
    other = center(centered.uncentered(), OWN[:40])
    first, second = (EvaluatedModel.of(each, cache=tmp_path) for each in (centered, other))
    assert abs(first.vectors(TEXTS) - second.vectors(TEXTS)).max() > 1e-3
    assert len({path.name.split(".")[0] for path in tmp_path.rglob("*") if path.is_file()}) == 2


def test_texts_are_told_apart_by_their_hashes() -> None:
    assert len(set(hash_texts(map(str, range(10_000))))) == 10_000
    assert hash_texts([]).shape == (0,)


def test_a_centered_folder_is_a_source_in_a_fresh_process_and_for_a_corpus(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("".join(f"{text}\n" for text in OWN))
    result = bellm("center", tiny_folder, "--texts=texts.txt", "--whiten", "--truncate-dim=8", "-o", "white", "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["texts"], found["encoder"]["centering"], found["encoder"]["embedding_dim"]) == (60, "whitening", 8)
    program = (
        "import sys; from bellm import Encoder; import numpy; "
        "numpy.save('v.npy', Encoder.from_pretrained('white').encode(open('texts.txt').read().splitlines()))"
    )
    assert run([sys.executable, "-c", program]).returncode == 0
    np.testing.assert_allclose(np.load("v.npy"), Encoder.from_pretrained("white").encode(OWN), rtol=1e-3, atol=1e-3)
    assert bellm("embed", "white", "texts.txt", "-o", "corpus/", "--keep-text").exit_code == 0
    assert bellm("index", "corpus/").exit_code == 0
    hits = bellm("search", OWN[0], "--in", "corpus/", "--top=1", "--json")
    assert hits.exit_code == 0, hits.stderr
    assert OWN[0] in hits.stdout
