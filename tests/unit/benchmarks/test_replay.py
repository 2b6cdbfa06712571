"""Replay: lifts against a loop, intervals that cover, equal arms that do not differ, and an effect
that is not there.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from tests.benchmarks.replay_math import replay, sample_size, weighted_effect

RNG = np.random.default_rng(0)
IDS = [f"u{i:03}" for i in range(300)]
TRAIT = pd.Series(RNG.normal(size=300), IDS)
DID = (RNG.random(300) < 1 / (1 + np.exp(1 - 1.5 * TRAIT))).astype(float)


def test_lift_is_what_a_loop_counts():
    arms = pd.DataFrame({"a": TRAIT + RNG.normal(size=300), "b": TRAIT})
    frame = replay(arms, DID, tops=[0.1, 0.25, 1.0], draws=50).set_index(["arm", "top"])
    for arm in arms:
        for top in (0.1, 0.25):
            best = sorted(IDS, key=lambda user: -arms.loc[user, arm])[: round(top * 300)]
            rate = sum(DID[user] for user in best) / len(best)
            assert frame.loc[(arm, top), "users"] == len(best)
            assert frame.loc[(arm, top), "rate"] == pytest.approx(rate)
            assert frame.loc[(arm, top), "lift"] == pytest.approx(rate / (sum(DID) / 300))
    assert (frame.xs(1.0, level="top")["lift"] == 1).all() and (frame.loc["a", "minus"] == 0).all()
    row = frame.loc[("b", 0.1)]
    assert row["low"] < row["lift"] < row["high"] and row["minus"] == pytest.approx(
        row["lift"] - frame.loc[("a", 0.1), "lift"]
    )


def test_a_better_arm_is_clear_of_zero_and_an_equal_one_is_not():
    arms = pd.DataFrame(
        {"chance": RNG.normal(size=300), "trait": TRAIT, "other": RNG.normal(size=300)}, IDS
    )
    frame = replay(arms, DID, tops=[0.2], draws=300).set_index("arm")
    assert frame.loc["trait", "minus_low"] > 0
    assert frame.loc["other", "minus_low"] < 0 < frame.loc["other", "minus_high"]


def test_the_order_of_users_and_ties_play_no_part():
    arms = pd.DataFrame({"flat": 0.0}, IDS)
    frame = replay(arms, DID, tops=[0.2])  # all tie: the interval holds 1
    assert frame.loc[0, "low"] < 1 < frame.loc[0, "high"]
    mixed = pd.DataFrame({"trait": TRAIT}).sample(frac=1, random_state=1)
    same = (
        replay(mixed, DID, tops=[0.2])["rate"],
        replay(pd.DataFrame({"trait": TRAIT}), DID, tops=[0.2])["rate"],
    )
    assert same[0].equals(same[1])


def test_amounts_and_missing_outcomes():
    spent = pd.Series(np.where(np.arange(300) < 250, TRAIT.clip(lower=0), np.nan), IDS)
    frame = replay(pd.DataFrame({"trait": TRAIT}), spent, tops=[0.1], draws=20)
    assert frame.loc[0, "users"] == 25 and frame.loc[0, "lift"] > 2


def test_what_cannot_be_replayed_is_told():
    arms = pd.DataFrame({"trait": TRAIT})
    with pytest.raises(
        ValueError, match="300 users have scores and an outcome, none of them above 0"
    ):
        replay(arms, DID * 0)
    with pytest.raises(ValueError, match=r"top 10: give shares above 0 and up to 1, such as 0\.1"):
        replay(arms, DID, tops=[10])
    with pytest.raises(ValueError, match=r"both rates are 0\.1"):
        sample_size(0.1, 0.1)
    with pytest.raises(ValueError, match=r"rate_b is 1\.2"):
        sample_size(0.1, 1.2)
    with pytest.raises(ValueError, match="300 outcomes, 299 treated"):
        weighted_effect(DID, np.ones(299), TRAIT.to_numpy()[:, None])


def test_a_test_of_that_size_finds_the_difference_as_often_as_promised():
    n, rng = sample_size(0.3, 0.4, power=0.8), np.random.default_rng(1)
    a, b = rng.binomial(n, 0.3, 4000) / n, rng.binomial(n, 0.4, 4000) / n
    both = (a + b) / 2
    found = np.abs(a - b) / np.sqrt(2 * both * (1 - both) / n) > norm.ppf(0.975)
    assert 0.77 < found.mean() < 0.83


def test_weighing_finds_a_planted_effect_where_the_plain_difference_does_not():
    rng = np.random.default_rng(2)
    facts = rng.normal(size=(3000, 3))
    got = rng.random(3000) < 1 / (1 + np.exp(-facts[:, 0] - 0.5 * facts[:, 1]))
    past = facts[:, 0] + rng.normal(size=3000)
    outcome = past + 0.3 * got + rng.normal(size=3000)
    found = weighted_effect(outcome, got, facts, draws=200)
    assert found["raw"] > 0.8 and found["low"] < 0.3 < found["high"] and found["low"] > 0
    assert found["imbalance"] > 0.5 and found["imbalance_left"] < 0.1
    assert found["effective"] < found["users"] <= 3000
    nothing = weighted_effect(past, got, facts, draws=200)
    assert nothing["low"] < 0 < nothing["high"]
    unknown = facts[:, 1:]  # without the fact that decides
    assert weighted_effect(outcome, got, unknown, draws=50)["effect"] > 0.6
    assert (
        weighted_effect(past, got, unknown, draws=50)["low"] > 0.3
    )  # and the placebo gives it away
