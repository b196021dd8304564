"""The grid of smaller encoders, its front, and the chosen one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.compress import Compression, Grid, center, compress, default_grid, drop_layers, quantize, write_compression
from bellm.compress.compression import CompressionRow
from bellm.compress.footprint import measure_footprint
from bellm.compress.grid import VectorForm, WeightsVariant
from bellm.data import STSPairs
from tests.cli.test_cli import bellm
from tests.decoders import with_tokens_of
from tests.processes import end, run, started
from tests.report.browser import complaints, find, find_all, requests, visit

LEFT = [f"{number} herons wait for fish" for number in range(24)]
RIGHT = [f"{number * number % 17} geese and {number % 5} herons" for number in range(24)]
PAIRS = STSPairs(
    "pairs", tuple(LEFT), tuple(RIGHT), np.array([number * 7 % 11 / 2 for number in range(24)]), ("",) * 24
)
OWN = [f"the {number}th letter was paid" for number in range(20)]
GRID = Grid(dropped=(1,), sparsity=(), bits=(8,), dims=(8,), centered=True)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Encoder) -> Encoder:
    return tiny_encoder.replace(normalize=True, bidirectional="0-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compress") / "small"


@pytest.fixture(scope="module")
def found(encoder: Encoder, folder: Path) -> Compression:
    return compress(encoder, PAIRS, folder, within=100, calibration=OWN, grid=GRID, resamples=50)


def spearman(vectors_ND: np.ndarray[Any, Any]) -> float:
    left, right = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in np.split(vectors_ND, 2))
    return 100 * float(spearmanr((left * right).sum(1).round(6), PAIRS.gold_N).statistic)


def test_every_row_is_what_the_encoder_itself_would_give(encoder: Encoder, found: Compression) -> None:
    rows = {row.name: row for row in found.rows}
    assert len(rows) == 4 * 2 * 2 * 2
    made = {
        "weights as they are": encoder,
        "weights as they are, centered": center(encoder, OWN),
        "1 layers dropped, 8 numbers": drop_layers(encoder, 1).replace(truncate_dim=8),
        "1 layers dropped, 8 bits, centered, 8 numbers": center(
            quantize(drop_layers(encoder, 1)).replace(truncate_dim=8), OWN
        ),
    }
    for name, one in made.items():
        assert rows[name].value == pytest.approx(spearman(one.encode([*LEFT, *RIGHT])), abs=0.3), name
    signs_ND = np.where(encoder.encode([*LEFT, *RIGHT]) > 0, 1.0, -1.0)
    assert rows["weights as they are, binary"].value == pytest.approx(spearman(signs_ND), abs=0.3)
    assert [rows[name].vector_bytes for name in (*list(made)[::2], "weights as they are, binary")] == [128, 32, 4]
    first = found.rows[0]
    assert (first.difference, first.p) == (0, 1)
    for row in found.rows:
        assert row.difference == pytest.approx(row.value - first.value, abs=1e-6)
        assert row.low <= row.value <= row.high
        assert row.peak_bytes > 50e6
        assert row.texts_per_second > 0
    sizes = [rows[name].bytes for name in ("weights as they are", "1 layers dropped", "1 layers dropped, 8 bits")]
    assert sizes == sorted(sizes, reverse=True)


def test_the_front_holds_what_nothing_beats(found: Compression) -> None:
    def row(size: int, vector: int, speed: float, value: float) -> CompressionRow:
        costs = {"bytes": size, "vector_bytes": vector, "texts_per_second": speed, "value": value}
        return replace(found.rows[0], **costs)

    assert row(1, 4, 10, 60).dominates(row(2, 4, 10, 60))
    assert row(1, 4, 10, 60).dominates(row(1, 4, 9, 60))
    assert row(1, 4, 10, 60).dominates(row(1, 4, 10.3, 59))
    assert not row(1, 4, 10, 60).dominates(row(1, 4, 10.3, 60))
    assert not row(1, 4, 10, 60).dominates(row(1, 4, 12, 59))
    assert not row(1, 4, 10, 60).dominates(row(2, 2, 10, 60))
    assert not row(1, 4, 10, 60).dominates(row(2, 4, 10, 61))
    front = [each for each in found.rows if each.pareto]
    assert front
    assert not any(other.dominates(each) for each in front for other in found.rows)


def test_the_smallest_within_the_points_is_saved_and_measured_once(
    encoder: Encoder, folder: Path, found: Compression
) -> None:
    smallest = min(row.bytes for row in found.rows)
    assert found.chosen.bytes == smallest
    assert not found.chosen.vectors.binary
    kept = {path: path.stat().st_mtime_ns for path in (folder / "measured").glob("*.safetensors")}
    assert len(kept) == 4
    for rule, wanted in (({"within": 0.0}, 0.0), ({"budget": found.rows[0].bytes}, None), ({"budget": smallest}, None)):
        other = compress(encoder, PAIRS, folder, calibration=OWN, grid=GRID, resamples=50, **rule)
        fit = [row for row in other.rows if not row.vectors.binary]
        if wanted is None:
            fit = [row for row in fit if row.bytes <= rule["budget"]]
            assert other.chosen.value == max(row.value for row in fit)
        else:
            fit = [row for row in fit if row.difference >= 0]
            assert other.chosen.bytes == min(row.bytes for row in fit)
        loaded = Encoder.from_pretrained(folder / "model")
        assert spearman(loaded.encode([*LEFT, *RIGHT])) == pytest.approx(other.chosen.value, abs=0.3)
        assert loaded.config.normalize
    assert kept == {path: path.stat().st_mtime_ns for path in (folder / "measured").glob("*.safetensors")}
    assert sorted(os.listdir(folder)) == ["measured", "model"]


def test_what_cannot_be_is_one_line(encoder: Encoder, folder: Path, found: Compression) -> None:
    least = min(row.bytes for row in found.rows)
    for change, said in (
        ({"budget": 1000}, f"the smallest takes {least:,}. Give more"),
        ({"within": -1}, "within=-1 is below 0"),
        ({"budget": 0}, "budget=0 is not above 0"),
        ({"calibration": OWN[:12]}, "holds a grid with other texts"),
        ({"calibration": [*OWN, LEFT[0]]}, "1 calibration texts are among the pairs of pairs"),
        ({"encoder": encoder.replace(prompt="raw")}, "holds a grid with other encoder"),
    ):
        given: dict[str, Any] = {"encoder": encoder, "calibration": OWN, "grid": GRID, **change}
        with pytest.raises(BellmError, match=said) as raised:
            compress(given.pop("encoder"), PAIRS, folder, **given)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dropped": (1, 4)}, "4 layers cannot go: the model has 4, of which 1 to 3 can"),
        ({"dropped": (0,)}, "0 layers cannot go"),
        ({"dims": (8, 33)}, "Vectors cannot be cut to 33 numbers: they have 32"),
        ({"dims": (0,)}, "Vectors cannot be cut to 0 numbers"),
        ({"bits": (3,)}, "Weights cannot have 3 bits: give 8 or 4"),
        ({"sparsity": (0.5, 1.0)}, "sparsity=1 is not between 0 and 1"),
    ],
    ids=str,
)
def test_values_that_do_not_suit_are_refused_before_anything_is_measured(
    encoder: Encoder, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(BellmError, match=said) as raised:
        compress(encoder, PAIRS, tmp_path / "out", calibration=OWN, grid=replace(GRID, **values))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_change_are_refused_at_the_start(
    encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    experts = Encoder.from_pretrained(with_tokens_of(tiny_tokenizer, "mixtral"), tokenizer=tiny_tokenizer, prompt="raw")
    for model, grid, said in (
        (experts, GRID, "in one fused tensor.* Or leave sparsity and bits out"),
        (quantize(encoder), replace(GRID, dropped=()), "are quantized already.* Or leave sparsity and bits out"),
        (quantize(encoder), replace(GRID, bits=()), "are quantized already"),
    ):
        with pytest.raises(BellmError, match=said) as raised:
            compress(model, PAIRS, tmp_path / "out", grid=grid, calibration=OWN)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_value_given_twice_is_tried_once() -> None:
    grid = Grid(dropped=(1, 1), sparsity=(), bits=(8, 8), dims=(4, 4), centered=False)
    assert (len(grid.weights()), len(grid.forms())) == (4, 4)


def test_a_file_without_calibration_texts_is_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rated.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n")
    Path("empty.txt").write_text("")
    result = bellm("compress", tiny_folder, "--dev=rated.csv", "--calibration=empty.txt", "-o", "small")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("bellm: --calibration empty.txt holds no texts.")
    assert not Path("small").exists()


@pytest.mark.slow
def test_the_peak_is_that_of_the_process_itself(tiny_folder: Path) -> None:
    large = np.ones(150_000_000)
    own = measure_footprint(tiny_folder, LEFT, "cpu").peak_bytes
    assert own > 50e6
    program = "import bellm.compress.footprint as f, numpy as n; x = n.ones(150_000_000); print(f._peak_memory())"
    assert int(run([sys.executable, "-c", program]).stdout) > own + large.nbytes / 4


def test_the_usual_grid() -> None:
    grid = default_grid(30, 576, with_texts=True, quick=False)
    assert grid == Grid((3, 6, 9, 15), (0.5,), (8, 4), (288, 144, 64), True)
    assert len(grid.weights()) == 30
    assert grid.weights()[0] == WeightsVariant()
    assert grid.forms()[0] == VectorForm()
    assert default_grid(30, 576, with_texts=False, quick=True) == Grid((6,), (), (8,), (144,), False)
    assert default_grid(1, 1, with_texts=False, quick=True) == Grid((), (), (8,), (), False)


def test_the_page_has_the_rows_and_is_alone(driver: Any, tmp_path: Path, found: Compression) -> None:
    record = write_compression(found, "models/<b>heron</b>", tmp_path)
    assert record == json.loads((tmp_path / "results.json").read_text())
    assert {"name", "bytes", "texts_per_second", "value", "low", "high", "difference", "p"} <= set(record["rows"][0])
    visit(driver, tmp_path / "compress.html")
    assert find(driver, "h1").text == "What a smaller encoder costs"
    assert len(find_all(driver, "table.scores tbody tr")) == len(found.rows)
    assert find(driver, ".summary").text.startswith(found.chosen.name)
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "compress.html").as_uri()]


@pytest.mark.slow
def test_what_a_kill_leaves_is_resumed(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = zip(LEFT, RIGHT, PAIRS.gold_N, strict=True)
    Path("rated.csv").write_text("sentence1,sentence2,score\n" + "".join(f"{a},{b},{gold}\n" for a, b, gold in rows))
    command = ["compress", str(tiny_folder), "--dev=rated.csv", "--drop-layers=", "--bits=8", "--dims=8", "-o", "small"]
    with started([sys.executable, "-m", "bellm", *command], stderr=subprocess.DEVNULL) as process:
        first = Path("small/measured/drop0-sparsity0-bits0.safetensors")
        while not first.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        end(process)
    written = first.stat().st_mtime_ns
    assert not Path("small/results.json").exists()
    done = bellm(*command, "--json")
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    assert first.stat().st_mtime_ns == written
    record = json.loads(done.stdout)
    assert [row["name"] for row in record["rows"]][:3] == [
        "weights as they are",
        "weights as they are, binary",
        "weights as they are, 8 numbers",
    ]
    assert sorted(os.listdir("small")) == ["compress.html", "measured", "model", "results.json"]
    assert Encoder.from_pretrained("small/model").encode(LEFT).shape[0] == 24
