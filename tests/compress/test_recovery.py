"""Encoders that lost layers learn from the one that has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellm import BellmError, Encoder
from bellm.compress import Grid, compress, drop_layers, prune, quantize, recover
from bellm.compress.grid import WeightsVariant
from bellm.data import STSPairs
from bellm.evaluate import load_model
from bellm.io.vectors import new_vector_file
from bellm.tensors.losses.contrastive import similarity_kl
from tests.cli.test_cli import bellm

MANY = [f"{number} herons and {number * 7 % 13} fish in pond {number * 5 % 11}" for number in range(96)]
TEXTS, UNSEEN = MANY[:66], MANY[66:]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Encoder) -> Encoder:
    return tiny_encoder.replace(bidirectional="0-1", prompt="raw", pooling="mean")


@pytest.fixture(scope="module")
def teacher(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("teacher") / "vectors.parquet"
    with new_vector_file(str(path)) as write:
        write(TEXTS, encoder.encode(TEXTS))
    return load_model(f"vectors:{path}")


def divergence(smaller: Encoder, encoder: Encoder) -> float:
    vectors = (torch.from_numpy(each.encode(UNSEEN)) for each in (smaller, encoder))
    return float(similarity_kl(*vectors))


def test_similarities_come_nearer_and_the_run_is_kept(encoder: Encoder, teacher: Any, tmp_path: Path) -> None:
    smaller = drop_layers(encoder, 2)
    before, vectors = divergence(smaller, encoder), smaller.encode(UNSEEN)
    steps: list[tuple[int, int]] = []
    # 66 texts are a batch and two more, which would have no similarities to compare.
    found = recover(smaller, teacher, TEXTS, 20, tmp_path / "run", lambda *step: steps.append(step))
    assert steps == [(number, 20) for number in range(1, 21)]
    assert divergence(found, encoder) < 0.7 * before
    np.testing.assert_array_equal(smaller.encode(UNSEEN), vectors)
    assert [step["kind"] for step in found.compression] == ["drop_layers", "recover"]
    assert found.compression[1]["summary"] == "trained 20 steps on 64 texts to give the similarities of all layers"
    assert (found.name, found.num_layers, found.config) == (encoder.name, 2, smaller.config)
    again = recover(smaller, teacher, TEXTS, 20, tmp_path / "run", lambda *step: steps.append(step))
    assert len(steps) == 20
    np.testing.assert_array_equal(again.encode(UNSEEN), found.encode(UNSEEN))
    found.save_pretrained(tmp_path / "saved")
    assert Encoder.from_pretrained(tmp_path / "saved").compression == found.compression
    with pytest.raises(BellmError, match="holds a run with other"):
        recover(drop_layers(encoder, 1), teacher, TEXTS, 20, tmp_path / "run")


def test_what_cannot_recover_is_one_line(encoder: Encoder, teacher: Any, tmp_path: Path) -> None:
    for refused, said in (
        (lambda: recover(encoder, teacher, TEXTS[:63], 1, tmp_path / "run"), "63 are too few: give 64 or more"),
        (
            lambda: recover(prune(encoder, 0.5, method="magnitude"), teacher, TEXTS, 1, tmp_path / "run"),
            "recover first",
        ),
        (lambda: recover(quantize(encoder), teacher, TEXTS, 1, tmp_path / "run"), "is quantized"),
    ):
        with pytest.raises(BellmError, match=said) as raised:
            refused()
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_grid_tries_fewer_layers_with_and_without() -> None:
    grid = Grid(dropped=(2, 3), sparsity=(0.5,), bits=(), dims=(), centered=False, recovery=9)
    assert [variant.name for variant in grid.weights()] == [
        "weights as they are",
        "50% zeros",
        "2 layers dropped",
        "2 layers dropped, 50% zeros",
        "2 layers dropped, 9 steps of recovery",
        "2 layers dropped, 9 steps of recovery, 50% zeros",
        "3 layers dropped",
        "3 layers dropped, 50% zeros",
        "3 layers dropped, 9 steps of recovery",
        "3 layers dropped, 9 steps of recovery, 50% zeros",
    ]
    assert WeightsVariant(2, 9).key == "drop2-recovery9-sparsity0-bits0"


@pytest.mark.slow
def test_compress_trains_each_depth_once_and_saves_what_it_scored(encoder: Encoder, tmp_path: Path) -> None:
    gold_N = np.array([number * 7 % 5 for number in range(15)], np.float64)
    pairs = STSPairs("pairs", tuple(UNSEEN[:15]), tuple(UNSEEN[15:]), gold_N, ("",) * 15)
    grid = Grid(dropped=(2,), sparsity=(), bits=(), dims=(), centered=False, recovery=2)
    said: list[str] = []
    found = compress(
        encoder,
        pairs,
        tmp_path / "out",
        budget=10**9,  # The best of all three.
        calibration=TEXTS,
        grid=grid,
        resamples=20,
        progress=lambda what, *_: said.append(what),
    )
    assert said.count("2 layers: training step 2 of 2") == 1
    rows = {row.name: row for row in found.rows}
    trained, plain = rows["2 layers dropped, 2 steps of recovery"], rows["2 layers dropped"]
    assert trained.value != plain.value
    assert trained.bytes == pytest.approx(plain.bytes, rel=0.05)
    run = tmp_path / "out" / "measured" / "recovery-2-layers-2-steps"
    vectors_ND = Encoder.from_pretrained(run / "model").encode([*pairs.left, *pairs.right])
    left, right = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in np.split(vectors_ND, 2))
    from scipy.stats import spearmanr

    assert trained.value == pytest.approx(100 * spearmanr((left * right).sum(1), gold_N).statistic, abs=0.3)
    model = Encoder.from_pretrained(tmp_path / "out" / "model")
    assert found.chosen.value == max(row.value for row in found.rows if not row.vectors.binary)
    kinds = ["drop_layers", "recover"] if found.chosen.weights.recovery else ["drop_layers"]
    assert [step["kind"] for step in model.compression] == kinds * bool(found.chosen.weights.dropped)


def test_mistakes_of_the_command_are_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{text},{text}s,{number % 4}\n" for number, text in enumerate(UNSEEN[:8]))
    Path("rated.csv").write_text(f"sentence1,sentence2,score\n{rows}")
    Path("few.txt").write_text("\n".join(TEXTS[:20]))
    Path("many.txt").write_text("\n".join(TEXTS))
    for options, said in (
        (["--drop-layers=1"], "Recovery trains on calibration texts, and 0 are too few"),
        (["--drop-layers=1", "--calibration=few.txt"], "and 20 are too few: give 64 or more, better a thousand"),
        (["--drop-layers=", "--calibration=many.txt"], "say how many layers to drop"),
    ):
        result = bellm("compress", tiny_folder, "--dev=rated.csv", "--recover=2", *options, "-o", "out")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert said in result.stderr
        assert not Path("out").exists()
