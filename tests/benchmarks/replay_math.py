"""Offline replay of an A/B test: two ways to choose users at a past cut-off, judged by what these
users did afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from qanchor.evaluation.probe import cross_val_scores

COLUMNS = ["arm", "top", "users", "rate", "lift", "low", "high", "minus", "minus_low", "minus_high"]
TOPS = (0.05, 0.1, 0.2, 0.3)
# users whose chance to be treated is nearer to 0 or 1 have no counterpart and are left out
TRIM = 0.02


def replay(
    scores: pd.DataFrame,
    outcome: pd.Series,
    *,
    tops: Sequence[float] = TOPS,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Say what choosing the best users by each score would have met: the outcome among them,
    against everybody's.

    scores   index user, a column an arm, made before the cut-off; the first arm is the one that the
             others are compared with.
    outcome  index user: what happened afterwards, 0 or 1, or an amount; users without one (NaN) are
             left out.
    Returns `arm, top, users, rate, lift, low, high, minus, minus_low, minus_high`: rate is the mean
    outcome of the chosen, lift its ratio to the mean of all, minus the lift less the first arm's.
    Intervals: 95 %, users drawn anew, the same for all arms, and chosen anew in each draw. Nobody
    was treated because of these scores: this says whom an arm finds, not what a message
    to them would change (see `weighted_effect`). Source: the paper's online tests, as far as
    records can repeat them.

    Example:
        >>> known = pd.Series([1.0, 1, 0, 0] * 25, [f"u{i:02}" for i in range(100)])
        >>> numbers = np.arange(100)
        >>> columns = {"chance": numbers % 7, "oracle": known + numbers / 1000}
        >>> arms = pd.DataFrame(columns, known.index)
        >>> replay(arms, known, tops=[0.5])[["arm", "users", "rate", "lift"]].round(2)
              arm  users  rate  lift
        0  chance     50   0.5   1.0
        1  oracle     50   1.0   2.0
    """
    both = scores.astype(float).join(outcome.rename("outcome").astype(float), how="inner").dropna()
    if not len(both) or not both["outcome"].any():
        raise ValueError(
            f"{len(both):,} users have scores and an outcome, none of them above 0: nothing can "
            "be met"
        )
    if bad := [top for top in tops if not 0 < top <= 1]:
        raise ValueError(
            f"top {bad[0]!r}: give shares above 0 and up to 1, such as 0.1 for the best tenth"
        )
    rng, y, n = np.random.default_rng(seed), both["outcome"].to_numpy(), len(both)
    ties = rng.random(n)  # equal scores: who comes first is chance, the same in every draw
    rows = [np.arange(n), *(rng.integers(0, n, (draws, n)))]
    met = {
        arm: np.array([_met(both[arm].to_numpy()[r], y[r], ties[r], tops) for r in rows])
        for arm in scores
    }
    mean = np.array([y[r].mean() for r in rows])[:, None]
    first, found = next(iter(met)), []
    for arm, rates in met.items():
        with np.errstate(
            invalid="ignore", divide="ignore"
        ):  # a draw in which nothing happened at all
            lift, less = rates / mean, (rates - met[first]) / mean
        for k, top in enumerate(tops):
            span = [
                *np.nanquantile(lift[1:, k], (0.025, 0.975)),
                less[0, k],
                *np.nanquantile(less[1:, k], (0.025, 0.975)),
            ]
            found.append((arm, top, _many(n, top), rates[0, k], lift[0, k], *span))
    return pd.DataFrame(found, columns=COLUMNS)


def _many(users: int, top: float) -> int:
    return max(1, round(top * users))


def _met(
    score: Float[np.ndarray, " user"],
    y: Float[np.ndarray, " user"],
    ties: Float[np.ndarray, " user"],
    tops,
) -> list:
    """Give the mean outcome of the best users, for each share of them."""
    sums = np.cumsum(y[np.lexsort((ties, -score))])
    return [sums[_many(len(y), top) - 1] / _many(len(y), top) for top in tops]


def sample_size(rate_a: float, rate_b: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Say how many users each arm of a live test needs to tell two rates apart (two-sided, normal
    approximation).

    Example:
        >>> sample_size(0.10, 0.12)
        3841
    """
    from scipy.stats import norm

    for name, rate in (("rate_a", rate_a), ("rate_b", rate_b)):
        if not 0 < rate < 1:
            raise ValueError(f"{name} is {rate!r}: give a share above 0 and below 1")
    if rate_a == rate_b:
        raise ValueError(f"both rates are {rate_a}: no number of users tells equal rates apart")
    middle, z = (rate_a + rate_b) / 2, norm.ppf([1 - alpha / 2, power])
    spread = z[0] * math.sqrt(2 * middle * (1 - middle)) + z[1] * math.sqrt(
        rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    )
    return math.ceil((spread / (rate_a - rate_b)) ** 2)


def weighted_effect(
    outcome: Any, treated: Any, facts: Any, *, draws: int = 500, seed: int = 0
) -> dict:
    """Say how much more the treated did than others like them, where treatment was not by chance.

    outcome (user,); treated (user,) true or false; facts (user, number), known before the
    treatment. Each user's chance to be treated is estimated from the facts by a regression that has
    not seen the user; then every treated one weighs 1 - chance,
    every other one chance (overlap weights: who could have been in either group counts most). Users
    whose chance is within 2 % of certain are left out. 95 % interval: users drawn anew, chances
    kept. What decides treatment and outcome but is not among the facts stays in the estimate. So
    ask it also of the outcome in a time
    before the treatment, with facts from before that: what is found there (a placebo) was no
    effect, and so far off it may be. Returns raw (plain difference of means), effect, low, high,
    users, effective (as many of equal weight would say as much), imbalance and imbalance_left
    (greatest standardised difference of a fact between the groups, before and after weighing).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rich = rng.normal(size=4000)
        >>> # the rich are treated more often, and treatment does nothing
        >>> got = rng.random(4000) < 1 / (1 + np.exp(-rich))
        >>> found = weighted_effect(rich + rng.normal(size=4000), got, rich[:, None])
        >>> found["raw"] > 0.5, abs(found["effect"]) < 0.1
        (True, True)
    """
    y, got, x = np.asarray(outcome, float), np.asarray(treated, bool), np.asarray(facts, float)
    if not len(y) == len(got) == len(x):
        raise ValueError(
            f"{len(y)} outcomes, {len(got)} treated, {len(x)} rows of facts: give one of each a "
            "user"
        )
    log_odds = cross_val_scores(x, got.astype(float), seed, seeds=1, fit=_log_odds)[0][0]
    chance = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
    kept = (chance > TRIM) & (chance < 1 - TRIM)
    weight = np.where(got, 1 - chance, chance) * kept
    if min(weight[got].sum(), weight[~got].sum()) == 0:
        raise ValueError(
            f"{int(kept.sum())} of {len(y)} users could have been in either group: there is "
            "nobody to compare"
        )
    rng = np.random.default_rng(seed)
    drawn = [_gap(y[r], got[r], weight[r]) for r in rng.integers(0, len(y), (draws, len(y)))]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    told = {
        "raw": _gap(y, got, np.ones(len(y))),
        "effect": _gap(y, got, weight),
        "low": float(low),
        "high": float(high),
    }
    told |= {"users": int(kept.sum()), "effective": float(weight.sum() ** 2 / (weight**2).sum())}
    return told | {
        "imbalance": _imbalance(x, got, np.ones(len(y))),
        "imbalance_left": _imbalance(x, got, weight),
    }


def _gap(
    y: Float[np.ndarray, " user"],
    got: Bool[np.ndarray, " user"],
    weight: Float[np.ndarray, " user"],
) -> float:
    sides = [
        (y[side] * weight[side]).sum() / weight[side].sum() if weight[side].any() else np.nan
        for side in (got, ~got)
    ]
    return float(sides[0] - sides[1])


def _log_odds(x, got, new, seed: int) -> Float[np.ndarray, " user"]:
    """Fit with next to no penalty: a shrunk chance would leave the groups different."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return (
        make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        .fit(x, got)
        .decision_function(new)
    )


def _imbalance(
    x: Float[np.ndarray, "user number"],
    got: Bool[np.ndarray, " user"],
    weight: Float[np.ndarray, " user"],
) -> float:
    spread = x.std(axis=0)
    gaps = [
        _gap(column, got, weight) / s for column, s in zip(x.T, spread, strict=True) if s > 1e-9
    ]
    return float(np.max(np.abs(gaps), initial=0.0))
