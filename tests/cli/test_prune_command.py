"""`bellm prune`, as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bellm import Encoder
from bellm.backbone.weight_matrices import find_matrices
from tests.cli.test_cli import bellm
from tests.conftest import CORPUS
from tests.processes import end, run, started


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("".join(f"{text}\n" for text in CORPUS))


def test_help_teaches() -> None:
    result = bellm("prune", "--help")
    assert result.exit_code == 0
    assert result.stdout.count("Example: bellm prune smollm2") == 4


def test_a_pruned_folder_is_a_source_in_a_fresh_process_and_for_a_corpus(tiny_folder: Path) -> None:
    result = bellm("prune", tiny_folder, "--sparsity=0.5", "--calibration=texts.txt", "--allocation=owl", "-o", "half")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert "outliers" in result.stdout
    assert "half: 50.0% of " in result.stdout
    assert os.listdir() == ["texts.txt", "half"] or sorted(os.listdir()) == ["half", "texts.txt"]
    encoder = Encoder.from_pretrained("half")
    weights = [matrix.weight_OI for layer in find_matrices(encoder.model) for matrix in layer]
    assert sum(int((each == 0).sum()) for each in weights) == sum(each.numel() for each in weights) / 2
    shown = bellm("info", "half")
    assert "weights removed (owl, wanda)" in " ".join(shown.stdout.split())
    told = json.loads(bellm("info", "half", "--json").stdout)
    assert told["compression"] == list(encoder.compression)
    program = (
        "import sys; from bellm import Encoder; import numpy; "
        "numpy.save('v.npy', Encoder.from_pretrained('half').encode(open('texts.txt').read().splitlines()))"
    )
    assert run([sys.executable, "-c", program]).returncode == 0
    np.testing.assert_allclose(np.load("v.npy"), encoder.encode(list(CORPUS)), rtol=1e-4, atol=1e-5)
    made = bellm("embed", "half", "texts.txt", "-o", "corpus/", "--json")
    assert json.loads(made.stdout)["rows"] == len(CORPUS)


def test_layers_and_weights_go_together(tiny_folder: Path) -> None:
    command = ("prune", tiny_folder, "--drop-layers=1", "--drop-by=change", "--pattern=2:4", "--method=sparsegpt")
    result = bellm(*command, "--calibration=texts.txt", "-o", "out/both", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [step["kind"] for step in found["compression"]] == ["drop_layers", "prune"]
    assert (found["num_layers"], found["compression"][1]["sparsity"]) == (3, 0.5)
    assert os.listdir("out") == ["both"]


def test_texts_are_taken_from_the_whole_file(tiny_folder: Path) -> None:
    Path("many.txt").write_text("".join(f"{number} herons\n" for number in range(50)) * 2)
    result = bellm(
        "prune", tiny_folder, "--sparsity=0.5", "--calibration=many.txt", "--max-texts=7", "-o", "half", "--json"
    )
    assert json.loads(result.stdout)["compression"][0]["texts"] == 7


@pytest.mark.slow
def test_what_a_kill_leaves_is_resumed(tiny_folder: Path) -> None:
    texts = "".join(f"{number} herons and {number * 3} fish\n" for number in range(3000))
    Path("many.txt").write_text(texts)
    command = ["prune", str(tiny_folder), "--sparsity=0.5", "--calibration=many.txt", "--max-texts=3000"]
    whole = bellm(*command, "-o", "whole")
    assert whole.exit_code == 0, whole.stderr
    with started([sys.executable, "-m", "bellm", *command, "-o", "killed"], stderr=subprocess.DEVNULL) as process:
        while not list(Path().glob(".killed-pruning/layer-001*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        end(process)
    assert not Path("killed").exists()
    other = bellm(*command[:2], "--sparsity=0.6", *command[3:], "-o", "killed")
    assert other.exit_code == 1
    assert "holds a pruning with other sparsity (sparsity was 0.5, is 0.6)" in other.stderr
    assert bellm(*command, "-o", "killed").exit_code == 0
    for name in ("model.safetensors", "bellm.json"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert not list(Path().glob(".killed*"))


def test_a_refused_pruning_leaves_nothing(tiny_folder: Path) -> None:
    result = bellm(
        "prune", tiny_folder, "--sparsity=0.5", "--method=magnitude", "--allocation=alpha", "--eps=2", "-o", "half"
    )
    assert (result.exit_code, result.stderr) == (1, "bellm: eps=2.0 is not from 0 to below 1.\n")
    assert os.listdir() == ["texts.txt"]
