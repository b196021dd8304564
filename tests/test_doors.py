"""Packages and commands without the extra that they need: one sentence, no traceback."""

import sys
from pathlib import Path

import pytest

import bellm
import bellm.analyse
import bellm.compress
import bellm.corpus
import bellm.layer_search
import bellm.serve
from bellm import BellmError, Encoder
from bellm.config import parse_setting
from bellm.evaluate import evaluate, write_report
from bellm.train import load_dataset
from tests.processes import run

BLOCKED = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Forbid())
"""
PACKAGES = {
    "amr": ("penman",),
    "corpus": ("pyarrow", "lancedb"),
    "evaluate": ("scipy", "sklearn", "jinja2"),
    "serve": ("starlette", "uvicorn"),
}


def without(extra: str, program: str, *arguments: object) -> list[str]:
    """A Python process in which the packages of an extra are not installed."""
    return [sys.executable, "-c", BLOCKED.format(names=PACKAGES[extra]) + program, *map(str, arguments)]


@pytest.mark.parametrize(
    "package",
    [bellm, bellm.compress, bellm.corpus, bellm.layer_search, bellm.serve],
    ids=lambda package: package.__name__,
)
def test_every_name_of_a_door_is_there(package: object) -> None:
    assert set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]
    for name in set(package.__all__) - {"__version__"}:  # type: ignore[attr-defined]
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("extra", "statement"),
    [
        ("corpus", "from bellm.corpus import embed_corpus"),
        ("corpus", "import bellm.corpus; bellm.corpus.Index"),
        ("evaluate", "from bellm.layer_search import find_layers"),
        ("evaluate", "from bellm.analyse import MEASURES"),
        ("amr", "from bellm.data import read_graphs; read_graphs('examples/otters.amr')"),
    ],
)
def test_a_door_without_its_extra_says_what_to_install(extra: str, statement: str) -> None:
    result = run(without(extra, statement))
    assert result.stderr.splitlines()[-1].startswith("bellm.errors.MissingExtraError: ")
    assert f"pip install 'bellm[{extra}]'" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("corpus", ["embed", "smollm2", "t.txt", "-o", "out/"]),
        ("corpus", ["index", "out"]),
        ("corpus", ["search", "a query", "--in", "."]),
        ("evaluate", ["layers", "smollm2", "-o", "out"]),
        ("serve", ["serve", "smollm2"]),
    ],
    ids=str,
)
def test_a_command_without_its_extra_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a text\n")
    result = run(without(extra, "from bellm.cli import main; main()", *arguments))
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert line.endswith(f"pip install 'bellm[{extra}]'.")
    assert not Path("out").exists()


def test_one_file_of_vectors_needs_no_extra(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a text\n")
    arguments = ("embed", tiny_folder, tmp_path / "t.txt", "-o", tmp_path / "v.npy")
    result = run(without("corpus", "from bellm.cli import main; main()", *arguments))
    assert (result.returncode, result.stderr) == (0, "")


def test_packages_are_attributes_of_bellm_once_asked_for() -> None:
    code = "import bellm; print(bellm.train.Recipe.__name__, sorted({'train', 'corpus'} & set(dir(bellm))))"
    assert run([sys.executable, "-c", code]).stdout == "Recipe ['corpus', 'train']\n"


def test_what_is_no_encoder_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("snow\n")
    for call in (
        lambda: bellm.layer_search.find_layers("a name"),  # type: ignore[arg-type]
        lambda: bellm.corpus.embed_corpus("a name", [tmp_path / "t.txt"], tmp_path / "out"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BellmError, match="'a name' is no encoder"):
            call()


def test_paths_may_be_text_and_results_can_be_printed(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("snow\nice\n")
    bellm.corpus.embed_corpus(tiny_encoder, [tmp_path / "t.txt"], str(tmp_path / "out"))
    assert bellm.corpus.read_manifest(str(tmp_path / "out")).rows == 2
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(f"a {n}\tb\t{n}\n" for n in range(9)))
    report = evaluate([tiny_encoder], [tmp_path / "pairs.tsv"], data=str(tmp_path))
    write_report(report, str(tmp_path / "report"))
    assert "pairs.tsv" in str(report)
    (tmp_path / "pairs.csv").write_text("anchor,positive\nsnow,ice\n")
    assert repr(load_dataset(tmp_path / "pairs.csv")) == "Dataset('pairs.csv', 1 rows)"


def test_switches_in_text_are_true_or_false() -> None:
    with pytest.raises(BellmError, match="normalize='maybe' is neither true nor false"):
        parse_setting("normalize", "maybe")
