"""What people type first on a command line works, or one line says how it is written here; mistakes need no torch."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bellm import Encoder
from bellm.cli import app
from bellm.data.task_names import TASK_NAMES, VALIDATION
from bellm.hints import COMMAND_HINTS
from tests.processes import run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("t.csv").write_text("text,label\nA heron waits.,1\nSnow fell.,0\n")


def bellm(command: str, *more: object) -> Result:
    return CliRunner().invoke(app, [*shlex.split(command), *map(str, more)])


def said(command: str) -> str:
    """The one line that a command which cannot work says."""
    result = bellm(command)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("bellm: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("option", COMMAND_HINTS)
def test_options_of_other_programs_are_hinted_at(option: str) -> None:
    line = said(f"embed tiny t.csv -o v.npy {option} 8" if option != "--dataset" else f"train tiny {option} x -o run")
    assert f"No such option: {option}.{COMMAND_HINTS[option]}" in line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("embed tiny t.csv -o v.npy --poolin mean", "No such option: --poolin. Did you mean --pooling?"),
        ("embed tiny t.csv -o v.npy --normalise", "No such option: --normalise. Did you mean --normalize?"),
        ("embd tiny t.csv -o v.npy", "No such command 'embd'. Did you mean embed?"),
        ("embed tiny t.csv -o v.npy --pooling meen", "is not one of last, mean, mean-text, weighted-mean, first, max."),
        ("embed tiny t.csv -o v.npy --pooling meen", "Did you mean mean?"),
        ("embed tiny t.csv -o v.npy --prompt promteol", "Prompt 'promteol' is not known. Did you mean prompteol?"),
        ("embed tiny t.csv -o vectors --precision flaot16", "Did you mean float16?"),
        ("evaluate tiny -o report --tasks STSBenchmrk", "'STSBenchmrk' is no task. Did you mean STSBenchmark?"),
        ("similarity --model tiny a b", "The model comes first: bellm COMMAND MODEL"),
        ("search hello", "Missing option '--in'"),
        ("similarity hello", "Missing argument"),
        ("similarity one two three four", "unexpected extra argument"),
        ("embed tiny t.csv -o - --json", "leave one of them out"),
        ("embed tiny t.csv -o v.npy -q -v", "two answers to one question"),
    ],
)
def test_what_is_nearest_is_named(command: str, words: str) -> None:
    assert words in said(command)


def test_an_error_is_one_line_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERMINAL_WIDTH", "20")
    for command in ("embed tiny none.txt -o v.npy", "embed tiny t.csv -o v.npy --poolin mean", "embd", "index none"):
        said(command)


MISTAKES = [
    "embed tiny none.txt -o v.npy",
    "embed tiny none.txt -o vectors/",
    "embed tiny t.csv -o v.npy --column nope",
    "embed tiny t.csv -o v.npy --poolin mean",
    "embed tiny t.csv -o v.npy --pooling middle",
    "similarity tiny none.txt t.csv",
    "similarity none.txt t.csv",
    "search tiny snow --in none.txt",
    "search snow --in empty",
    "search '' --in t.csv",
    "index none",
    "train tiny --data none.csv -o run",
    "train tiny --data t.csv -o run",
    "train none.py --data t.csv -o run",
    "info ./none",
    "doctor t.csv",
    "similarity 'none?pooling=mean' snow snow",
    "evaluate tiny --tasks none.csv -o report",
    "layers tiny --dev none.csv -o layers",
    "layers tiny --train none.csv -o layers",
]


def test_a_mistake_is_said_before_torch_is_imported() -> None:
    Path("empty").mkdir()
    program = (
        "import json, shlex, sys\nfrom typer.testing import CliRunner\nfrom bellm.cli import app\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(app, shlex.split(command))\n"
        "    assert result.exit_code in (1, 2) and result.stderr.count('\\n') == 1, (command, result.output)\n"
        "    slow = {'torch', 'transformers', 'scipy', 'lancedb'} & set(sys.modules)\n"
        "    assert not slow, (command, slow)\n"
    )
    done = run([sys.executable, "-c", program, json.dumps(MISTAKES)])
    assert done.returncode == 0, done.stderr


def test_help_needs_no_numpy() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom bellm.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0 and 'numpy' not in sys.modules\n"
    )
    assert run([sys.executable, "-c", program]).returncode == 0


def test_vectors_go_to_standard_output(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    result = bellm("embed", tiny_folder, "t.csv", "-o", "-", "--normalize", "--truncate-dim=8")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["A heron waits.", "Snow fell."]
    wanted = tiny_encoder.replace(normalize=True, truncate_dim=8).encode(["A heron waits.", "Snow fell."])
    np.testing.assert_allclose([line["vector"] for line in lines], wanted, atol=1e-5)
    assert "standard output: 2 rows of 8 dimensions" in result.stderr
    assert sorted(os.listdir()) == ["t.csv", "tiny"]


def test_quiet_says_nothing_and_verbose_shows_where_an_error_comes_from(tiny_folder: Path) -> None:
    result = bellm("similarity", tiny_folder, "t.csv", "t.csv")
    assert "note: t.csv: not read: column 'label'." in result.stderr
    result = bellm("similarity", tiny_folder, "t.csv", "t.csv", "-q")
    assert result.stderr == ""
    assert result.stdout == "1.0000\n1.0000\n"
    assert "note: " in bellm("similarity", tiny_folder, "t.csv", "t.csv").stderr  # Quiet was that command alone.
    result = bellm("embed tiny none.txt -o v.npy --verbose")
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "bellm: none.txt cannot be read: No such file or directory."


def test_the_source_comes_first_and_may_be_left_out(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bellm.cli.search_command"], "DEFAULT_MODEL", str(tiny_folder))
    assert bellm("similarity", "a", "b").stdout == bellm("similarity", tiny_folder, "a", "b").stdout != ""
    left, given = bellm("search snow --in t.csv"), bellm("search", tiny_folder, "snow", "--in", "t.csv")
    assert left.stdout == given.stdout != ""


def test_a_shell_completes_commands_and_options() -> None:
    for words, wanted in (("bellm em", "embed"), ("bellm embed --pool", "--pooling")):
        number = str(len(words.split()) - 1)
        variables = {"_BELLM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
        done = run([sys.executable, "-m", "bellm"], env={**os.environ, **variables})
        assert wanted in done.stdout.split()


def test_tasks_are_those_that_evaluate_knows() -> None:
    from bellm.evaluate.suite import TASKS

    assert {task.name for task in TASKS} == set(TASK_NAMES)
    assert {task.name for task in TASKS if not task.is_test_set} == set(VALIDATION)
    shown = bellm("tasks").stdout
    assert all(name in shown for name in TASK_NAMES)
    assert "prompteol" in bellm("prompts").stdout


def test_models_in_both_caches_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    assert bellm("models").stdout == "No model is cached yet.\n"
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    kept = tmp_path / "cache" / "models" / "one"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    found = json.loads(bellm("models --json").stdout)["models"]
    assert [(model["source"], model["cache"]) for model in found] == [("someone/model", "hub"), (str(kept), "bellm")]


def test_a_file_keeps_options_and_the_command_line_has_the_last_word(tiny_folder: Path) -> None:
    Path("options.toml").write_text('[info]\nbidirectional = "last:1"\nmax-tokens = 32\njson = true\n')
    assert [_settings(tiny_folder, more) for more in ("", "--bidirectional first:1")] == [("3", 32), ("0", 32)]


def _settings(folder: Path, more: str) -> tuple[str, int]:
    result = bellm(f"--config options.toml info {folder} {more}")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    return found["bidirectional"], found["max_tokens"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[embd]\n", "'embd', which is no table of a command. Did you mean embed?"),
        ("embed = 3\n", "'embed', which is no table of a command."),
        ('[embed]\npoolin = "mean"\n', "the option 'poolin', which it does not have. Did you mean pooling?"),
        ("[embed\n", "(--config) cannot be read as TOML: "),
        ('[embed]\npooling = "middle"\n', "'middle'"),
        ('[embed]\nmax-tokens = "many"\n', "'--max-tokens': Input should be a valid integer"),
        ("[embed]\nmax-tokens = [1]\n", "--max-tokens"),
    ],
)
def test_what_a_file_of_options_may_not_say(text: str, words: str) -> None:
    Path("options.toml").write_text(text)
    assert words in said("--config options.toml embed tiny t.csv -o v.npy")
    assert "none.toml (--config) cannot be read" in said("--config none.toml embed tiny t.csv -o v.npy")
