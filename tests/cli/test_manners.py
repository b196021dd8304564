"""What the command line does with options, paths and streams that cannot be meant, before any model is loaded."""

import http.server
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from bellm.cli.terminal import CommandGroup
from bellm.errors import BellmWarning
from tests.cli.commands import one_process
from tests.cli.test_cli import bellm, python
from tests.evaluate.sets import write_pairs
from tests.processes import run

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

GOOD = {
    "embed": "MODEL t.txt -o v.npy",
    "similarity": "MODEL snow ice",
    "search": "MODEL snow --in t.txt",
    "evaluate": "MODEL -o report --tasks STSBenchmark-dev",
    "layers": "MODEL -o layers",
    "train": "MODEL --data t.csv -o run",
    "doctor": "MODEL",
    "info": "MODEL",
}
"""Command lines in which nothing is wrong but what a test adds."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    Path("MODEL").mkdir()
    Path("t.txt").write_text("A heron waits.\nSnow fell.\n")
    Path("t.csv").write_text("anchor,positive\nA heron waits.,It waits.\nSnow fell.,It snowed.\n")


def said(command: str, code: int = 1) -> str:
    """The one line of a command that is refused, which left nothing behind."""
    before = sorted(os.listdir())
    result = bellm(*command.split())
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert sorted(os.listdir()) == before
    return line


def single_options() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option" and not option.multiple and not option.is_eager:
                yield name, option.opts[0]


@pytest.mark.parametrize(("command", "option"), list(single_options()))
def test_an_option_of_one_value_is_given_once(command: str, option: str) -> None:
    [parameter] = [one for one in COMMANDS[command].params if option in one.opts]
    given = option if parameter.is_flag else f"{option}=1"
    line = said(f"{command} {GOOD.get(command, 'corpus')} {given} {given}", 2)
    assert f"{option}" in line
    assert "more than once" in line


def test_a_switch_and_its_opposite_are_refused() -> None:
    assert "more than once" in said("embed MODEL t.txt -o v.npy --normalize --no-normalize", 2)
    assert "more than once" in said("index corpus --exact --approximate", 2)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("embed", "Missing argument"),
        ("embed MODEL t.txt", "Missing option '--output'"),
        ("embed MODEL t.txt -o v.npy --input-type poem", "'poem' is not one of"),
        ("embed MODEL t.txt -o v.npy --max-batch-tokens many", "Invalid value for '--max-batch-tokens'"),
        ("embed MODEL t.txt -o v.npy --poling mean", "--pooling"),
        ("dance", "dance"),
        ("--dance", "--dance"),
        ("info one two", "unexpected extra argument"),
    ],
)
@pytest.mark.parametrize("width", [30, 200])
def test_misuse_is_one_line_at_any_width(command: str, words: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    line = said(command, 2)
    assert words in line
    assert "Usage: bellm" in line


@pytest.mark.parametrize("command", GOOD)
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--pooling=middle", "pooling='middle' is not one of"),
        ("--prompt=hello", "Prompt 'hello' is not known."),
        ("--token-prepending=-1", "token_prepending=-1 is too small"),
        ("--bidirectional=last:five", "'last:five' cannot be read"),
        ("--truncate-dim=0", "truncate_dim=0 is too small"),
    ],
)
def test_settings_are_checked_before_a_model_is_loaded(
    command: str, option: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "from_pretrained", _not_to_be_called)
    assert words in said(f"{command} {GOOD[command]} {option}")


def test_a_setting_that_is_wrong_costs_no_import() -> None:
    code = (
        "import sys; from bellm.cli import app; code = app(sys.argv[1:], standalone_mode=False); "
        "slow = {'torch', 'transformers'} & set(sys.modules); sys.exit(f'{code} {sorted(slow)}')"
    )
    done = run([sys.executable, "-c", code, *["embed", "MODEL", "t.txt", "-o", "v.npy", "--pooling", "middle"]])
    assert done.stderr.splitlines()[-1] == "1 []"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command says of a source that is not there, in a process that has no torch."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "t.csv").write_text("anchor,positive\nSnow fell.,It snowed.\n")
    lines = {command: [command, *line.replace("MODEL", "./none").split()] for command, line in WITH_SOURCE.items()}
    lines["evaluate, the second"] = ["evaluate", "st:some", "./none?pooling=mean", "-o", "out"]
    lines["evaluate, to compare"] = ["evaluate", "st:some", "--compare", "./none@main", "-o", "out"]
    lines["words, vectors"] = ["words", "vectors:./none", "-o", "out"]
    done = run([sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)], cwd=folder)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


WITH_SOURCE = {
    "embed": "MODEL t.csv -o out.npy",
    "similarity": "MODEL snow ice",
    "search": "MODEL snow --in t.csv",
    "evaluate": "MODEL -o out",
    "analyse": "MODEL st:some --texts t.csv -o out",
    "words": "MODEL -o out",
    "combine": "smollm2 MODEL -o out",
    "layers": "MODEL -o out",
    "demonstrations": "MODEL --candidates t.csv -o out",
    "train": "MODEL --data t.csv -o out",
    "prune": "MODEL --drop-layers 1 -o out",
    "spectra": "MODEL -o out",
    "quantize": "MODEL -o out",
    "center": "MODEL --texts t.csv -o out",
    "export": "MODEL --to transformers -o out",
    "compress": "MODEL --dev t.csv -o out",
    "serve": "MODEL --port 0",
    "augment": "MODEL --task t.csv -o out",
    "doctor": "MODEL",
    "info": "MODEL",
}
"""Commands that take a source, in which nothing is wrong but that."""

WITHOUT_TORCH = """
import json, sys
sys.modules.update(torch=None, transformers=None)  # To import them is an error.
from typer.testing import CliRunner
from bellm.cli import app

results = {name: CliRunner().invoke(app, line) for name, line in json.loads(sys.argv[1]).items()}
print(json.dumps({name: result.output for name, result in results.items()}))
"""


def test_every_command_with_a_source_is_asked() -> None:
    takes = {
        name for name, command in COMMANDS.items() if {"source", "sources"} & {each.name for each in command.params}
    }
    assert takes == set(WITH_SOURCE)


@pytest.mark.parametrize("name", [*WITH_SOURCE, "evaluate, the second", "evaluate, to compare"])
def test_a_source_that_is_not_there_costs_no_import(refused: dict[str, str], name: str) -> None:
    assert re.match(r"bellm: \./none(@main)? is no folder, GGUF file, Hub id \(owner/name\) or alias", refused[name])
    assert refused["words, vectors"] == "bellm: vectors:./none: there is no file ./none.\n"


def test_the_encoder_checks_settings_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellm.backbone.loading.load_pretrained", _not_to_be_called)
    for settings, words in (({"pooling": "middle"}, "pooling='middle'"), ({"pool": "mean"}, "'pool' is no setting")):
        with pytest.raises(ValueError, match=words):
            Encoder.from_pretrained("smollm2", **settings)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("embed MODEL none.txt -o v.npy", "none.txt"),
        ("embed MODEL t.txt -o none/v.npy", "none"),
        ("embed MODEL none.txt -o vectors/", "none.txt"),
        ("search MODEL snow --in none.txt", "none.txt"),
        ("evaluate MODEL -o report --tasks STSBenchmark-dev --data nowhere", "nowhere"),
        ("evaluate MODEL -o t.txt --tasks STSBenchmark-dev", "t.txt is a file"),
        ("evaluate MODEL -o report --tasks nothing", "'nothing' is no task"),
        ("layers MODEL -o layers --dev none.csv", "none.csv"),
        ("layers MODEL -o layers --dev flat.csv", "All 4 ratings are 3"),
        ("layers MODEL -o layers --dev nan.csv", "nan"),
        ("layers MODEL -o layers --dev flat.csv --columns query=a", "'query=a' names no column of a part"),
        ("evaluate MODEL -o report --tasks flat.csv --columns anchor=a,positive=b,score=c", "no column 'a'"),
        ("layers MODEL -o layers --dev classes.csv", "'label' holds classes"),
        ("layers MODEL -o layers --dev labeled.csv", "labeled.csv holds no pairs"),
        ("layers MODEL -o layers --data nowhere", "nowhere"),
        ("layers MODEL -o t.txt", "t.txt is a file"),
        ("layers MODEL -o layers --token-prepending 2", "leave out --token-prepending 2"),
        ("embed MODEL t.txt -o v.npy --devices ,", "names no device"),
        ("train none.py --data t.csv -o run", "There is no recipe none.py."),
        ("train MODEL --data none.csv -o run", "none.csv"),
        ("train MODEL --data t.csv -o run --epochs=0", "epochs=0.0 must be more than 0."),
    ],
)
def test_paths_are_checked_before_a_model_is_loaded(command: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "from_pretrained", _not_to_be_called)
    for name, scores in (("flat", "3333"), ("nan", ["1", "2", "nan", "4"])):
        rows = "".join(f"text {number},other {number},{score}\n" for number, score in enumerate(scores))
        Path(f"{name}.csv").write_text(f"sentence1,sentence2,score\n{rows}")
    Path("classes.csv").write_text("premise,hypothesis,label\na,b,0\nc,d,1\ne,f,2\n")
    Path("labeled.csv").write_text("text,label\na,0\nb,1\n")
    assert words in said(command)


@pytest.mark.parametrize("command", GOOD)
def test_ctrl_c_ends_every_command_with_130_and_a_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("BELLM_DATA", "data")
    write_pairs(Path("data"), "dev")
    monkeypatch.setattr(Encoder, "from_pretrained", stop)
    result = bellm(command, *GOOD[command].split())
    assert (result.exit_code, result.stdout) == (130, ""), result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: interrupted; ")
    assert set(os.listdir()) <= {"t.txt", "t.csv", "data", "run", "MODEL"}


def _not_to_be_called(*_: object, **__: object) -> None:
    raise AssertionError("the model was loaded first")


@pytest.mark.parametrize("command", ["evaluate", "layers", "train"])
def test_no_output_goes_to_a_file_or_folder_named_after_standard_output(command: str) -> None:
    arguments = GOOD[command].split()
    arguments[arguments.index("-o") + 1] = "-"
    assert "standard output" in said(f"{command} {' '.join(arguments)}", 2)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ("none1.txt", "none2.txt", "There is no file none1.txt"),
        ("t.txt", "none.txt", "There is no file none.txt"),
        ("./none1", "./none2", "There is no file ./none1"),
        ("data/none.md", "snow", "There is no file data/none.md"),
        (".", "..", ". is a folder"),
        ("folder", "snow", "folder is a folder"),
        ("-", "-", "standard input"),
        ("-", "snow", "- is a file, but 'snow' is not"),
    ],
)
def test_what_looks_like_a_file_is_never_compared_as_a_text(
    a: str, b: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "from_pretrained", _not_to_be_called)
    Path("folder").mkdir()
    assert words in said(f"similarity MODEL {a} {b}")


def test_texts_with_dots_and_slashes_are_texts(tiny_folder: Path) -> None:
    for text in ("and/or", "3.14", "U.S.A.", "https://example.com/a.html", "Read the notes in a.txt now.", ""):
        assert bellm("similarity", tiny_folder, text, "snow").exit_code == 0, text


def test_one_side_of_a_comparison_may_come_from_a_pipe(tiny_folder: Path) -> None:
    command = ("similarity", tiny_folder, "t.txt", "-")
    piped = bellm(*command, stdin=Path("t.txt").read_bytes())
    assert (piped.exit_code, piped.stdout) == (0, "1.0000\n1.0000\n")


@pytest.mark.parametrize(
    ("closed", "command", "code", "words"),
    [
        ("<&-", "embed MODEL - -o v.npy", 1, "standard input is closed"),
        (">&-", "info MODEL --json", 1, "standard output is closed"),
        ("2>&-", "info MODEL --json", 0, ""),
    ],
)
def test_closed_streams(tiny_folder: Path, closed: str, command: str, code: int, words: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    done = run([*shell, *python(*command.replace("MODEL", str(tiny_folder)).split())])
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == bool(words)
    assert words in done.stderr
    assert bool(done.stdout) == (not code)


class Broken(http.server.ThreadingHTTPServer):
    """A Hub that is down, and counts who asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.asked: list[str] = []


class Refusal(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def down() -> Iterator[Broken]:
    with Broken() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_mistyped_path_is_said_at_once(down: Broken, tmp_path: Path) -> None:
    there = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BELLM_DATA"))}
    there |= {"HF_ENDPOINT": f"http://127.0.0.1:{down.server_port}", "HF_HOME": str(tmp_path / "home")}
    with one_process(there | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}) as bellm:
        for command, times, words in (
            ("info none/there", 1, "none/there is no folder here, and the Hub cannot be reached"),
            ("info ./none", 0, "./none is no folder"),
            ("info none/at/all", 0, "none/at/all is no folder"),
            ("info ~/none", 0, "~/none is no folder"),
            ("train MODEL --data none/there -o run", 1, "there is no such folder"),
            ("evaluate MODEL --tasks STSBenchmark-dev -o report", 1, "Give a folder that has it (--data, BELLM_DATA)"),
        ):
            down.asked.clear()
            done = bellm(*command.split())
            assert (done.returncode, done.stdout) == (1, ""), command
            [line] = done.stderr.splitlines()
            assert words in line
            assert sum("/resolve/" in path for path in down.asked) == times, command


def test_the_same_note_is_shown_once() -> None:
    group = typer.Typer(cls=CommandGroup)
    group.callback()(lambda: None)

    @group.command("warn")
    def _warn() -> None:
        for words in ("first", "first", "second"):
            warnings.warn(words, BellmWarning, stacklevel=1)

    assert CliRunner().invoke(group, ["warn"]).output == "note: first\nnote: second\n"


def test_help_of_repeatable_options_says_so() -> None:
    repeatable = {(name, one.name) for name, command in COMMANDS.items() for one in command.params if one.multiple}
    assert repeatable == {
        ("analyse", "texts"),
        ("evaluate", "compare"),
        ("layers", "method"),
        ("train", "data"),
        ("serve", "also"),
    }
    assert CliRunner().invoke(app, ["train", "--help"]).output.count("again") >= 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_a_terminal_cannot_show_is_written_with_backslashes(tiny_folder: Path, encoding: str) -> None:
    Path("t.txt").write_text("Nai\N{COMBINING DIAERESIS}ve.\n", encoding="utf-8")
    name = b"caf\xe9.npy".decode(errors="surrogateescape")
    with one_process({**os.environ, "PYTHONIOENCODING": encoding}) as bellm:
        embedded = bellm("embed", tiny_folder, "t.txt", "-o", name, "--json")
        assert (embedded.returncode, embedded.stderr) == (0, "")
        assert json.loads(embedded.stdout)["output"] == name
        again = bellm("embed", tiny_folder, "t.txt", "-o", name, "--force")
        assert (again.returncode, again.stderr) == (0, "")
        assert again.stdout.startswith(("caf\\udce9.npy: 1 rows", "caf?.npy: 1 rows"))
        found = bellm("search", tiny_folder, "snow", "--in", "t.txt")
        assert (found.returncode, found.stderr) == (0, "")


def test_ctrl_c_while_commands_are_imported_is_a_line() -> None:
    code = (
        "import sys, runpy\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "runpy.run_module('bellm', run_name='__main__')\n"
    )
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (130, "bellm: interrupted; nothing was written.\n")
