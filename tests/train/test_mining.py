"""Mining against a search written out, and planted answers that must not become negatives."""

import functools
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cosine as distance

from bellm.errors import BellmError
from bellm.train import mining
from bellm.train.examples import Example, mark_symmetric
from bellm.train.mining import Encode, mine_hard_negatives


def encoder(seed: int, width: int = 6) -> Encode:
    """Directions that hang on the text alone."""

    @functools.cache
    def drawn(text: str) -> Any:
        return np.random.default_rng([seed, *text.encode()]).normal(size=width) + 0.4

    return lambda texts: 3 * np.array([drawn(text) for text in texts], dtype=np.float32)


def placed(angles: dict[str, float]) -> Encode:
    """Texts at angles, in degrees."""
    return lambda texts: np.array(
        [[np.cos(np.radians(angles[text])), np.sin(np.radians(angles[text]))] for text in texts], dtype=np.float32
    )


ROWS = [
    Example(f"query {at % 23}", (f"answer {at}",), (f"no answer {at}", f"answer {(at + 5) % 40}")) for at in range(40)
]
MORE = [f"passage {at}" for at in range(15)]


def by_hand(
    row: Example, spaces: list[Encode], num_negatives: int, range_min: int, margin: float, absolute_margin: float
) -> tuple[list[str], int]:
    """Negatives of a row and how many of the nearest the guard took, one text after the other."""
    own = {text for other in ROWS if other.anchor == row.anchor for text in other.texts}
    near = [text for text in [*(row.positives[0] for row in ROWS), *MORE] if text not in own]

    def similarity(encode: Encode, text: str) -> float:
        return 1 - float(distance(*encode([row.anchor, text]).astype(np.float64)))

    def allowed(text: str) -> bool:
        for encode in spaces:
            positive = similarity(encode, row.positives[0])
            limits = positive - margin * abs(positive), positive - absolute_margin
            if similarity(encode, text) >= min(limits):
                return False
        return True

    near = sorted(near, key=lambda text: -similarity(spaces[0], text))[range_min:]
    return [text for text in near if allowed(text)][:num_negatives], sum(
        not allowed(text) for text in near[:num_negatives]
    )


@pytest.mark.parametrize(
    ("num_negatives", "range_min", "margin", "absolute_margin", "guides"),
    [
        (1, 0, 0.05, 0.0, 0),
        (3, 0, 0.0, 0.0, 0),
        (4, 6, 0.05, 0.2, 0),
        (2, 0, 0.3, 0.05, 1),
        (5, 30, 0.05, 0.0, 1),
        (90, 0, 0.05, 0.0, 0),
        (2, 500, 0.05, 0.0, 0),
    ],
)
@pytest.mark.parametrize("block", [1, 150, 10**6])
def test_mining_is_the_search_written_out(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    num_negatives: int,
    range_min: int,
    margin: float,
    absolute_margin: float,
    guides: int,
) -> None:
    monkeypatch.setattr(mining, "_SCORES", block)
    spaces = [encoder(0), encoder(1)][: 1 + guides]
    mined = mine_hard_negatives(
        ROWS,
        spaces[0],
        num_negatives=num_negatives,
        range_min=range_min,
        margin=margin,
        absolute_margin=absolute_margin,
        guide=spaces[1] if guides else None,
        passages=MORE,
    )
    wanted = [by_hand(row, spaces, num_negatives, range_min, margin, absolute_margin) for row in ROWS]
    assert [row.negatives for row in mined.examples] == [
        (*row.negatives, *found) for row, (found, _) in zip(ROWS, wanted, strict=True)
    ]
    assert [(row.anchor, row.positives) for row in mined.examples] == [(row.anchor, row.positives) for row in ROWS]
    assert mined.num_found == sum(len(found) for found, _ in wanted)
    assert mined.num_guarded == sum(guarded for _, guarded in wanted)
    assert mined.num_short == sum(len(found) < num_negatives for found, _ in wanted)


def test_what_is_known_to_belong_together_is_never_a_negative() -> None:
    """However far apart it lies, where no guard would help."""
    angles = {"q": 0, "Q ": 0, "p": 1, "r": 40, "y": 30, "z": 59, "a": 60, "A": 60}
    rows = [
        Example("q", ("p",)),
        Example("Q ", ("r",)),  # The same anchor, so r is an answer to q.
        Example("y", ("Q ",)),  # And y and q are a pair.
        Example("z", ("A",), ("P ",)),  # It has p already.
    ]
    mined = mine_hard_negatives(rows, placed(angles), num_negatives=9, passages=["y", "a", "q"])
    assert mined.examples[0].negatives == ("a",)
    assert mined.examples[3].negatives == ("P ", "r", "y", "q")


def test_planted_answers_are_guarded() -> None:
    """Each query has an answer that nobody marked, nearly as near as the one that is, and a real hard negative."""
    rows, angles = [], {}
    for at in range(6):
        base = 60.0 * at
        angles |= {f"q{at}": base, f"marked {at}": base + 20, f"unmarked {at}": base + 21, f"hard {at}": base + 28}
        rows.append(Example(f"q{at}", (f"marked {at}",)))
    others = [text for text in angles if text.startswith(("unmarked", "hard"))]
    mined = mine_hard_negatives(rows, placed(angles), passages=others)
    assert [row.negatives for row in mined.examples] == [(f"hard {at}",) for at in range(6)]
    assert (mined.num_found, mined.num_guarded, mined.num_short) == (6, 6, 0)
    careless = mine_hard_negatives(rows, placed(angles), passages=others, margin=0.0)
    assert [row.negatives for row in careless.examples] == [(f"unmarked {at}",) for at in range(6)]


def test_a_guide_sees_what_the_encoder_does_not() -> None:
    rows = [Example("q", ("p",)), Example("other", ("o",))]
    near = {"q": 0.0, "p": 10.0, "false": 30.0, "hard": 40.0, "other": 200.0, "o": 210.0}
    guide = {**near, "p": 20.0, "false": 15.0}
    assert mine_hard_negatives(rows[:1], placed(near), passages=["false", "hard"]).examples[0].negatives == ("false",)
    guided = mine_hard_negatives(rows[:1], placed(near), guide=placed(guide), passages=["false", "hard"])
    assert guided.examples[0].negatives == ("hard",)
    assert (guided.num_guarded, guided.num_short) == (1, 0)


def test_positives_that_point_away_have_a_guard_too() -> None:
    angles = {"q": 0.0, "p": 120.0, "a": 119.0, "b": 121.0, "c": 130.0}
    mined = mine_hard_negatives(
        [Example("q", ("p",))], placed(angles), passages=["a", "b", "c"], margin=0.05, num_negatives=3
    )
    assert mined.examples[0].negatives == ("c",)  # cos 121 = -0.515 is within 5 % of cos 120.


def test_captions_of_one_image_are_no_negatives() -> None:
    images = [mark_symmetric([f"{at} seen {runner}" for runner in range(4)]) for at in range(9)]
    mined = mine_hard_negatives(images, encoder(2), num_negatives=3, margin=0.0)
    assert mined.num_found
    for at, row in enumerate(mined.examples):
        assert row.symmetric
        assert not [text for text in row.negatives if text.startswith(f"{at} ")]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([], {}),
        ([Example("a", ("b",), score=1.0)], {}),
        ([Example("a", ("b",))], {"num_negatives": 0}),
        ([Example("a", ("b",))], {"range_min": -1}),
        ([Example("a", ("b",))], {"margin": -0.1}),
        ([Example("a", ("b",))], {"absolute_margin": -0.1}),
    ],
)
def test_what_cannot_be_mined(rows: list[Example], options: dict[str, Any]) -> None:
    with pytest.raises(BellmError):
        mine_hard_negatives(rows, encoder(0), **options)


def test_vectors_that_are_none_are_refused() -> None:
    for vectors in (np.full((2, 3), np.nan, dtype=np.float32), np.ones((1, 3), dtype=np.float32)):
        with pytest.raises(BellmError, match="not one a text, or not finite"):
            mine_hard_negatives([Example("a", ("b",))], lambda texts, vectors=vectors: vectors)


def test_the_guard_is_set_by_the_least_similar_positive() -> None:
    angles = {"q": 0.0, "p": 10.0, "far": 40.0, "between": 30.0, "hard": 60.0}
    rows = [Example("q", ("p", "far"))]
    assert mine_hard_negatives(rows, placed(angles), passages=["between", "hard"]).examples[0].negatives == ("hard",)
    assert mine_hard_negatives([Example("q", ("p",))], placed(angles), passages=["between"]).examples[0].negatives == (
        "between",
    )
