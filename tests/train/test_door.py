"""What `bellm.train` exports, and what it says where its extra is missing."""

import pytest

import bellm.train
from bellm import extras
from bellm.errors import MissingExtraError


def test_every_exported_name_is_there() -> None:
    for name in bellm.train.__all__:
        assert getattr(bellm.train, name).__module__.startswith("bellm.train.") or name == "TrainProgress"
    with pytest.raises(AttributeError, match=r"module 'bellm\.train' has no attribute 'tune'"):
        bellm.train.tune  # type: ignore[attr-defined]  # noqa: B018


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(MissingExtraError, match=r"bellm\.train needs peft, which is not installed"):
        from bellm.train import Recipe  # noqa: F401
