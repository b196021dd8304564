"""`bellm words`, as a user meets it."""

import json
from pathlib import Path

import pytest

from tests.analyse.test_words import folder
from tests.cli.test_cli import bellm

__all__ = ["folder"]


def test_scores_of_words(tiny_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    command = (
        "words",
        tiny_folder,
        f"{tiny_folder}?prompt=raw&pooling=mean",
        "--data=data",
        "-o",
        "out",
        "--resamples=100",
    )
    result = bellm(*command)
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("out/results.json").read_text())
    assert found["words"]["SimLex-999"]["n"] == 5
    assert found["compared"][0]["words"]["BATS encyclopedic semantics, 3CosAdd"]["n"] == 5
    assert "SimLex-999" in result.stdout
    assert "out/words.html shows it" in result.stdout
    assert bellm("words", "--help").stdout.count("Example: bellm words") == 1
