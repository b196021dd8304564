"""Statistics against scipy, numbers worked out by hand, and worlds where the truth is planted."""

from functools import partial

import numpy as np
import pytest
import simulate_statistics as worlds
from scipy.stats import bootstrap, spearmanr, t, ttest_rel

from bellm.errors import BellmError
from bellm.report.statistics import (
    BootstrapEstimate,
    Difference,
    average_estimates,
    average_over_seeds,
    bootstrap_estimate,
    holm_correction,
    paired_difference,
)
from tests.report.comparison import compare_scores

DRAW = np.random.default_rng(0)
GOLD = DRAW.integers(0, 6, 300).astype(np.float64)
ITEMS = np.round(GOLD + 2 * DRAW.normal(size=300), 1)
OTHERS = np.round(GOLD + 3 * DRAW.normal(size=300), 1)
HITS, MISSES = (DRAW.random(300) < 0.85).astype(np.float64), (DRAW.random(300) < 0.6).astype(np.float64)


def test_the_score_is_spearman_or_the_mean() -> None:
    assert bootstrap_estimate(ITEMS, GOLD).value == pytest.approx(100 * spearmanr(ITEMS, GOLD).statistic)
    assert bootstrap_estimate(HITS).value == pytest.approx(100 * HITS.mean())


@pytest.mark.parametrize("n", [3, 300, 5000])  # The last takes several bites.
def test_replicates_are_scores_of_the_items_drawn(n: int) -> None:
    draw = np.random.default_rng(n)
    gold_N = np.arange(n) % 6.0
    item_scores_N = np.round(gold_N + draw.normal(size=n), 1)
    drawn_RN = np.random.default_rng(7).integers(n, size=(100, n))[-4:]
    drawn_RN = drawn_RN[[len(set(gold_N[row])) > 1 and len(set(item_scores_N[row])) > 1 for row in drawn_RN]]
    found = bootstrap_estimate(item_scores_N, gold_N, resamples=100, seed=7).resamples_R[-4:]
    wanted = [100 * spearmanr(item_scores_N[row], gold_N[row]).statistic for row in drawn_RN]
    np.testing.assert_allclose(found[found != 0], wanted, atol=1e-9)
    means = bootstrap_estimate(item_scores_N, resamples=100, seed=7).resamples_R[-4:]
    np.testing.assert_allclose(means[found != 0], 100 * item_scores_N[drawn_RN].mean(axis=1), atol=1e-9)


def test_the_interval_is_scipy_s() -> None:
    ours = bootstrap_estimate(ITEMS, GOLD, resamples=4000)
    theirs = bootstrap(
        (ITEMS, GOLD), worlds.spearman, paired=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    )
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.5)
    assert ours.resamples_R.std() == pytest.approx(theirs.standard_error, rel=0.05)
    assert bootstrap_estimate(HITS).resamples_R.std() == pytest.approx(100 * HITS.std() / np.sqrt(300), rel=0.1)


def test_one_seed_draws_the_same_items_for_every_system() -> None:
    assert (bootstrap_estimate(ITEMS, GOLD).resamples_R == bootstrap_estimate(np.exp(ITEMS), GOLD).resamples_R).all()
    assert (bootstrap_estimate(ITEMS, GOLD).resamples_R != bootstrap_estimate(ITEMS, GOLD, seed=1).resamples_R).any()


def test_scale_makes_no_difference_and_order_does() -> None:
    same = compare_scores(ITEMS, np.exp(ITEMS), GOLD)
    assert same == Difference(0, 0, 0, 1)
    found, turned = compare_scores(ITEMS, OTHERS, GOLD), compare_scores(OTHERS, ITEMS, GOLD)
    assert (found.value, found.low, found.p_value) == pytest.approx((-turned.value, -turned.high, turned.p_value))
    assert found.p_value < 0.01
    assert found.low > 0


def test_the_p_value_of_a_mean_is_near_student_s() -> None:
    draw = np.random.default_rng(3)
    item_scores_N = draw.normal(size=500)
    for shift in (0.0, 0.03, 0.06, 0.1):
        others_N = item_scores_N + 0.8 * draw.normal(size=500) + shift
        wanted = ttest_rel(item_scores_N, others_N).pvalue
        assert compare_scores(item_scores_N, others_N).p_value == pytest.approx(wanted, abs=0.05)


def test_zero_is_outside_the_interval_where_p_is_below_five_percent() -> None:
    found = [compare_scores(ITEMS + shift, OTHERS) for shift in np.linspace(-0.9, 0.9, 61)]
    significant = [one.p_value < 0.05 for one in found]
    assert significant == [not one.low <= 0 <= one.high for one in found]
    assert 10 < sum(significant) < 50


def test_replicates_of_tasks_of_one_size_do_not_go_together() -> None:
    task = bootstrap_estimate(ITEMS, GOLD)
    four = average_estimates([task] * 4)
    assert four.value == task.value
    assert four.resamples_R.std() == pytest.approx(task.resamples_R.std() / 2, rel=0.1)


def test_averages_are_paired_task_by_task() -> None:
    ours = [bootstrap_estimate(ITEMS, GOLD), bootstrap_estimate(HITS), bootstrap_estimate(OTHERS, GOLD)]
    same = [bootstrap_estimate(2 * ITEMS, GOLD), bootstrap_estimate(HITS), bootstrap_estimate(OTHERS + 1, GOLD)]
    assert paired_difference(average_estimates(ours), average_estimates(same)) == Difference(0, 0, 0, 1)
    theirs = [bootstrap_estimate(OTHERS, GOLD), bootstrap_estimate(MISSES), bootstrap_estimate(OTHERS, GOLD)]
    found = paired_difference(average_estimates(ours), average_estimates(theirs))
    parts = [paired_difference(*pair) for pair in zip(ours, theirs, strict=True)]
    assert found.value == pytest.approx(np.mean([part.value for part in parts]))
    reach = np.linalg.norm([part.high - part.value for part in parts]) / 3
    assert found.high - found.value == pytest.approx(reach, rel=0.1)


def test_holm_by_hand() -> None:
    found = {task: Difference(1, 0, 2, p) for task, p in {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9}.items()}
    adjusted = holm_correction(found)
    assert {task: one.p_value for task, one in adjusted.items()} == pytest.approx(
        {"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.9}
    )
    assert list(adjusted) == list("abcd")
    assert adjusted["a"].high == 2
    assert holm_correction({}) == {}


def test_holm_keeps_the_order_of_p_values_and_none_is_above_one() -> None:
    p_values = [0.02, 0.6, 0.02, 0.021, 0.5, 1.0]
    adjusted = holm_correction({str(task): Difference(1, 0, 2, p) for task, p in enumerate(p_values)})
    assert [one.p_value for one in adjusted.values()] == pytest.approx([0.12, 1, 0.12, 0.12, 1, 1])


def test_trainings_that_agree_leave_the_spread_of_items() -> None:
    one = bootstrap_estimate(ITEMS, GOLD)
    both = average_over_seeds([one, one])
    assert (both.value, both.low, both.high) == pytest.approx((one.value, one.low, one.high))


def test_trainings_that_do_not_agree_have_student_s_interval() -> None:
    values = np.array([70.0, 74.0, 75.0, 81.0])
    found = average_over_seeds([BootstrapEstimate(value, np.full(20_000, value)) for value in values])
    reach = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((75 - reach, 75 + reach), abs=0.3)


def test_the_trainings_of_two_settings_are_independent() -> None:
    one, other = (
        average_over_seeds([BootstrapEstimate(v, np.full(4000, v)) for v in (at, at + 1, at + 3, at + 4)])
        for at in (70, 60)
    )
    assert abs(np.corrcoef(one.resamples_R, other.resamples_R)[0, 1]) < 0.1
    assert paired_difference(one, one).p_value == 1


def test_what_has_no_order_scores_zero_and_equal_hits_have_no_width() -> None:
    flat = bootstrap_estimate(np.full(300, 0.5), GOLD)
    assert (flat.value, flat.low, flat.high) == (0, 0, 0)
    sure = bootstrap_estimate(np.ones(10))
    assert (sure.value, sure.low, sure.high) == (100, 100, 100)


@pytest.mark.parametrize(
    ("items", "gold", "message"),
    [
        ([1, 2], [1, 2], "2 items are too few"),
        ([1, 2, 3], [1, 2], "3 items, but 2 ratings"),
        ([1, np.nan, np.inf], [1, 2, 3], "2 of 3 items are not finite"),
        ([1, 2, 3], [1, np.nan, 3], "1 of 3 ratings are not finite"),
        ([1, 2, 3], [4, 4, 4], "All 3 ratings are 4"),
    ],
)
def test_what_has_no_score_is_refused(items: list[float], gold: list[float], message: str) -> None:
    with pytest.raises(BellmError, match=message):
        bootstrap_estimate(np.array(items, dtype=float), np.array(gold, dtype=float))


def test_what_does_not_go_together_is_refused() -> None:
    one, short = bootstrap_estimate(HITS), bootstrap_estimate(HITS, resamples=10)
    with pytest.raises(BellmError, match="1000, 10 resamples"):
        paired_difference(one, short)
    with pytest.raises(BellmError, match="no resamples"):
        average_estimates([])
    with pytest.raises(BellmError, match="One training"):
        average_over_seeds([one])


@pytest.mark.parametrize("world", worlds.SCORES)
def test_intervals_hold_the_truth_as_often_as_they_say(world: str) -> None:
    trials = 200 if "Spearman" in world else 800  # Means are quick.
    found = rates_of(partial(worlds.holds, worlds.SCORES[world], 410), 0.95, trials)
    assert found.low <= 0.95 <= found.high


@pytest.mark.parametrize("world", worlds.EQUALS)
def test_equal_systems_differ_in_one_test_of_twenty(world: str) -> None:
    found = rates_of(partial(worlds.alarms, worlds.EQUALS[world], 410), 0.05)
    assert found.low <= 0.05 <= found.high


def test_a_planted_difference_is_found() -> None:
    worse = partial(worlds.equal, quality=0.74)
    assert rates_of(partial(worlds.alarms, worse, 410), None, trials=100).low > 0.6


def test_seven_tests_cry_wolf_as_seldom_as_one() -> None:
    holm, uncorrected = worlds.rates("", "", partial(worlds.any_alarm, worlds.equal_hits), 40, 0.05)
    assert holm.low <= 0.05 < uncorrected.low


def test_intervals_over_trainings_hold_what_the_next_may_give() -> None:
    both, *without = worlds.rates("", "", partial(worlds.holds_over_seeds, 3, 4.0), 80, 0.95)
    assert both.high > 0.95
    assert all(rival.high < 0.95 for rival in without)


def rates_of(trial: worlds.Trial, aim: float | None, trials: int = 200) -> worlds.Row:
    """What bellm's own method did, which comes first."""
    return worlds.rates("", "", trial, trials, aim)[0]
