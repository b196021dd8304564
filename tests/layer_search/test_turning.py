import numpy as np
import pytest
import simulate_turning as worlds
from scipy.optimize import curve_fit

from bellm.layer_search.turning import find_turning_point

DEPTHS = worlds.DEPTHS


def noisy(scores_K: worlds.Numbers, sd: float, seed: int = 0) -> tuple[worlds.Numbers, worlds.Numbers]:
    """A curve, and what resampling its items would give."""
    noise_RK = sd * worlds.neighbourly(np.random.default_rng(seed), 201)
    return scores_K + noise_RK[0], scores_K + noise_RK[0] + noise_RK[1:]


@pytest.mark.parametrize("depth", [4, 12, 20, 23])
def test_a_curve_without_noise_turns_where_it_was_planted(depth: int) -> None:
    found = find_turning_point(*noisy(np.interp(DEPTHS, [1, depth, 24], [20, 70, 68]), 1e-6))
    assert (found.depth, found.low, found.high, found.reason) == (depth, depth, depth, "")
    assert found.p_value < 0.01


def test_the_upper_knee_of_an_s_is_where_it_turns() -> None:
    found = find_turning_point(*noisy(np.interp(DEPTHS, [1, 8, 16, 24], [20, 20, 70, 71]), 1e-6))
    assert found.depth == 16


def test_it_is_where_scipy_puts_a_knee() -> None:
    def line(x: worlds.Numbers, start: float, slope: float, bend: float, knee: float) -> worlds.Numbers:
        return np.asarray(start + slope * x + bend * np.maximum(x - knee, 0))

    scores_K, resamples_RK = noisy(np.interp(DEPTHS, [1, 17, 24], [30, 70, 72]), 1.5, seed=1)
    (*_, knee), _ = curve_fit(line, DEPTHS, scores_K, p0=(30, 2, -2, 15))
    found = find_turning_point(scores_K, resamples_RK)
    assert found.depth == pytest.approx(knee, abs=1)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.depth <= found.high
    assert 0 < found.high - found.low <= 6


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.full(24, 60.0), "nowhere rises and then levels off"),
        (np.linspace(20, 70, 24), "nowhere rises and then levels off"),
        (np.interp(DEPTHS, [1, 15, 24], [20, 20, 70]), "nowhere rises and then levels off"),
        (np.interp(DEPTHS, [1, 15, 24], [60, 60, 40]), "nowhere rises and then levels off"),
    ],
)
def test_a_curve_that_does_not_turn_says_why(scores: worlds.Numbers, reason: str) -> None:
    found = find_turning_point(*noisy(scores, 1e-6))
    assert (found.depth, found.low, found.high, found.p_value) == (None, None, None, 1)
    assert reason in found.reason


def test_ups_and_downs_of_the_layers_are_no_knees() -> None:
    draw = np.random.default_rng(0)
    noise_RK = draw.normal(size=(11, 201, 24))
    curves = [np.linspace(20, 70, 24) + noise_RK[trial, 0] for trial in range(10)]
    found = [find_turning_point(curve_K, curve_K + noise_RK[-1, 1:]) for curve_K in curves]
    assert sum("nowhere rises" in one.reason for one in found) >= 9


def test_noise_as_large_as_the_bend_hides_it() -> None:
    curve_K = np.interp(DEPTHS, [1, 8, 16, 24], [60, 60, 62, 62])
    found = [find_turning_point(*noisy(curve_K, 5.0, seed)).depth for seed in range(10)]
    assert sum(depth is not None for depth in found) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_bend_somewhat_larger_than_the_noise_is_unlikely_to_be_noise(seed: int) -> None:
    assert find_turning_point(*noisy(np.interp(DEPTHS, [1, 16, 24], [60, 70, 70]), 2.0, seed)).p_value < 0.05


def test_a_short_curve_is_not_read() -> None:
    short = find_turning_point(np.arange(9.0), np.zeros((10, 9)))
    assert "9 depths are too few" in short.reason
    assert short.p_value == 1
    assert "nowhere rises" in find_turning_point(np.arange(10.0), np.zeros((10, 10))).reason


def test_planted_curves_are_found_and_straight_ones_are_not() -> None:
    def row(world: str) -> worlds.Row:
        planted = {**worlds.TURNING, **worlds.STRAIGHT}[world]
        return worlds.row(world, "", planted, worlds.partial(worlds.noise_added, planted, 1.0, 0.5), 10)

    s = row("S with outlying ends, turns at 16")
    assert s.found == 1
    assert s.error is not None
    assert s.error < 1
    assert s.holds is not None
    assert s.holds >= 0.9
    assert row("flat").found <= 0.1
    assert row("flat, then a rise to the top").found <= 0.1
