import os
from pathlib import Path

import pytest

from bellm.errors import BellmWarning, SourceError
from bellm.io import cache
from bellm.io.cache import (
    CHECKS_KIND,
    MODELS_KIND,
    VECTORS_KIND,
    cache_entries,
    cached_directory,
    clear_cache,
    default_cache_folder,
    find_cached,
    keep_json,
    kept_json,
)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def keep(name: str, content: str = "x" * 10, size: int = 10) -> Path | None:
    return cached_directory(
        MODELS_KIND, name, size, lambda: content, lambda made, path: (path / "file").write_text(made)
    )  # type: ignore[arg-type, return-value]


def names() -> list[str]:
    return [entry.path.name for entry in cache_entries()]


def age(path: Path, seconds: int) -> None:
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BELLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "bellm"
    monkeypatch.setenv("BELLM_CACHE", "here")
    assert default_cache_folder() == Path("here")


def test_what_is_kept_is_found_and_was_used_then(folder: Path) -> None:
    assert find_cached(MODELS_KIND, "one") is None
    one = keep("one")
    assert one == folder / "models" / "one"
    age(one, 100)
    keep("two")
    assert names() == ["two", "one"]
    assert find_cached(MODELS_KIND, "one") == one
    assert names() == ["one", "two"]
    assert (one / "file").read_text() == "x" * 10


def test_those_not_used_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 30)
    for number in range(4):
        path = keep(str(number))
        assert path
        age(path, 100 - number)
    assert names() == ["3", "2", "1"]
    find_cached(MODELS_KIND, "1")
    keep("4", size=20)
    assert sorted(names()) == ["1", "4"]
    assert keep("5", size=31) is None
    assert sorted(names()) == ["1", "4"]


def test_small_values_are_kept_and_those_not_used_for_longest_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_FILES", 3)
    assert kept_json(CHECKS_KIND, "0") is None
    for number in range(4):
        keep_json(CHECKS_KIND, str(number), [number])
        age(folder / "checks" / str(number), 100 - number)
    assert names() == ["3", "2", "1"]
    assert kept_json(CHECKS_KIND, "1") == [1]  # It was used now.
    keep_json(CHECKS_KIND, "4", {})
    assert sorted(names()) == ["1", "3", "4"]
    (folder / "checks" / "3").write_text("[3")
    assert kept_json(CHECKS_KIND, "3") is None


def test_small_values_are_not_kept_where_the_cache_cannot_be_written(folder: Path) -> None:
    folder.write_text("a file")
    keep_json(CHECKS_KIND, "one", 1)
    assert kept_json(CHECKS_KIND, "one") is None


def test_clearing_removes_entries_and_nothing_else(folder: Path) -> None:
    keep("one")
    (folder / VECTORS_KIND).mkdir()
    (folder / VECTORS_KIND / "some.sqlite").write_text("some")
    (folder / "notes").mkdir()
    assert [entry.path.name for entry in clear_cache([VECTORS_KIND])] == ["some.sqlite"]
    assert names() == ["one"]
    clear_cache()
    assert cache_entries() == []
    assert (folder / "notes").is_dir()


def test_a_cache_that_cannot_be_written_is_said_and_does_without(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.warns(BellmWarning, match=r"cannot be written: .*made anew each time; BELLM_CACHE names another"):
        assert keep("one") is None
    folder.unlink()

    def fail(made: str, path: Path) -> None:
        (path / "file").write_text(made)
        raise OSError(28, "No space left on device")

    with pytest.warns(BellmWarning, match="No space left"):
        assert cached_directory(MODELS_KIND, "one", 10, lambda: "", fail) is None
    assert names() == []
    with pytest.raises(SourceError, match="it is the file"):
        cached_directory(MODELS_KIND, "one", 10, lambda: (_ for _ in ()).throw(SourceError("it is the file")), fail)


def test_what_another_process_made_meanwhile_is_taken(folder: Path) -> None:
    def save(made: str, path: Path) -> None:
        (path / "file").write_text(made)
        (folder / "models" / "one").mkdir()
        (folder / "models" / "one" / "file").write_text("theirs")

    path = cached_directory(MODELS_KIND, "one", 10, lambda: "ours", save)
    assert path
    assert (path / "file").read_text() == "theirs"
    assert names() == ["one"]


def test_small_values_are_not_kept_where_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user of a container that is but a number."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BELLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    cache.keep_json("checks", "some", 1)
    assert cache.kept_json("checks", "some") is None
    with pytest.raises(SourceError, match="set BELLM_CACHE to a folder"):
        cache.default_cache_folder()
