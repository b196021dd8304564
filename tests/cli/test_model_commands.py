"""`bellm doctor` as a user meets it: green, warned, red, and in JSON."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console
from tiny import configuration
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from bellm import Encoder
from bellm.backbone.leakage import LayerLeakage
from bellm.cli import app
from bellm.cli.model_commands import _layer_table
from bellm.doctor import Diagnosis, LayerDiagnosis
from tests import processes


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def test_a_sound_encoder_is_green(tiny_folder: Path) -> None:
    result = run(str(tiny_folder))
    assert result.exit_code == 0
    assert "Healthy." in result.stdout
    assert "FAIL" not in result.stdout
    assert "fingerprint" in result.stdout


def test_the_leak_matrix_shows_who_looks_both_ways(tiny_folder: Path) -> None:
    diagnosis = json.loads(run(str(tiny_folder), "--bidirectional", "0,3", "--json").stdout)
    assert diagnosis["healthy"] is True
    assert [row["is_open"] for row in diagnosis["layers"]] == [True, False, False, True]
    assert [row["leakage"]["future"] > 1e-5 for row in diagnosis["layers"]] == [True, False, False, True]


def test_neighbors_that_see_the_same_sides_share_a_row() -> None:
    seen = [(0, 0.5, 0), (0, 0.25, 0), (0.5, 0.5, 3), (0.5, 0, 9), (0.25, 0, 7)]
    layers = [
        LayerDiagnosis(number, "full", future > 0, LayerLeakage(future, past, reach))
        for number, (future, past, reach) in enumerate(seen)
    ]
    table = _layer_table(Diagnosis("tiny", (*layers, replace(layers[4], layer=5, kind="sliding:4")), ()))
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    rows = [" ".join(re.split(" {2,}", line.strip())) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [row for row in rows if row[:1].isdigit()] == [
        "0-1 full causal 0 0.25 to 0.5 -",
        "2 full both ways 0.5 0.5 3 tokens",
        "3-4 full both ways 0.25 to 0.5 0 9 tokens",
        "5 sliding:4 both ways 0.25 0 7 tokens",
    ]


def test_the_no_op_is_warned_about_and_is_no_failure(tiny_folder: Path) -> None:
    result = run(str(tiny_folder), "--bidirectional", "last:1", "--pooling", "last")
    assert result.exit_code == 0
    assert "warn" in result.stdout
    assert "Opening only layer 3 changes nothing" in result.stdout
    assert "note: Opening only layer 3 changes nothing" in result.stderr


def test_a_model_that_ignores_its_mask_is_red(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = configuration("gpt_neo")
    config.vocab_size = len(tiny_tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    result = run(str(tmp_path), "--bidirectional", "last:2")
    assert result.exit_code == 1
    assert "open but causal: 2-3" in result.stdout
    assert "do not heed their mask" in result.stdout


@pytest.mark.parametrize("arguments", [("--bidirectional", "40"), ("--pooling", "cls"), ("--dtype", "int3")])
def test_a_mistake_is_one_line(tiny_folder: Path, arguments: tuple[str, str]) -> None:
    result = run(str(tiny_folder), *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("bellm: ")
    assert result.stderr.count("\n") == 1


def test_a_source_that_lacks_weights_is_no_healthy_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    for path in tiny_folder.iterdir():
        if path.name not in ("bellm.json", "modules.json", "fingerprint.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert "Healthy" not in result.output
    assert "lacks 9 weights of the model (layers.4." in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_info_of_a_saved_encoder_is_what_its_files_say(tiny_folder: Path) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, transformers=None); from bellm.cli import app; "
        "app(['info', *sys.argv[1:]])"
    )
    done = processes.run([sys.executable, "-c", program, tiny_folder, "--json"])
    assert done.returncode == 0, done.stderr
    of_files = json.loads(done.stdout)
    loaded = json.loads(CliRunner().invoke(app, ["info", str(tiny_folder), "--device", "cpu", "--json"]).stdout)
    unknown = {"layers", "device", "attention", "batching_mode", "attention_kernel"}
    assert list(of_files) == list(loaded)
    assert of_files == loaded | dict.fromkeys(unknown)
    words = " ".join(CliRunner().invoke(app, ["info", str(tiny_folder)]).stdout.split())
    assert "2-3 of 4" in words
    assert (
        "No model was loaded, which layers, device, attention, batching_mode, attention_kernel are of: "
        f"bellm info {tiny_folder}" in words
    )


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.
def test_info_of_saved_adapters_says_what_they_leave_open(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with tiny_encoder.causal() as model:
        model.save_pretrained(tmp_path / "base")
    tiny_encoder.tokenizer.save_pretrained(tmp_path / "base")
    base = Encoder.from_pretrained(tmp_path / "base", bidirectional="last:2")
    adapted = base.with_model(get_peft_model(base.model, LoraConfig(target_modules=["q_proj"])))  # type: ignore[arg-type]
    adapted.save_pretrained(tmp_path / "adapted")
    found = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "adapted"), "--json"]).stdout)
    assert (found["base_model"], found["parameters"], found["embedding_dim"]) == (str(tmp_path / "base"), None, 32)
    words = " ".join(CliRunner().invoke(app, ["info", str(tmp_path / "adapted")]).stdout.split())
    assert "which parameters, architecture, layers, device" in words


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "[", "cannot be read"),
        ("config.json", "[]", "holds no object"),
        ("model.safetensors", "{", "cannot be read"),
        ("model.safetensors", None, "has no weights"),
        ("bellm.json", "{}", "cannot be read: settings of an encoder cannot be read: 'bidirectional' is missing. Save"),
        ("bellm.json", "[1]", "cannot be read: it holds no object. Save the encoder again."),
        ("bellm.json", "{", "line 1 column 2 (char 1). Save the encoder again."),
        ("bellm.json", "\udcff" * 900, "cannot be read: it is no UTF-8. Save the encoder again."),
        ("config.json", None, "config.json cannot be read: No such file or directory. Save the encoder again."),
        ("tokenizer_config.json", None, "tokenizer_config.json cannot be read: No such file"),
    ],
)
def test_info_of_a_damaged_folder_is_one_line(
    tiny_folder: Path, tmp_path: Path, file: str, content: str | None, words: str
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / file).unlink() if content is None else (tmp_path / "damaged" / file).write_bytes(
        content.encode(errors="surrogateescape")
    )
    result = CliRunner().invoke(app, ["info", str(tmp_path / "damaged")])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert words in line
    assert "Error(" not in line
    assert line.count("Save the encoder again.") == 1


@pytest.mark.parametrize("command", [("quantize", "--bits=8"), ("prune", "--sparsity=0.5", "--method=magnitude")])
def test_a_source_has_its_settings_wherever_one_encoder_is_asked_for(
    tiny_folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    source, output = f"{tiny_folder}?pooling=mean&bidirectional=last:3", tmp_path / "made"
    result = CliRunner().invoke(app, [*command, source, "--max-tokens=40", "-o", str(output)])
    assert result.exit_code == 0, result.stderr
    config = Encoder.from_pretrained(output).config
    assert (config.pooling, config.bidirectional, config.max_tokens) == ("mean", (1, 2, 3), 40)
    result = CliRunner().invoke(app, [*command, f"{tiny_folder}?transform=amr", "-o", str(tmp_path / "none")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("is a view, and this takes one encoder: leave transform out.\n")
