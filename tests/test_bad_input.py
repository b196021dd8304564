"""Bad input in any form is one line, an exit code, and nothing written: no traceback, no half-truth."""

import fnmatch
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from bellm import Encoder, EncoderPool
from bellm.cli import app
from bellm.errors import BellmError
from tests.bad.bench import make_bench
from tests.bad.cases import GOOD_WORK, Case, all_cases
from tests.processes import run

Snapshot = dict[str, tuple[int, int, int]]


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Encoder,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "bench"
    make_bench(folder, tiny_encoder, tiny_model, tiny_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in GOOD_WORK:
            result = CliRunner().invoke(app, shlex.split(command))
            assert result.exit_code == 0, result.output
    shutil.copytree(folder, folder.with_name("pristine"), symlinks=True)
    return folder


@pytest.fixture(autouse=True)
def _untouched(bench: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every case runs in the bench, and leaves it as it was; runs that have begun keep their steps."""
    monkeypatch.chdir(bench)
    monkeypatch.setenv("BELLM_DATA", "sets")
    monkeypatch.setenv("BELLM_CACHE", str(bench.parent / "cache"))
    before = snapshot(bench)
    yield
    after = snapshot(bench)
    if after != before:  # The next case shall not pay for this one.
        for path in bench.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(bench.with_name("pristine"), bench, symlinks=True, dirs_exist_ok=True)
    if "late" in request.node.name:
        run_folder = str(bench / "run")
        assert os.path.join(run_folder, "model") not in after
        after = {path: facts for path, facts in after.items() if not path.startswith(run_folder)}
    assert sorted(after.keys() - before.keys()) == [], "something was written"
    assert after == before


def snapshot(folder: Path) -> Snapshot:
    """Mode, size and time of everything in a folder."""
    found: Snapshot = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            facts = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[path] = (facts.st_mode, 0 if is_folder else facts.st_size, 0 if is_folder else facts.st_mtime_ns)
    return found


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: f"{case.kind}: {case.command[:90]}")
def test_a_command_that_cannot_work_is_one_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(case.command)
    while "=" in arguments[0]:
        monkeypatch.setenv(*arguments.pop(0).split("=", 1))
    result = CliRunner().invoke(app, arguments, prog_name="bellm", input=b"from a pipe\n")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    lines = [line for line in lines if not (result.exit_code == 2 and line.startswith("Usage: "))]
    [line] = lines
    assert line.startswith("bellm: ")
    assert len(line) < 700
    assert fnmatch.fnmatchcase(line, f"*{escaped(case.said)}*"), line


def escaped(said: str) -> str:
    return said.replace("[", "[[]")


Call = Callable[[Encoder], Any]

HALF = "caf\udce9"
GOOD = np.eye(2, 32, dtype=np.float32)

ENCODE: dict[str, tuple[Any, str]] = {
    "nothing": (None, "NoneType"),
    "a number": (5, "int"),
    "bytes": (b"hello", "bytes"),
    "numbers": ([1, 2], "texts[0] is int"),
    "nothing in a list": (["fine", None], "texts[1] is NoneType"),
    "bytes in a list": ([b"hello"], "texts[0] is bytes"),
    "lists in a list": ([["hello"]], "texts[0] is list"),
    "half a character": ([HALF], "texts[0] holds half a character"),
    "an array of numbers": (np.zeros(3), "texts[0] is"),
    "not a number, as pandas has it": (["fine", float("nan")], "texts[1] is float"),
    "a dictionary": ({"text": "hello"}, "dict"),
}

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"poolin": "mean"}, "Did you mean pooling?"),
    "layers as an object": ({"bidirectional": object()}, "Direction map <object"),
    "layers as a fraction": ({"bidirectional": 0.5}, "Direction map 0.5"),
    "layers as texts": ({"bidirectional": ["one"]}, "Direction map ['one']"),
    "layers as true": ({"bidirectional": True}, "Direction map True"),
    "layers beyond": ({"bidirectional": [99]}, "layer 99"),
    "layers below": ({"bidirectional": [-1]}, "layer -1"),
    "pooling as a number": ({"pooling": 3}, "pooling=3"),
    "pooling as a list": ({"pooling": ["mean"]}, "pooling"),
    "layer as a text": ({"layer": "last"}, "layer='last'"),
    "layer as a fraction": ({"layer": 1.5}, "layer=1.5"),
    "layer as true": ({"layer": True}, "layer=True"),
    "max_tokens as a text": ({"max_tokens": "ten"}, "max_tokens='ten'"),
    "max_tokens below": ({"max_tokens": -1}, "max_tokens=-1"),
    "max_tokens beyond": ({"max_tokens": 10**9}, "max_tokens=1000000000"),
    "max_tokens as a float": ({"max_tokens": 64.0}, "max_tokens=64.0"),
    "truncate_dim zero": ({"truncate_dim": 0}, "truncate_dim=0"),
    "truncate_dim beyond": ({"truncate_dim": 33}, "truncate_dim=33"),
    "truncate_dim as a text": ({"truncate_dim": "8"}, "truncate_dim='8'"),
    "normalize as a text": ({"normalize": "yes"}, "normalize='yes'"),
    "normalize as a number": ({"normalize": 1}, "normalize=1"),
    "window": ({"window": "wide"}, "window='wide'"),
    "variant": ({"variant": 1}, "variant=1"),
    "prompt as a number": ({"prompt": 5}, "prompt"),
    "prompt without a slot": ({"prompt": "hello"}, "hello"),
    "hint as a number": ({"hint": 5}, "hint=5"),
    "prompt as bytes": ({"prompt": b"{text}"}, "prompt"),
    "token_prepending as a text": ({"token_prepending": "1"}, "token_prepending='1'"),
}

LOADING: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": 5}, "dtype=5"),
    "dtype of another kind": ({"dtype": "int8"}, "dtype='int8'"),
    "device": ({"device": 5.5}, "device=5.5"),
    "attention": ({"attention": 5}, "attention"),
    "config as a dictionary": ({"config": {"pooling": "mean"}}, "config"),
    "tokenizer": ({"tokenizer": 5}, "tokenizer"),
}

SOURCE_OBJECTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "NoneType"),
    "a number": (5, "int"),
    "an object": (object(), "object"),
    "bytes": (b"tiny", "bytes"),
    "a list": (["tiny"], "list"),
    "a missing path": (Path("nowhere"), "nowhere"),
}


def _train(**changes: Any) -> Any:
    from bellm.train import Recipe, load_dataset, train

    sources = changes.pop("sources", [(load_dataset("triplets.csv"), 1.0)])
    return train(Recipe(**{"model": "tiny", "batch_size": 4, "max_steps": 1, **changes}), sources, Path("run"))


def _evaluate(models: Any, tasks: Any = ("STSBenchmark-dev",), **options: Any) -> Any:
    from bellm.evaluate import evaluate

    return evaluate(models, tasks, **options)


def _embed_corpus(encoder: Any, inputs: Any, **options: Any) -> Any:
    from bellm.corpus import embed_corpus

    return embed_corpus(encoder, inputs, "vectors", **options)


def _find_layers(encoder: Any, dev: Any = "STSBenchmark-dev", **options: Any) -> Any:
    from bellm.layer_search import find_layers

    return find_layers(encoder, dev, **options)


def _set(encoder: Encoder, name: str, value: Any) -> None:
    setattr(encoder, name, value)


CALLS: dict[str, tuple[Call, str]] = {
    **{f"encode {name}": (lambda e, x=texts: e.encode(x), said) for name, (texts, said) in ENCODE.items()},
    **{f"encode_query {name}": (lambda e, x=texts: e.encode_query(x), said) for name, (texts, said) in ENCODE.items()},
    **{f"replace {name}": (lambda e, x=given: e.replace(**x), said) for name, (given, said) in SETTINGS.items()},
    **{
        f"from_pretrained {name}": (lambda e, x=given: Encoder.from_pretrained("tiny", **x), said)
        for name, (given, said) in (SETTINGS | LOADING).items()
    },
    **{
        f"from_pretrained source {name}": (lambda e, x=source: Encoder.from_pretrained(x), said)
        for name, (source, said) in SOURCE_OBJECTS.items()
    },
    "encode with an unknown input type": (lambda e: e.encode(["a"], input_type="poem"), "poem"),
    "encode with no tokens": (lambda e: e.encode(["a"], max_batch_tokens=0), "max_batch_tokens=0"),
    "encode with tokens as a text": (lambda e: e.encode(["a"], max_batch_tokens="many"), "max_batch_tokens"),
    "a loaded model without its tokenizer": (lambda e: Encoder.from_pretrained(e.model), "needs its tokenizer"),
    "a loaded model in another dtype": (
        lambda e: Encoder.from_pretrained(e.model, tokenizer=e.tokenizer, dtype="float16"),
        "keeps its dtype",
    ),
    "similarity of texts": (lambda e: e.similarity(["a"], ["b"]), "encode"),
    "similarity of other widths": (lambda e: e.similarity(GOOD, np.eye(2, dtype=np.float32)), "32"),
    "similarity of nothing": (lambda e: e.similarity(None, GOOD), "rows of one width"),
    "similarity of what is no number": (lambda e: e.similarity(GOOD * np.nan, GOOD), "NaN or infinity"),
    "a typed attribute": (lambda e: _set(e.replace(), "pooling", "mean"), "replace(pooling="),
    "save to a file": (lambda e: e.save_pretrained("good.txt"), "good.txt"),
    "save under a file": (lambda e: e.save_pretrained("good.txt/encoder"), "good.txt"),
    "save to a folder with something in it": (lambda e: e.save_pretrained("foreign"), "foreign"),
    "a pool without devices": (lambda e: EncoderPool(e, []), "devices is empty"),
    "a pool of an unknown device": (lambda e: EncoderPool(e, ["toaster"]), "toaster"),
    "a pool of a string of devices": (lambda e: EncoderPool(e, "cpu"), "devices"),
    "evaluate no model": (lambda e: _evaluate([]), "model"),
    "evaluate a number": (lambda e: _evaluate([5]), "5 is no model"),
    "evaluate a source string": (lambda e: _evaluate(["tiny"]), "'tiny' is no model"),
    "evaluate a model that is no list": (lambda e: _evaluate(e), "list"),
    "evaluate a string": (lambda e: _evaluate("tiny"), "list"),
    "evaluate on a string": (lambda e: _evaluate([e], "STSBenchmark-dev"), "list"),
    "evaluate on nothing": (lambda e: _evaluate([e], []), "task"),
    "evaluate on an unknown task": (lambda e: _evaluate([e], ["nope"]), "'nope' is no task"),
    "evaluate with a missing folder": (lambda e: _evaluate([e], data=Path("nowhere")), "nowhere"),
    "evaluate without resamples": (lambda e: _evaluate([e], resamples=0), "resamples=0"),
    "train without sources": (lambda e: _train(sources=[]), "[] is no data"),
    "train with too large a batch type": (lambda e: _train(batch_size="x"), "batch_size='x'"),
    "train with half a batch": (lambda e: _train(batch_size=2.5), "batch_size=2.5"),
    "train with infinite epochs": (lambda e: _train(epochs=float("inf")), "epochs=inf"),
    "train with epochs that are none": (lambda e: _train(epochs=float("nan")), "epochs=nan"),
    "train without an objective": (lambda e: _train(objective=None), "objective"),
    "train with a text for tuning": (lambda e: _train(tuning="lora"), "tuning"),
    "train with an unknown schedule": (lambda e: _train(schedule="steep"), "schedule='steep'"),
    "train with settings as a list": (lambda e: _train(encoder_options=["mean"]), "encoder_options"),
    "train with a rank of zero": (lambda e: _train_lora(rank=0), "positive integer"),
    "train with targets that are not there": (lambda e: _train_lora(targets=("nothing",)), "nothing"),
    "train with a warmup of two": (lambda e: _train(warmup=2), "warmup=2"),
    "train with patience and no dev": (lambda e: _train(patience=1), "patience"),
    "train on a missing model": (lambda e: _train(model="./none"), "./none is no folder"),
    "layers by a test set": (lambda e: _find_layers(e, "STSBenchmark"), "test set"),
    "layers by a number": (lambda e: _find_layers(e, 5), "dev"),
    "layers by an unknown method": (lambda e: _find_layers(e, methods=["dance"]), "dance"),
    "a corpus of a string": (lambda e: _embed_corpus(e, "good.txt"), "list"),
    "a corpus of nothing": (lambda e: _embed_corpus(e, []), "input"),
    "a corpus of a missing file": (lambda e: _embed_corpus(e, ["none.txt"]), "none.txt"),
    "a corpus of no rows a shard": (lambda e: _embed_corpus(e, ["good.txt"], shard_rows=0), "shard_rows=0"),
    "a corpus of unknown precision": (lambda e: _embed_corpus(e, ["good.txt"], precision="int2"), "precision"),
    "a corpus of an unknown type": (lambda e: _embed_corpus(e, ["good.txt"], input_type="poem"), "poem"),
    "a corpus by no encoder": (lambda e: _embed_corpus(5, ["good.txt"]), "5 is no encoder"),
}


def _train_lora(**changes: Any) -> Any:
    from bellm.train import LoRA

    return _train(tuning=LoRA(**changes))


@pytest.mark.parametrize(("call", "said"), CALLS.values(), ids=CALLS)
def test_a_call_that_cannot_work_is_one_line(tiny_encoder: Encoder, call: Call, said: str) -> None:
    with pytest.raises(BellmError) as caught:
        call(tiny_encoder)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert said in message


def python(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bellm", *map(str, arguments)]


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("info tiny", ">&-"),
        ("embed tiny - -o v.npy", "<&-"),
        ("search tiny hello --in good.txt --json", "<&- >&-"),
        ("info none/at/all", "2>&-"),
        ("similarity tiny hello there", "<&- >&- 2>&-"),
    ],
)
def test_closed_streams_end_without_a_traceback(command: str, closed: str) -> None:
    result = run(["sh", "-c", f'exec "$@" {closed}', "sh", *python(*command.split())], cwd=os.getcwd())
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    assert result.stderr.count("\n") <= 1
    assert result.returncode != 0 or command.split()[0] != "embed"
    Path("v.npy").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("embed tiny many.txt -o v.jsonl", "v.jsonl cannot be written: File too large."),
        ("embed tiny many.txt -o v.parquet", "v.parquet cannot be written: "),
    ],
)
def test_a_full_disk_is_one_line(command: str, said: str) -> None:
    Path("many.txt").write_text("".join(f"{number} words\n" for number in range(1000)))
    try:
        limited = ("sh", "-c", 'ulimit -f 64 && exec "$@"', "sh")
        result = run([*limited, *python(*command.split())], cwd=os.getcwd())
        assert result.returncode == 1
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    finally:
        Path("many.txt").unlink()
