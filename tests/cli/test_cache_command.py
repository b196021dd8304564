import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bellm.cli import app


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    assert call() == f"Nothing is kept in {tmp_path}.\n"
    files = {"models/heron-1/model.safetensors": 2_000_000, "vectors/snow.sqlite": 500_000, "checks/heron.json": 234}
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (86_400, 86_400))
    rows = [line.split() for line in call().splitlines()]
    assert ["models", "heron-1", "2.0", "MB"] in [row[:4] for row in rows]
    assert ["vectors", "snow.sqlite", "0.5", "MB", "1970-01-02"] in [row[:5] for row in rows]
    assert ["checks", "heron.json", "0.2", "kB"] in [row[:4] for row in rows]
    assert "2.5 MB in " in call()
    [entry] = json.loads(call("vectors", "--json"))["entries"]
    assert entry == {"kind": "vectors", "name": "snow.sqlite", "bytes": 500_000, "last_used": 86_400.0}
    assert call("vectors", "--clear") == f"0.5 MB removed from {tmp_path}.\n"
    assert json.loads(call("--clear", "--json"))["bytes"] == 2_000_234
    assert json.loads(call("--json")) == {"folder": str(tmp_path), "cleared": False, "bytes": 0, "entries": []}


def test_an_unknown_kind_is_refused() -> None:
    result = CliRunner().invoke(app, ["cache", "herons"])
    assert result.exit_code != 0
    assert "kind='herons' is not one of models, vectors, checks" in result.stderr
