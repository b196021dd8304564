"""`bellm analyse`, as a user meets it."""

import json
from pathlib import Path

import pytest

from tests.analyse.test_analysis import TEXTS
from tests.cli.test_cli import bellm


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    Path("notes.txt").write_text("\n".join(TEXTS))


def test_help_teaches() -> None:
    result = bellm("analyse", "--help")
    assert result.exit_code == 0
    assert result.stdout.count("Example: bellm analyse smollm2") == 3


def test_models(tiny_folder: Path) -> None:
    command = ("analyse", tiny_folder, f"{tiny_folder}?bidirectional=none", "--texts=notes.txt", "-o", "out")
    result = bellm(*command, "--permutations=20", "--resamples=10")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(Path("out/results.json").read_text())
    (comparison,) = found["comparisons"]
    assert (comparison["a"], comparison["b"]) == (str(tiny_folder), f"{tiny_folder}?bidirectional=none")
    assert len(comparison["measures"]) == 17
    assert comparison["measures"]["cka"]["p"] == pytest.approx(1 / 21)
    for words in ("linear CKA", "Debiased CKA, 0 by chance", "out/analysis.html shows it"):
        assert words in " ".join(result.stdout.split())
    again = json.loads(bellm(*command, "--permutations=20", "--resamples=10", "--json").stdout)
    assert again["comparisons"] == found["comparisons"]


def test_layers(tiny_folder: Path) -> None:
    result = bellm(
        "analyse", tiny_folder, "--layers", "--texts=notes.txt", "-o", "out", "--measures", "cka_debiased, rsa"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("out/results.json").read_text())
    assert found["layers"]
    assert (found["permutations"], found["half_samples"]) == (20, 0)
    assert found["comparisons"][0]["a"] == f"{tiny_folder} layer 1"
    assert "note: Left out, because the vector is the same for all texts" in result.stderr
    assert "From one layer to the next most changes between layer" in " ".join(result.stdout.split())


def test_files_of_vectors_are_models() -> None:
    for name, width in (("one", 3), ("two", 2)):
        rows = [{"text": text, "vector": [hash((text, at)) % 97 for at in range(width)]} for text in TEXTS]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = bellm(
        "analyse", "vectors:one.jsonl", "vectors:two.jsonl", "--texts=notes.txt", "-o", "out", "--measures=cka"
    )
    assert result.exit_code == 0, result.stderr
