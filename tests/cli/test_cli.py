import json
import os
import pty
import select
import signal
import sys
import termios
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from bellm import Encoder
from bellm.cli import app
from bellm.cli.terminal import CommandGroup
from bellm.errors import NoOpWarning
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity
from tests.cli.commands import one_process
from tests.processes import LIMIT, run, started

TEXTS = ["A heron stands in the shallow water.", "", "Snow fell  all night.", "The invoice was paid twice."]


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def bellm(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run in process; an exception that is not the wish to exit is a bug and comes through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def python(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bellm", *map(str, arguments)]


def test_help_and_version_load_no_model_library() -> None:
    code = (
        "import sys; from bellm.cli import app; app(['--help'], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    result = run([sys.executable, "-c", code])
    assert "bellm embed smollm2 sentences.txt" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
    assert bellm("--version").stdout.strip().count(".") == 2


@pytest.mark.parametrize("command", ["embed", "similarity", "search", "info", "evaluate", "layers", "train"])
def test_help_of_each_command_teaches(command: str) -> None:
    result = bellm(command, "--help")
    assert result.exit_code == 0
    assert f"bellm {command} " in result.stdout
    assert "--bidirectional" in result.stdout


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_embed_writes_the_vectors_of_the_encoder(
    tiny_folder: Path, tiny_encoder: Encoder, texts_file: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"v{suffix}"
    result = bellm("embed", tiny_folder, texts_file, "-o", output)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{output}: 4 rows of 32 dimensions, open layers 2-3 of 4, computed in float32")
    assert result.stderr == ""
    found = np.array(_vectors(output), np.float32)
    np.testing.assert_allclose(found, tiny_encoder.encode(TEXTS), rtol=1e-5, atol=1e-6)


def _vectors(path: Path) -> list[list[float]]:
    if path.suffix == ".npy":
        return list(np.load(path))
    if path.suffix == ".parquet":
        return pq.read_table(path).column("vector").to_pylist()
    return [json.loads(line)["vector"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_embed_hands_every_choice_to_the_encoder(
    tiny_folder: Path, tiny_encoder: Encoder, texts_file: Path, tmp_path: Path
) -> None:
    choices = {"bidirectional": "0-2", "variant": "parallel", "window": "open", "prompt": "instruct", "layer": 3}
    more = {"pooling": "mean-text", "max_tokens": 120}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (choices | more).items()]
    loading = ["--dtype=float32", "--device=cpu", "--attention=eager"]
    result = bellm(
        *("embed", tiny_folder, texts_file, "-o", tmp_path / "v.npy", "--json", "--normalize", "--input-type=query"),
        *(*options, *loading, "--max-batch-tokens=30"),
    )
    assert result.exit_code == 0
    metadata = json.loads(result.stdout)
    assert (metadata["rows"], metadata["embedding_dim"], metadata["output"]) == (4, 32, str(tmp_path / "v.npy"))
    assert metadata["seconds"] >= 0
    assert metadata["encoder"].items() >= ({**choices, **more, "open_layers": [0, 1, 2], "device": "cpu"}).items()
    other = tiny_encoder.replace(**choices, **more)
    expected = other.replace(normalize=True).encode_query(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, rtol=1e-4, atol=1e-5)


def test_embed_reads_lines_from_a_pipe(tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    result = bellm("embed", tiny_folder, "-", "-o", tmp_path / "v.npy", stdin="\n".join(TEXTS).encode())
    assert result.exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), tiny_encoder.encode(TEXTS), rtol=1e-5, atol=1e-6)


def test_embed_of_an_empty_file(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none.txt").touch()
    for output in ("v.npy", "vectors/"):
        result = bellm("embed", tiny_folder, tmp_path / "none.txt", "-o", f"{tmp_path}/{output}")
        assert result.exit_code == 0
        assert "note: There are no rows in" in result.stderr
    assert np.load(tmp_path / "v.npy").shape == (0, 32)


def test_force_replaces_the_output(tiny_folder: Path, texts_file: Path, tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_text("old")
    assert bellm("embed", tiny_folder, texts_file, "-o", tmp_path / "v.npy", "--force").exit_code == 0
    assert np.load(tmp_path / "v.npy").shape == (4, 32)


def test_warnings_of_bellm_are_notes(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("word " * 50 + "\nshort\n", encoding="utf-8")
    result = bellm(
        *("embed", tiny_folder, tmp_path / "t.txt", "-o", tmp_path / "v.npy"),
        *("--bidirectional=last:1", "--max-tokens=40"),
    )
    assert result.exit_code == 0
    no_op, cut = result.stderr.splitlines()
    assert no_op.startswith("note: Opening only layer 3 changes nothing")
    assert cut.startswith("note: 1 of 2 texts were cut to 40 tokens: split them, or raise max_tokens")


def test_warnings_of_others_are_silent() -> None:
    other = typer.Typer(cls=CommandGroup)
    other.callback()(lambda: None)

    @other.command("warn")
    def _warn() -> None:
        for category in (UserWarning, DeprecationWarning, FutureWarning, NoOpWarning):
            warnings.warn(category.__name__, category, stacklevel=1)

    assert CliRunner().invoke(other, ["warn"]).output == "note: NoOpWarning\n"


def test_similarity_of_two_texts(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    result = bellm("similarity", tiny_folder, TEXTS[0], TEXTS[2])
    left, right = tiny_encoder.encode([TEXTS[0], TEXTS[2]])
    expected = cosine_similarity(left[None], right[None])[0, 0]
    assert result.stdout == f"{expected:.4f}\n"
    assert result.stderr == ""


def test_similarity_of_two_files(tiny_folder: Path, tiny_encoder: Encoder, texts_file: Path, tmp_path: Path) -> None:
    rows = [{"phrase": text} for text in reversed(TEXTS)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.csv").write_text("phrase\n" + "".join(f'"{text}"\n' for text in TEXTS), encoding="utf-8")
    result = bellm("similarity", tiny_folder, tmp_path / "a.csv", tmp_path / "b.jsonl", "--column=phrase", "--json")
    found = json.loads(result.stdout)
    expected = paired_cosine_similarity(tiny_encoder.encode(TEXTS), tiny_encoder.encode(TEXTS[::-1]))
    np.testing.assert_allclose(found["cosines"], expected, rtol=1e-5)
    assert found["encoder"]["bidirectional"] == "2-3"


def test_search_ranks_by_cosine(tiny_folder: Path, tiny_encoder: Encoder, texts_file: Path) -> None:
    arguments = ("search", tiny_folder, "white street", "--in", texts_file, "--prompt=instruct", "--top=3")
    hits = json.loads(bellm(*arguments, "--json").stdout)["hits"]
    other = tiny_encoder.replace(prompt="instruct")
    scores = cosine_similarity(other.encode_query(["white street"]), other.encode_document(TEXTS))[0]
    assert [hit["row"] - 1 for hit in hits] == np.argsort(-scores)[:3].tolist()
    np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1][:3], rtol=1e-4)
    assert [hit["text"] for hit in hits] == [TEXTS[hit["row"] - 1] for hit in hits]
    table = bellm(*arguments).stdout
    assert table.index(f"{hits[0]['score']:.4f}") < table.index(f"{hits[1]['score']:.4f}")


def test_search_shows_texts_as_they_are(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("[bold]not markup :smile:\n", encoding="utf-8")
    assert "[bold]not markup :smile:" in bellm("search", tiny_folder, "x", "--in", tmp_path / "t.txt").stdout
    (tmp_path / "none.txt").touch()
    found = bellm("search", tiny_folder, "x", "--in", tmp_path / "none.txt", "--json")
    assert json.loads(found.stdout)["hits"] == []


def test_info(tiny_folder: Path, tiny_encoder: Encoder) -> None:
    found = json.loads(bellm("info", tiny_folder, "--device", "cpu", "--json").stdout)
    assert found["source"] == str(tiny_folder)
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["saved_encoder"] is True
    assert found["layers"] == {"full": "0-3"}
    assert found["open_layers"] == [2, 3]
    assert found["parameters"] == tiny_encoder.model.num_parameters()
    assert found["attention"] == tiny_encoder.model.config._attn_implementation
    assert found["chat_template"] is False
    words = " ".join(bellm("info", tiny_folder, "--device", "cpu").stdout.split())
    for word in ("(saved bellm encoder)", "0-3 full", "2-3 of 4", "sequential", "{text}", "prompteol", "62,752"):
        assert word in words
    assert "No model was loaded" not in words


def test_info_of_a_plain_model(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with tiny_encoder.causal() as model:
        model.save_pretrained(tmp_path / "plain")
    tiny_encoder.tokenizer.save_pretrained(tmp_path / "plain")
    found = json.loads(bellm("info", tmp_path / "plain", "--json").stdout)
    assert (found["saved_encoder"], found["open_layers"], found["bidirectional"]) == (False, [], "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("embed SOURCE none.txt -o v.npy", "none.txt cannot be read: No such file or directory."),
        ("embed SOURCE t.csv -o v.npy", "t.csv: no column 'text'. Columns: 'id', 'phrase'."),
        ("embed SOURCE latin1.txt -o v.npy", "latin1.txt, line 2: byte 0xef is not UTF-8."),
        ("embed SOURCE t.txt -o old.npy", "old.npy exists already."),
        ("embed SOURCE t.jsonl -o ./t.jsonl --force", "./t.jsonl is one of the inputs, and would be replaced."),
        ("embed SOURCE t.csv -o v.npy --columns text=phrase,id=id", "only a corpus folder keeps ids."),
        ("embed SOURCE t.csv -o v.npy --columns body=phrase", "'body=phrase' names no column of a part"),
        ("embed SOURCE t.txt -o v.csv", "cannot write v.csv: its suffix is '.csv', not one of .npy"),
        ("embed SOURCE t.txt -o none/v.npy", "there is no folder none."),
        ("embed ./none t.txt -o v.npy", "./none is no folder"),
        ("embed SOURCE t.txt -o v.npy --layer 40", "layer=40 does not exist"),
        ("embed SOURCE t.txt -o v.npy --bidirectional last:five", "Direction map 'last:five' cannot be read."),
        ("embed SOURCE t.txt -o v.npy --bidirectional 40", "layer 40, but the model has 4 layers (0 to 3)."),
        ("embed SOURCE t.txt -o v.npy --pooling middle", "pooling='middle' is not one of last, mean"),
        ("embed SOURCE t.txt -o v.npy --variant backwards", "variant='backwards' is not one of sequential"),
        ("embed SOURCE t.txt -o v.npy --prompt hello", "Prompt 'hello' is not known."),
        ("embed SOURCE t.txt -o v.npy --prompt chat", "the tokenizer has no chat template."),
        ("embed SOURCE t.txt -o v.npy --max-tokens 3", "leaves no room for the text"),
        ("embed SOURCE t.txt -o v.npy --dtype int8", "dtype='int8' is not one of auto, float32"),
        ("embed SOURCE t.txt -o v.npy --device toaster", "device='toaster' is not known"),
        ("similarity SOURCE t.txt two.txt", "t.txt has 4 texts and two.txt has 2"),
        ("similarity SOURCE hello two.txt", "two.txt is a file, but 'hello' is not."),
        ("search SOURCE hello --in none.txt", "none.txt cannot be read"),
        ("similarity SOURCE hello caf\udce9", "The second text: '\\udce9' is half a character."),
        ("search SOURCE caf\udce9 --in t.txt", "The query: '\\udce9' is half a character."),
        ("info ./none", "./none is no folder"),
    ],
)
def test_mistakes_are_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "two.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("id,phrase\n1,hello\n", encoding="utf-8")
    (tmp_path / "latin1.txt").write_bytes("fine\nnaïve\n".encode("latin1"))
    (tmp_path / "old.npy").write_text("old")
    (tmp_path / "t.jsonl").write_text('"old"\n')
    before = sorted(os.listdir(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = bellm(*arguments.replace("SOURCE", str(tiny_folder)).split())
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert message in line
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "old.npy").read_text() == "old"
    assert (tmp_path / "t.jsonl").read_text() == '"old"\n'


@pytest.mark.parametrize("arguments", [["embed", "x"], ["embed", "x", "y", "-o", "z", "--input-type=poem"], ["dance"]])
def test_misuse_exits_with_2(arguments: list[str]) -> None:
    result = bellm(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_cheap_checks_come_before_the_model(texts_file: Path, tmp_path: Path) -> None:
    (tmp_path / "no-model").mkdir()
    output = tmp_path / "v.npy"
    output.touch()
    assert "exists already" in bellm("embed", tmp_path / "no-model", texts_file, "-o", output).stderr


def test_process_is_quiet(tiny_folder: Path, texts_file: Path, tmp_path: Path) -> None:
    with one_process(os.environ) as command:
        good = command("embed", tiny_folder, texts_file, "-o", tmp_path / "v.npy")
        bad = command("embed", tiny_folder, texts_file, "-o", tmp_path / "w.npy", "--layer=40")
    assert (good.returncode, good.stderr) == (0, "")
    assert len(good.stdout.splitlines()) == 1
    assert (bad.returncode, bad.stdout) == (1, "")
    assert len(bad.stderr.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["texts.txt", "v.npy"]


def test_size_limit_leaves_nothing_behind(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("word\n" * 1000, encoding="utf-8")
    limited = ("sh", "-c", 'ulimit -f 64 && exec "$@"', "sh")
    result = run([*limited, *python("embed", tiny_folder, tmp_path / "t.txt", "-o", tmp_path / "v.npy")])
    assert result.returncode == 1
    assert result.stderr == f"bellm: {tmp_path / 'v.npy'} cannot be written: File too large.\n"
    assert os.listdir(tmp_path) == ["t.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_standard_output(tiny_folder: Path) -> None:
    with open("/dev/full", "w") as full:
        result = run(python("info", tiny_folder, "--json"), stdout=full)
    assert result.returncode == 1
    assert result.stderr == "bellm: No space left on device\n"


def test_reader_that_leaves_early(tiny_folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = run(python("info", tiny_folder), stdout=writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [(signal.SIGINT, 130, b"bellm: interrupted; nothing was written.\r\n"), (signal.SIGTERM, 143, b"")],
)
def test_interruption_leaves_nothing_behind(
    tiny_folder: Path, tmp_path: Path, sent: signal.Signals, code: int, message: bytes
) -> None:
    (tmp_path / "t.txt").write_text("a word and another\n" * 50_000, encoding="utf-8")
    ours, theirs = pty.openpty()  # At a terminal the progress bar tells when embedding has begun.
    termios.tcsetwinsize(theirs, (24, 100))
    command = python("embed", tiny_folder, tmp_path / "t.txt", "-o", tmp_path / "v.npy", "--max-batch-tokens=1")
    with open(ours, "rb", buffering=0), started(command, stderr=theirs) as process:
        os.close(theirs)
        _read(ours, until=b"text/s")
        assert any(name.endswith(".part") for name in os.listdir(tmp_path))
        process.send_signal(sent)
        shown = _read(ours)
        assert process.wait(timeout=LIMIT) == code
    assert b"Traceback" not in shown
    assert shown.endswith(message)
    assert os.listdir(tmp_path) == ["t.txt"]


def _read(terminal: int, until: bytes | None = None) -> bytes:
    """What a terminal shows, up to some words or to its end."""
    shown = b""
    while until is None or until not in shown:
        assert select.select([terminal], [], [], LIMIT)[0], f"nothing more came after {shown!r}"
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed.
            chunk = b""
        if not chunk:
            assert until is None, f"ended with {shown!r}"
            break
        shown += chunk
    return shown


def test_a_revision_becomes_part_of_the_source(tiny_folder: Path) -> None:
    result = bellm("info", "owner/name", "--revision", "v2")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "owner/name@v2" in result.stderr
    result = bellm("search", "a query", "--in", "nothing.txt", "--revision", "v2")
    assert "give that too, as the first argument" in result.stderr
    assert "float32" in bellm("info", str(tiny_folder), "--device-map", "auto").stdout
