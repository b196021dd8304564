"""`bellm.evaluate`: names at the door, and one sentence where the extra is missing."""

import sys
from pathlib import Path

import pytest

import bellm.evaluate
from tests.processes import run

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("scipy", "sklearn", "jinja2", "pytrec_eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize("name", bellm.evaluate.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(bellm.evaluate, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'assess'"):
        _ = bellm.evaluate.assess


def test_without_the_extra_it_says_what_to_install() -> None:
    program = f"{BLOCKED}\nfrom bellm.evaluate import evaluate"
    result = run([sys.executable, "-c", program])
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].endswith("pip install 'bellm[evaluate]'.")
    assert "scipy, sklearn" in result.stderr


def test_the_command_without_the_extra_ends_in_one_line(tmp_path: Path) -> None:
    program = f"{BLOCKED}\nfrom bellm.cli import main\nmain()"
    result = run([sys.executable, "-c", program, "evaluate", "smollm2", "-o", tmp_path / "out"])
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("bellm: ")
    assert line.endswith("pip install 'bellm[evaluate]'.")
    assert not (tmp_path / "out").exists()
