"""`python -m bellm`, in this process."""

import runpy
import sys

import pytest

import bellm.cli
from bellm.io.hub import hub_problem


@pytest.fixture(autouse=True)
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bellm.__main__", raising=False)  # Doctests are looked for there, too.


def test_the_module_is_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bellm", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("bellm", run_name="__main__")
    assert end.value.code == 0
    assert bellm.__version__ in capsys.readouterr().out


def test_ctrl_c_before_a_command_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bellm.cli, "main", stop)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("bellm", run_name="__main__")
    assert end.value.code == 130
    assert capsys.readouterr().err == "bellm: interrupted; nothing was written.\n"


def test_a_hub_that_is_not_asked_is_said_so() -> None:
    assert hub_problem("owner/name") == "the Hub is not asked while HF_HUB_OFFLINE is set"
