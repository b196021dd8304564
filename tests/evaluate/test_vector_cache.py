import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bellm.errors import SourceError
from bellm.evaluate import vector_cache
from bellm.evaluate.vector_cache import VectorCache
from bellm.types import Vectors

PRINT = np.ones((2, 3), dtype=np.float32)


class Counting:
    """Embeds a text as its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return np.array([[len(text), len(text) ** 0.5, 1] for text in texts], dtype=np.float32)


def test_known_texts_are_not_embedded_again(tmp_path: Path) -> None:
    embed = Counting()
    texts = ["snow", "a heron", "snow", ""]
    found = VectorCache(tmp_path, "one", PRINT, 0.1).vectors(texts, "{text}", embed)
    np.testing.assert_array_equal(found, Counting()(texts))
    assert embed.asked == ["", "a heron", "snow"]
    again = VectorCache(tmp_path, "one", PRINT, 0.1).vectors(["rain", *texts], "{text}", embed)
    np.testing.assert_array_equal(again, Counting()(["rain", *texts]))
    assert embed.asked == ["", "a heron", "snow", "rain"]
    assert VectorCache(tmp_path, "one", PRINT, 0.1).vectors([], "{text}", embed).shape == (0, 3)


def test_another_view_and_another_encoder_have_vectors_of_their_own(tmp_path: Path) -> None:
    embed = Counting()
    for name, view in (("one", "{text}"), ("one", "{text}."), ("two", "{text}"), ("one", "{text}")):
        VectorCache(tmp_path, name, PRINT, 0.1).vectors(["snow"], view, embed)
    assert len(embed.asked) == 3
    assert len(list((tmp_path / "vectors").iterdir())) == 2


def test_view_and_text_are_told_apart_wherever_they_meet(tmp_path: Path) -> None:
    embed = Counting()
    kept = VectorCache(tmp_path, "one", PRINT, 0.1)
    kept.vectors(["b c"], "a ", embed)
    kept.vectors(["c"], "a b ", embed)
    assert embed.asked == ["b c", "c"]


@pytest.mark.parametrize(("change", "tolerance", "calls"), [(0.05, 0.1, 1), (0.2, 0.1, 2), (0.0, 0.0, 1)])
def test_an_encoder_of_another_fingerprint_begins_anew(
    tmp_path: Path, change: float, tolerance: float, calls: int
) -> None:
    embed = Counting()
    for fingerprint in (PRINT, PRINT * (1 + change)):
        VectorCache(tmp_path, "one", np.asarray(fingerprint, np.float32), tolerance).vectors(["snow"], "", embed)
    assert len(embed.asked) == calls


def test_an_interrupted_run_keeps_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_cache, "_PART", 2)
    embed, told = Counting(), []

    def fails_late(texts: Sequence[str]) -> Vectors:
        if "e" in texts:
            raise KeyboardInterrupt
        return embed(texts)

    with pytest.raises(KeyboardInterrupt):
        VectorCache(tmp_path, "one", PRINT, 0.1).vectors(list("abcde"), "", fails_late, told.append)
    assert told == [0, 2, 2]
    told.clear()
    VectorCache(tmp_path, "one", PRINT, 0.1).vectors(list("abcde"), "", embed, told.append)
    assert embed.asked == list("abcde")
    assert told == [4, 1]


def test_a_file_that_is_no_cache_and_a_folder_that_is_a_file(tmp_path: Path) -> None:
    kept = VectorCache(tmp_path, "one", PRINT, 0.1)
    kept.vectors(["snow"], "", Counting())
    [file] = (tmp_path / "vectors").iterdir()
    file.write_bytes(b"no database" * 100)
    with pytest.raises(SourceError, match="cannot be used: file is not a database"):
        VectorCache(tmp_path, "one", PRINT, 0.1)
    with pytest.raises(SourceError, match="cannot be written"):
        VectorCache(file, "one", PRINT, 0.1)


def test_two_processes_may_write(tmp_path: Path) -> None:
    one, two = (VectorCache(tmp_path, "one", PRINT, 0.1) for _ in range(2))
    embed = Counting()

    def meanwhile(texts: Sequence[str]) -> Vectors:
        two.vectors(["snow", "rain"], "", embed)
        return embed(texts)

    np.testing.assert_array_equal(one.vectors(["snow"], "", meanwhile), Counting()(["snow"]))
    [file] = (tmp_path / "vectors").iterdir()
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM vectors").fetchone() == (3,)
    database.close()
