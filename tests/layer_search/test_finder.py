"""What `find_layers` measures, tells and counts, on a tiny encoder."""

import time
from pathlib import Path

import pytest

from bellm import Encoder
from bellm.data import sts
from bellm.data.sts import STSPairs
from bellm.layer_search import find_layers
from bellm.layer_search.layer_stats import measure_layers
from tests.evaluate.sets import write_pairs


@pytest.fixture
def dev(tmp_path: Path) -> STSPairs:
    write_pairs(tmp_path, "dev", 30)
    return sts.read_sts("STSBenchmark-dev", tmp_path)


def test_what_is_measured_is_told_and_timed(tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    start = time.monotonic()
    found = find_layers(
        tiny_encoder,
        "STSBenchmark-dev",
        methods=["degradation", "profile"],
        data=tmp_path,
        cache=tmp_path / "cache",
        progress=lambda *news: told.append(news),
    )
    assert 0 < found.seconds <= time.monotonic() - start
    pairs = len(set(zip(dev.left, dev.right, strict=True)))
    assert told[0] == ("dropping layers", 0, len(dev.left))
    assert told[-2:] == [("dropping layers", pairs, len(dev.left)), ("looking at layers", 0, 1)]
    assert found.degradation is not None
    assert found.search is None
    assert found.to_json()["seconds"] == round(found.seconds, 1)


def test_statistics_are_of_some_hundred_texts_from_everywhere(
    tiny_encoder: Encoder, dev: STSPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bellm.layer_search.finder._STATS_TEXTS", 20)
    found = find_layers(lambda: tiny_encoder, dev, methods=["profile"], cache=tmp_path)
    texts = list(dict.fromkeys((*dev.left, *dev.right)))
    assert 20 < len(texts) <= 60
    assert found.layer_stats == measure_layers(tiny_encoder, texts[:: -(-len(texts) // 20)])
    assert found.degradation is None
