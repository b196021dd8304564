"""`export` proves what it writes in a process of its own, or leaves nothing; the doctor finds what was changed."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr
from typer.testing import CliRunner

from bellm import BellmError, Encoder
from bellm.cli import app
from bellm.errors import SourceError
from bellm.export import EXPORT_FORMATS, Parity, diagnose_export, export
from bellm.export.export_formats import FormatName
from tests.export.exports import compared

PAIRS = [
    "Snow fell all night.\tIt snowed until morning.",
    "A heron waits.\tA grey bird stands still.",
    "The bill was paid twice.\tBread rises in a kitchen.",
    "Two trains left at noon.\tThe ferry left at dawn.",
]
RATINGS = [4.5, 4.0, 0.2, 2.5]


@pytest.fixture(scope="module")
def made(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parity]:
    folder = tmp_path_factory.mktemp("exporting") / "out"
    pairs = tmp_path_factory.mktemp("data") / "stsbenchmark" / "sts-dev.csv"
    pairs.parent.mkdir()
    pairs.write_text("".join(f"main\tfile\t2026\t{row}\t{RATINGS[row]}\t{PAIRS[row]}\n" for row in range(len(PAIRS))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BELLM_DATA", str(pairs.parents[1]))
        return folder, export(tiny_encoder, "sentence-transformers", folder)


def test_an_export_is_proved_without_bellm(made: tuple[Path, Parity], tiny_encoder: Encoder) -> None:
    folder, parity = made
    record = json.loads((folder / "parity.json").read_text())
    assert record == parity.to_json()
    assert record["format"] == "sentence-transformers"
    assert record["runtime"].startswith("sentence-transformers ")
    assert record["max_difference"] < 1e-5 < record["tolerance"]
    assert (record["rank_agreement"], round(record["min_cosine"], 6)) == (1, 1)
    left, right = zip(*(pair.split("\t") for pair in PAIRS), strict=True)
    cosines = tiny_encoder.similarity_pairwise(tiny_encoder.encode(left), tiny_encoder.encode(right))
    assert (
        record["sts"] == record["encoder_sts"] == pytest.approx(100 * spearmanr(cosines, RATINGS).statistic, abs=0.01)
    )
    assert record["speed_ratio"] > 0
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["remote_code"]
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]  # vLLM takes all for weights.
    assert {name: manifest[name] for name in tiny_encoder.config.to_dict()} == tiny_encoder.config.to_dict()
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o644}


def _flip_flag(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "open_attention": config["open_attention"][1:]}))


def _scale_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "layers.1.mlp.down_proj.weight"
    save_file(
        weights | {name: weights[name] * np.float32(1.01)}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def _swap_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]
    path.write_text(json.dumps(tokenizer))


def _pool_otherwise(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode": "mean"}))


@pytest.mark.parametrize("tamper", [_flip_flag, _scale_weight, _swap_tokens, _pool_otherwise])
def test_the_comparison_finds_what_was_changed(made: tuple[Path, Parity], tamper: Any, tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "changed")
    assert compared(tmp_path / "changed").holds
    shutil.rmtree(tmp_path / "changed-work")
    tamper(tmp_path / "changed")
    assert not compared(tmp_path / "changed").holds


@pytest.mark.slow
def test_the_doctor_says_so(tiny_encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(tiny_encoder, "transformers", folder)
    _flip_flag(folder)
    result = CliRunner().invoke(app, ["doctor", str(folder)])
    assert result.exit_code == 1
    assert "vectors are the encoder's" in result.stdout
    (folder / "config.json").write_text("{")
    [check] = diagnose_export(folder).checks
    assert check.status == "fail"
    assert "cannot be run in a process of its own" in check.finding
    result = CliRunner().invoke(app, ["doctor", str(folder), "--pooling", "mean"])
    assert "settings of its own: leave pooling out" in result.output
    (folder / "export.json").write_text("{}")
    with pytest.raises(SourceError, match=r"export\.json cannot be read"):
        diagnose_export(folder)


def test_what_differs_is_not_left(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(
        BellmError, match=r"gives other vectors in transformers .* they differ by .*Nothing was written"
    ):
        export(tiny_encoder, "transformers", tmp_path / "out", tolerance=0)
    assert list(tmp_path.iterdir()) == []


SENTENCES = "sentence-transformers"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (SENTENCES, {"pooling": "mean-text"}, "pooling='mean-text': take last, mean, weighted-mean, first, max"),
    (SENTENCES, {"bidirectional": "none", "layer": 3}, r"layer=3: take layer=-1, or drop the layers"),
    (SENTENCES, {"bidirectional": "last:2", "variant": "parallel"}, "variant='parallel': take variant='sequential'"),
    (SENTENCES, {"bidirectional": "none", "token_prepending": 2}, "token_prepending=2: take 0"),
    ("gguf", {}, "bidirectional='2-3' of 4 layers: take bidirectional='none' or 'all'. It goes into sentence-tr"),
    ("gguf", {"bidirectional": "all", "pooling": "weighted-mean"}, "pooling='weighted-mean': take last, mean, first"),
    ("onnx", {"prompt": "echo"}, "a prompt that holds the text twice"),
    ("tei", {"prompt": "prompteol"}, r"a prompt that goes on after the text \('\" means in .*take one that ends with"),
    ("vllm", {"pooling": "max"}, "pooling='max': take last, mean, first"),
    ("tei", {"pooling": "mean-text"}, "pooling='mean-text': take last, mean, weighted-mean, first, max"),
]


@pytest.mark.parametrize(("name", "settings", "words"), REFUSED)
def test_what_a_format_cannot_hold_is_refused(
    tiny_encoder: Encoder, name: Any, settings: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(BellmError, match=f"{name} cannot hold {words}"):
        export(tiny_encoder.replace(**settings), name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "openvino", "tei"])
def test_graphs_are_in_float32(tiny_encoder: Encoder, name: Any, tmp_path: Path) -> None:
    with pytest.raises(BellmError, match=f"{name} cannot hold dtype='bfloat16': load the encoder with dtype='float32'"):
        export(tiny_encoder.replace(prompt="raw").to(dtype="bfloat16"), name, tmp_path / "out")


def test_the_doctor_runs_no_code_of_others(made: tuple[Path, Parity], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "changed")
    code = tmp_path / "changed" / "open_decoder.py"
    code.write_text(code.read_text() + "\nraise SystemExit(9)\n")
    [check] = diagnose_export(tmp_path / "changed").checks
    assert "holds Python that this version of bellm has not written, which is not run" in check.finding


def test_arguments_are_checked(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(
        BellmError, match=r"format='sentence_transformers' is not one of .* Did you mean sentence-trans"
    ):
        export(tiny_encoder, "sentence_transformers", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(BellmError, match="tolerance=-1 is no distance"):
        export(tiny_encoder, "transformers", tmp_path / "out", tolerance=-1)
    with pytest.raises(BellmError, match="is no encoder"):
        export("smollm2", "transformers", tmp_path / "out")  # type: ignore[arg-type]
    assert get_args(FormatName) == (*EXPORT_FORMATS,)
    for number in (float("nan"), float("inf")):
        with pytest.raises(BellmError, match=f"tolerance={number} is no distance: give a number from 0 up"):
            export(tiny_encoder, "transformers", tmp_path / "out", tolerance=number)
