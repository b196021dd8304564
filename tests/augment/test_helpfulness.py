"""The regression of gains: what statsmodels gives, the planted cause, and its false alarms by simulation."""

import numpy as np
import statsmodels.api as sm

from bellm.augment.helpfulness import explain_gains, text_features


def noise(number: int, seed: int, width: int = 6) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {f"feature {index}": draw.exponential(size=number) for index in range(width)}


def test_weights_and_intervals_are_those_of_statsmodels() -> None:
    features, draw = noise(120, 0), np.random.default_rng(1)
    gains = draw.normal(size=120) * (1 + features["feature 1"]) + 3 * features["feature 2"]
    found = explain_gains(gains, features)
    design = np.column_stack([(each - each.mean()) / each.std() for each in features.values()])
    wanted = sm.OLS(gains, sm.add_constant(design)).fit(cov_type="HC3", use_t=True)
    np.testing.assert_allclose([each.value for each in found.effects.values()], wanted.params[1:], rtol=1e-9)
    lows_highs = [(each.low, each.high) for each in found.effects.values()]
    np.testing.assert_allclose(lows_highs, wanted.conf_int()[1:], rtol=1e-9)
    assert found.explained == np.float64(wanted.rsquared).round(12) or abs(found.explained - wanted.rsquared) < 1e-9


def test_the_planted_cause_is_found_and_nothing_else() -> None:
    features, draw = noise(200, 3), np.random.default_rng(4)
    features["receipt is right"] = (draw.random(200) < 0.7).astype(float)
    gains = 30 * features["receipt is right"] + draw.normal(size=200) * 20
    found = explain_gains(gains, features)
    assert found.found == ("receipt is right",)
    effect = found.effects["receipt is right"]
    assert effect.low < 30 * features["receipt is right"].std() < effect.high


def test_noise_is_rarely_taken_for_a_cause() -> None:
    """Of 400 regressions of noise with unequal spread, about 5 % find anything."""
    alarms = 0
    for seed in range(400):
        features, draw = noise(100, seed), np.random.default_rng(10_000 + seed)
        gains = draw.normal(size=100) * (0.5 + features["feature 0"])
        alarms += bool(explain_gains(gains, features).found)
    assert alarms / 400 < 0.08


def test_a_feature_of_a_few_items_is_no_cause() -> None:
    """Whatever one or two items gain fits perfectly, and would look sure."""
    alarms = 0
    for seed in range(50):
        features, draw = noise(100, seed, 2), np.random.default_rng(20_000 + seed)
        features["rare"] = np.zeros(100)
        features["rare"][draw.integers(100, size=2)] = 1
        found = explain_gains(draw.normal(size=100), features)
        alarms += "rare" in found.found
        assert found.left_out == ("rare",)
    assert alarms == 0


def test_features_without_a_say_are_left_out() -> None:
    features = noise(60, 0, 2)
    features |= {"constant": np.ones(60), "twice": 2 * features["feature 0"]}
    found = explain_gains(np.random.default_rng(0).normal(size=60), features)
    assert found.left_out == ("constant", "twice")
    few = explain_gains(np.zeros(8), noise(8, 0))
    assert (few.effects, len(few.left_out)) == ({}, 6)
    assert explain_gains(np.zeros(60), features).explained == 0


def test_text_features() -> None:
    found = text_features([["It wasn't 3 herons in Rome!", "Snow?"], ["No heron.", "Snow, again"]])
    assert found["negations"].tolist() == [2, 0]
    assert found["numbers"].tolist() == [1, 0]
    assert found["capitalized words"].tolist() == [2, 1]
    assert found["question"].tolist() == [0, 1]
    assert found["shared words"].tolist() == [0, 0.5]
    assert found["difference in words"].tolist() == [4, 1]
    assert set(text_features([["Snow."]])) == set(found) - {"shared words", "difference in words"}
