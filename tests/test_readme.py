"""The Python blocks of README.md and docs/guide.md run, one after the other, and import from doors alone."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellm import BellmError, Encoder
from bellm.data import (
    CLASSIFICATION_SOURCES,
    RETRIEVAL_SOURCES,
    STS_SOURCES,
    read_classification,
    read_retrieval,
    read_sts,
)
from tests.decoders import with_tokens_of
from tests.evaluate.sets import write_pairs

ROOT = Path(__file__).parents[1]
DOORS = {
    "bellm",
    "bellm.train",
    "bellm.evaluate",
    "bellm.layer_search",
    "bellm.corpus",
    "bellm.compress",
    "bellm.data",
    "bellm.integrations",
}


def blocks(file: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("file", ["README.md", "docs/guide.md"])
def test_imports_are_only_from_doors(file: str) -> None:
    assert blocks(file)
    nodes = [node for block in blocks(file) for node in ast.walk(ast.parse(block))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {module for module in modules if module and module.startswith("bellm")} <= DOORS


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # As peft asks for it.
@pytest.mark.filterwarnings("ignore:All open layers:bellm.errors.BellmWarning")  # Three of four layers are dropped.
@pytest.mark.parametrize("file", ["README.md", "docs/guide.md"])
def test_the_blocks_run(
    file: str, tiny_folder: Path, tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model instead of SmolLM2, and on a few rated pairs instead of the published ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for part in ("test", "dev"):
        write_pairs(tmp_path, part)
    monkeypatch.setenv("BELLM_DATA", str(tmp_path))
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {"encoder": tiny_encoder, "another": tiny_encoder.replace(pooling="mean")}
    tokenizer = tiny_encoder.tokenizer
    names["mixture"] = Encoder.from_pretrained(with_tokens_of(tokenizer, "olmoe"), tokenizer=tokenizer)
    for block in blocks(file):
        code = block.replace('"smollm2"', repr(str(tiny_folder))).replace("last:8", "last:2")
        exec(compile(code, file, "exec"), names)


@pytest.mark.parametrize(
    ("read", "names"),
    [(read_sts, STS_SOURCES), (read_classification, CLASSIFICATION_SOURCES), (read_retrieval, RETRIEVAL_SOURCES)],
)
def test_the_guide_has_every_file_that_a_folder_of_data_is_asked_for(
    read: Callable[[str, Path], object], names: dict[str, object], tmp_path: Path
) -> None:
    """Asked for one after the other: each that is missed is looked up in the guide, and put there empty."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").partition("FOLDER/\n")[2].partition("```")[0]
    layout = dict(re.findall(r"^  (\S+)/ +(.*)$", guide, re.MULTILINE))
    for name in names:
        for _ in range(20):
            with pytest.raises(BellmError) as caught:
                read(name, tmp_path)
            if not (missing := re.search(r"no file (\S+)\. Get it", str(caught.value))):
                break
            folder = next(each for each in layout if re.sub(r"STS1\d", "STS12", missing[1]).startswith(f"{each}/"))
            file = re.sub(r"STS1\d", "STS12", missing[1]).removeprefix(f"{folder}/")
            file = re.sub(r"(STS\.\w+)\.(.+)\.txt", r"\1.MSRpar.txt", file)
            assert file in re.findall(r"[\w./-]+", layout[folder]), missing[1]
            (tmp_path / missing[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / missing[1]).touch()
