"""When what is learned, and how fast."""

import math

import pytest

from bellm.train.recipe import Recipe, Schedule
from bellm.train.schedule import lr_factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 10), (0.2, 10), (0.1, 1), (1.0, 4), (0.0, 1)])
def test_heights_begin_low_and_end_as_scheduled(schedule: Schedule, warmup: float, total: int) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup)
    heights = [lr_factor(step, total, recipe) for step in range(total)]
    warm = math.ceil(warmup * total)
    assert heights[:warm] == [(step + 1) / warm for step in range(warm)]
    assert max(heights) == 1.0
    shares = [(step - warm) / (total - warm) for step in range(warm, total)]  # Of the way down.
    if schedule == "constant":
        wanted = [1.0] * len(shares)
    elif schedule == "linear":
        wanted = [1 - share for share in shares]
    else:
        wanted = [(1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert heights[warm:] == pytest.approx(wanted)
    if warm < total and schedule != "constant":
        assert lr_factor(total, total, recipe) == pytest.approx(0)
