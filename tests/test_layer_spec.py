"""The direction map's grammar, and the no-op that it can write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellm.config import EncoderConfig
from bellm.errors import LayerError
from bellm.layer_spec import format_layers, parse_layers
from bellm.prompts import PROMPTS


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("none", ()),
        ("all", tuple(range(12))),
        ("last:3", (9, 10, 11)),
        ("last:0", ()),
        ("last:12", tuple(range(12))),
        ("first:2", (0, 1)),
        ("every:4", (3, 7, 11)),
        ("every:5", (4, 9)),
        ("0-3", (0, 1, 2, 3)),
        ("3,5,8-9", (3, 5, 8, 9)),
        (" 8-9 , 3 ,3", (3, 8, 9)),
        ("LAST:2", (10, 11)),
        ([4, 1, 4], (1, 4)),
        ((), ()),
    ],
)
def test_the_grammar(spec: str | list[int], layers: tuple[int, ...]) -> None:
    assert parse_layers(spec, 12) == layers


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("40", "names layer 40, but the model has 12 layers"),
        ("3-12", "names layer 12"),
        ("0-99999999999", "names layer 99999999999"),
        ("last:13", "K runs from 0 to 12"),
        ("every:0", "K runs from 1 to 12"),
        ("5-3", "runs backwards"),
        ("-1", "cannot be read"),
        ("", "cannot be read"),
        ("upper", "cannot be read"),
        ("last:x", "cannot be read"),
        ("3;5", "cannot be read"),
        ([12], "names layer 12"),
        ([-1], "names layer -1"),
    ],
)
def test_a_bad_map_is_one_clear_line(spec: str | list[int], said: str) -> None:
    with pytest.raises(LayerError, match=said) as caught:
        parse_layers(spec, 12)
    assert "\n" not in str(caught.value)


@given(st.sets(st.integers(0, 39)))
def test_what_is_described_is_parsed_back(layers: set[int]) -> None:
    assert parse_layers(format_layers(sorted(layers)), 40) == tuple(sorted(layers))


@pytest.mark.parametrize(
    ("layers", "variant", "pooling", "layer", "changes_nothing"),
    [
        ((), "sequential", "last", -1, False),
        ((11,), "sequential", "last", -1, True),
        ((11,), "sequential", "mean", -1, False),
        ((10, 11), "sequential", "last", -1, False),
        ((10,), "sequential", "last", -1, False),
        ((10,), "sequential", "last", 11, True),
        ((10, 11), "sequential", "last", 11, True),
        ((11,), "sequential", "mean", 11, True),
        ((5,), "parallel", "last", -1, True),
        ((5, 6), "parallel", "last", -1, False),
        ((5,), "parallel", "mean", -1, False),
    ],
)
def test_the_no_op_is_recognised(
    layers: tuple[int, ...], variant: str, pooling: str, layer: int, changes_nothing: bool
) -> None:
    settings = {"bidirectional": layers, "variant": variant, "pooling": pooling, "layer": layer}
    config = EncoderConfig(prompt=PROMPTS["raw"], max_tokens=8, **settings)  # type: ignore[arg-type]
    assert (config.no_op_reason(12) is not None) == changes_nothing
