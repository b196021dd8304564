from pathlib import Path

import pytest

from bellm.io.cache import default_cache_folder


def test_where_vectors_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BELLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "bellm"
    monkeypatch.setenv("BELLM_CACHE", "here")
    assert default_cache_folder() == Path("here")
