"""`--json` of every command is what docs/json.md says it is."""

import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bellm import Encoder
from bellm.cli import app
from tests.evaluate.sets import write_pairs
from tests.train.rows import triplets

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "integer": int,
    "number": (int, float),
    "true or false": bool,
    "list": list,
    "object": dict,
    "null": type(None),
}
COMMANDS = {
    "embed, a file": "embed MODEL t.txt -o v.npy",
    "embed, a folder": "embed MODEL t.txt -o corpus --keep-text",
    "similarity": "similarity MODEL Snow Ice",
    "index": "index corpus",
    "search, a file": "search MODEL Snow --in t.txt",
    "search, a corpus": "search Snow --in corpus",
    "serve": "serve MODEL --port 0 --quiet",
    "evaluate": "evaluate MODEL MODEL?bidirectional=none --tasks STSBenchmark --data data -o report",
    "layers": "layers MODEL --data data -o layers",
    "analyse": "analyse MODEL MODEL?bidirectional=none --texts many.txt -o analysis --permutations 20 --resamples 0",
    "words": "words MODEL --data data -o words --resamples 100",
    "train": "train MODEL --data t.csv -o run --max-steps 1 --batch-size 4",
    "combine": "combine MODEL MODEL?pooling=mean -o both",
    "demonstrations": "demonstrations MODEL --dev rated.csv --candidates words.csv -o shown --pooling mean",
    "prune": "prune MODEL --sparsity 0.5 --allocation alpha --calibration many.txt -o pruned",
    "spectra": "spectra MODEL -o spectra",
    "quantize": "quantize MODEL --bits 4 -o quantized",
    "center": "center MODEL --texts many.txt -o centered",
    "compress": "compress MODEL --dev rated.csv --drop-layers 1 --bits 8 --dims 8 -o smallest",
    "export": "export MODEL --to transformers -o exported",
    "augment": "augment MODEL --task labeled.csv --with retrieval --neighbors 1 -o side",
    "doctor": "doctor MODEL",
    "info": "info MODEL",
    "tasks": "tasks",
    "prompts": "prompts",
    "models": "models",
    "cache": "cache",
}


@pytest.fixture(scope="module")
def outputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every command prints, run one after the other in one folder."""
    folder = tmp_path_factory.mktemp("json")
    write_pairs(folder / "data")
    write_pairs(folder / "data", "dev")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BELLM_CACHE", str(folder / "cache"))
        Path("t.txt").write_text("Snow fell.\nA heron waits.\n")
        Path("many.txt").write_text("".join(f"Snow fell on day {number}.\n" for number in range(40)))
        Path("data/word/eval-word-vectors").mkdir(parents=True)
        Path("data/word/eval-word-vectors/EN-SIMLEX-999.txt").write_text("heron bird 7\nheron bank 1.5\ncat dog 6\n")
        rated = "".join(f"Snow fell on day {number}.,It snowed {number} days.,{number % 5}\n" for number in range(12))
        Path("rated.csv").write_text(f"sentence1,sentence2,score\n{rated}")
        labeled = "".join(f"Snow fell {number},a\nWater and fish {number},b\n" for number in range(12))
        Path("labeled.csv").write_text(f"text,label\n{labeled}")
        Path("words.csv").write_text("sentence,word\nA heron waits for fish.,patience\nRain fell all night.,rain\n")
        rows = [f'"{row.anchor}","{row.positives[0]}","{row.negatives[0]}"\n' for row in triplets(8)]
        Path("t.csv").write_text("anchor,positive,negative\n" + "".join(rows))
        end_once_ready(patch)
        for name, command in COMMANDS.items():
            result = CliRunner().invoke(app, shlex.split(f"{command.replace('MODEL', str(tiny_folder))} --json"))
            assert result.stdout.count("\n") == 1, (name, result.output)
            found[name] = json.loads(result.stdout)
    return found


def end_once_ready(patch: pytest.MonkeyPatch) -> None:
    """Ask a server to end as soon as it has said that it is ready."""
    module = sys.modules["bellm.cli.serve_command"]
    said = module.print_result

    def say(*arguments: Any) -> None:
        said(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(module, "print_result", say)


def documented() -> dict[str, dict[str, str]]:
    """Types of the keys of each command, as the page has them."""
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        title.replace("`", "").removeprefix("bellm "): dict(
            re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", body, re.MULTILINE)
        )
        for title, body in sections
    }


def test_every_command_is_documented_and_has_the_option() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {name.partition(",")[0] for name in COMMANDS} == set(commands)
    assert list(documented()) == list(COMMANDS)
    assert all(any("--json" in param.opts for param in command.params) for command in commands.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_object_is_as_documented(outputs: dict[str, Any], name: str, tiny_encoder: Encoder) -> None:
    found = dict(outputs[name])
    for setting in tiny_encoder.config.to_dict() if name == "info" else ():
        del found[setting]
    check(found, documented()[name], "")


def check(value: dict[str, Any], schema: dict[str, str], path: str) -> None:
    """Check an object whose keys stand behind a path, such as `hits[].`."""
    here = {key.removeprefix(path): kind for key, kind in schema.items() if key.startswith(path)}
    own = {key: kind for key, kind in here.items() if not re.search(r"[.\[]", key)}
    assert list(value) == list(own), path
    for key, kind in own.items():
        kinds = [TYPES[one] for one in re.split(r" or (?=null)", kind)]
        assert any(isinstance(value[key], one) for one in kinds), (path, key, value[key])
        assert not isinstance(value[key], bool) or bool in kinds, (path, key)
        if any(inner.startswith(f"{key}[].") for inner in here):
            for each in value[key]:
                check(each, schema, f"{path}{key}[].")
        elif value[key] is not None and any(inner.startswith(f"{key}.") for inner in here):
            check(value[key], schema, f"{path}{key}.")
