import json
import sys
from pathlib import Path

import pytest

from bellm.data import sources
from bellm.data.sources import DataSource
from bellm.errors import SourceError

BIRDS = DataSource("Birds", "https://example.org/birds", "someone/birds")


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELLM_DATA", raising=False)


def texts(file: Path, encoding: str = "utf-8") -> list[str]:
    return [line.text for line in sources.read_lines(file, encoding)]


def test_a_named_folder_comes_before_the_variable_and_the_hub_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sources.data_folder(None, BIRDS) is None
    monkeypatch.setenv("BELLM_DATA", str(tmp_path))
    assert sources.data_folder(None, BIRDS) == tmp_path
    (tmp_path / "named").mkdir()
    assert sources.data_folder(tmp_path / "named", BIRDS) == tmp_path / "named"
    monkeypatch.setenv("BELLM_DATA", "")
    assert sources.data_folder(None, BIRDS) is None


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"nowhere \(--data\) is not a folder"):
        sources.data_folder(tmp_path / "nowhere", BIRDS)
    monkeypatch.setenv("BELLM_DATA", str(tmp_path / "gone"))
    with pytest.raises(SourceError, match=r"gone \(BELLM_DATA\) is not a folder"):
        sources.data_folder(None, BIRDS)


def test_an_absent_set_is_named_with_every_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        sources.require_file(tmp_path, "birds/test.csv", BIRDS)
    message = str(caught.value)
    for part in ("Birds", str(tmp_path), "birds/test.csv", "https://example.org/birds", "someone/birds", "--data"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(SourceError) as caught:
        sources.require_file(tmp_path, "birds/test.csv", DataSource("Birds", "https://example.org/birds"))
    assert "Hub" not in str(caught.value)


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffone\u2028two\r\nthree\x85four\x0bfive\n\nsix\rseven".encode())
    assert texts(file) == ["one\u2028two", "three\x85four\x0bfive", "", "six\rseven"]
    file.write_bytes(b"last\n\n")
    assert texts(file) == ["last", ""]
    file.write_bytes(b"")
    assert texts(file) == []


def test_lines_know_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(b"good\ncaf\xe9\n")
    assert next(sources.read_lines(file)).location == f"{file}, line 1"
    with pytest.raises(SourceError, match=r"lines\.txt, line 2: byte 0xe9 is not UTF-8"):
        texts(file)
    assert texts(file, "latin-1") == ["good", "café"]
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        texts(tmp_path)


def test_a_repository_gives_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "birds").mkdir()
    rows = [{"bird": "heron", "legs": 2}, {"bird": "dodo", "legs": 2}]
    (tmp_path / "birds" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    local = DataSource("Birds", "https://example.org/birds", str(tmp_path / "birds"))
    assert list(sources.fetch_from_hub(local, split="test")) == rows
    with pytest.raises(SourceError, match=r"Birds cannot be fetched .* validation\): Unknown split"):
        sources.fetch_from_hub(local, split="validation")


def test_a_set_that_cannot_be_fetched_says_so_in_one_line() -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    with pytest.raises(SourceError) as caught:
        sources.fetch_from_hub(BIRDS, split="test")
    message = str(caught.value)
    assert message.startswith("Birds cannot be fetched from the Hub (someone/birds, test): ")
    assert message.endswith("(--data, BELLM_DATA); the original is at https://example.org/birds.")
    assert "\n" not in message


def test_a_set_without_a_copy_on_the_hub_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"Birds needs a folder .*: it is not on the Hub\. Get it from https"):
        sources.data_folder(None, DataSource("Birds", "https://example.org/birds"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'bellm\[evaluate\]'"):
        sources.fetch_from_hub(BIRDS, split="test")
