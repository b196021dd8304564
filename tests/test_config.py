"""Settings: what they refuse, and that they come back from JSON as they were."""

import dataclasses
import json

import pytest

from bellm.config import EncoderConfig
from bellm.errors import BellmError, SourceError
from bellm.prompts import PROMPTS

SETTINGS = EncoderConfig(bidirectional=(2, 3), prompt=PROMPTS["instruct"], pooling="mean", max_tokens=64)


def test_settings_survive_json() -> None:
    record = json.loads(json.dumps({**SETTINGS.to_dict(), "bellm": "9.9", "anything": None}))
    assert EncoderConfig.from_dict(record) == SETTINGS
    assert EncoderConfig.from_dict(record).digest() == SETTINGS.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"bidirectional": (3,)},
        {"variant": "parallel"},
        {"window": "open"},
        {"prompt": PROMPTS["raw"]},
        {"hint": "sense"},
        {"pooling": "last"},
        {"layer": 2},
        {"layer": "-1,-3"},
        {"layer": "mean:-1,-3"},
        {"readout": "routing"},
        {"max_tokens": 65},
        {"token_prepending": 2},
        {"normalize": True},
        {"centering": "mean"},
        {"truncate_dim": 8},
    ],
    ids=str,
)
def test_every_setting_changes_the_digest(change: dict[str, object]) -> None:
    assert dataclasses.replace(SETTINGS, **change).digest() != SETTINGS.digest()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"variant": "both"}, {"window": "ajar"}, {"pooling": "cls"}, {"max_tokens": 0}], ids=str
)
def test_a_choice_outside_its_set_is_refused_in_one_line(change: dict[str, object]) -> None:
    with pytest.raises(SourceError) as caught:
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EncoderConfig)])
def test_a_missing_setting_is_refused(name: str) -> None:
    record = SETTINGS.to_dict()
    del record[name]
    with pytest.raises(SourceError, match=name):
        EncoderConfig.from_dict(record)


@pytest.mark.parametrize(
    ("written", "layer", "layers"),
    [("-2", -2, (-2,)), (" -1, -6", "-1,-6", (-1, -6)), ("mean:0,4", "mean:0,4", (0, 4))],
)
def test_states_are_written_in_one_way(written: str, layer: int | str, layers: tuple[int, ...]) -> None:
    config = dataclasses.replace(SETTINGS, layer=written)
    assert (config.layer, config.layers, config.averages_layers) == (layer, layers, written.startswith("mean"))
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("layer", ["", "x", "1,", "-1,-1", "mean:-1", "1-3", True, 1.5], ids=str)
def test_states_that_cannot_be_read_are_refused(layer: object) -> None:
    with pytest.raises(BellmError, match=r"layer=.* cannot be read\. Write one state as -1"):
        dataclasses.replace(SETTINGS, layer=layer)  # type: ignore[arg-type]


def test_routing_reads_all_layers() -> None:
    with pytest.raises(SourceError, match="layer=-2 does not fit"):
        dataclasses.replace(SETTINGS, readout="routing", layer=-2)
