"""The packages of an extra are asked for at the door, in one sentence."""

import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bellm import extras
from bellm.errors import BellmError, MissingExtraError


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(MissingExtraError) as caught:
        extras.require_extra("train")
    assert str(caught.value) == "bellm.train needs peft, which is not installed: pip install 'bellm[train]'."
    assert isinstance(caught.value, BellmError)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("extra", extras._IMPORTS)
def test_every_package_asked_for_is_in_the_extra(extra: str) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0].split("[")[0].lower() for line in project["optional-dependencies"][extra]}
    distributions = packages_distributions()
    for module in extras._IMPORTS[extra]:
        assert {name.lower().replace("_", "-") for name in distributions[module]} & names, module
