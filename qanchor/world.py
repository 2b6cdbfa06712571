"""A seeded sample world: users with planted traits who emit six modalities, and ten tasks whose probabilities are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .schema import Users
from .themes import rows, themes, weights

MODALITIES = ("bill", "mini", "spm", "app", "search", "tabular")
RATES = {"bill": 34, "mini": 21, "spm": 20, "app": 22, "search": 17}  # mean events in 120 days
START = pd.Timestamp("2025-03-03")  # a Monday
MONTH = 30  # days; the tasks look one month ahead
MISSING, LYING = 0.08, 0.12  # share of (user, modality) that is absent; share of users with one modality from somebody else
STRENGTH = 1.6  # how strongly traits choose themes
OFTEN = ("Active", "Login")  # these come true in several events a month, the other tasks in one or two

# trait | its share of four common causes (affluence, youth, order, engagement); the rest is the user's own
TRAIT_TABLE = """
activity  |   0 |   0 |  .1 | .5
routine   |   0 | -.1 |  .5 | .3
trend     |   0 |   0 |   0 | .3
music     |  .1 |  .5 |   0 | .1
green     |  .1 |   0 |  .4 | .2
fraud     | -.2 |  .1 | -.4 |  0
cash_need | -.5 |  .2 | -.2 |  0
wealth    |  .6 | -.1 |  .1 |  0
takeout   |   0 |  .5 | -.2 | .1
brand     |  .4 |  .2 |   0 | .1
thrift    | -.3 |   0 |  .2 | .4
night     |   0 |  .5 | -.3 |  0
travel    |  .5 |  .1 |   0 | .1
family    |  .1 | -.4 |  .2 |  0
health    |  .2 |   0 |  .5 |  0
social    |   0 |  .4 |   0 | .4
"""
# task | constant of the logit | its traits, the main one first; a product is an interaction
TASK_TABLE = """
Active  | -0.6 | activity 1.1, social .7, trend .8, activity*social .4
Concert | -2.0 | music 1.5, social .7, music*wealth .4
Login   | -0.5 | routine 1.5, activity .6, routine*night -.4
Forest  | -1.2 | green 1.5, health .6, green*routine .4
Fraud   | -3.9 | fraud 1.6, night .5, fraud*cash_need .4
Money   | -2.0 | cash_need 1.4, wealth -.6, cash_need*family .4
Takeout | -0.9 | takeout 1.5, night .5, family -.4, takeout*wealth .3
Brand   | -1.4 | brand 1.4, wealth .6, brand*thrift -.4
Promo   | -0.6 | thrift 1.4, social .5, thrift*brand .4
Value   | -1.8 | wealth 1.3, family .6, travel .5, wealth*family .4
"""
# fact | mean | spread | traits that it shows, noisily
FACT_TABLE = """
account.age_years     | 4   | 1.5 | activity .3, fraud -.5, routine .2
account.credit_line   | 5   | 2   | wealth .6, cash_need -.4
account.contacts      | 80  | 25  | social .6, activity .2
device.price          | 520 | 150 | wealth .5, brand .4
device.age_months     | 20  | 7   | thrift .4, brand -.3
home.city_tier        | 2.5 | .8  | travel -.4, takeout -.4
home.people           | 2.6 | 1   | family .7, night -.2
"""
TRAITS = {name: tuple(map(float, shares)) for name, *shares in rows(TRAIT_TABLE)}
TASKS = {name: (float(constant), weights(terms)) for name, constant, terms in rows(TASK_TABLE)}


def _carriers(task: str) -> tuple[str, ...]:
    main = next(iter(TASKS[task][1]))
    shown = {m for theme in themes() if theme.name == task or theme.load.get(main, 0) >= 0.6 for m in theme.weight}
    return tuple(m for m in MODALITIES if m in shown)


CARRIERS: dict[str, tuple[str, ...]] = {task: _carriers(task) for task in TASKS}  # where the task's main trait shows


@dataclass(frozen=True)
class Truth:
    """Hold what was planted, one row a user."""

    traits: dict[str, np.ndarray]  # trait -> (user,)
    p: np.ndarray  # (user, task)
    label: np.ndarray  # (user, task) bool
    missing: np.ndarray  # (user, modality) bool
    lies: np.ndarray  # (user,) place of the modality that lies, -1 for none
    donor: np.ndarray  # (user,) whose behaviour the lying modality shows


def make_world(n: int = 2000, seed: int = 0, days: int = 120, history_days: int = 90) -> Users:
    """Make `n` users with `days` days of events, the cut-off after `history_days`, and ten labels for the month that follows.

    Events carry `amount` and `discount` (bill) and `minutes` (mini, app). About 115 events a user. The same arguments give
    the same users. What was planted is told by `world_truth(n, seed)` and stands nowhere in the result.
    Raises ValueError when there is no whole month of history, or none after the cut-off.

    Example:
        >>> users = make_world(50, seed=0)
        >>> len(users), len(users.labels.columns), users.modalities[0]
        (50, 10, 'bill')
    """
    if history_days < MONTH or days < history_days + MONTH:
        raise ValueError(f"days={days}, history_days={history_days}: give at least {MONTH} days before and after the cut-off")
    truth = _truth(n, seed)
    rng = np.random.default_rng([seed, 1])
    months = _months(rng, truth, days, history_days)
    noise = 0.3 * rng.standard_normal((len(RATES), n))
    parts = [_emit(rng, place, truth, months, days, noise[place]) for place in range(len(RATES))]
    return Users.from_events(
        pd.concat(parts, ignore_index=True),
        START + pd.Timedelta(days=history_days),
        name="world",
        tabular=_facts(rng, truth),
        labels=pd.DataFrame(truth.label.astype(float), columns=list(TASKS), index=_ids(n)),
        modalities=MODALITIES,
    )


def world_truth(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Tell what `make_world(n, seed)` hides: `trait.*`, `p.<task>`, `lies` (a modality or ""), `missing` (joined by ";").

    Index user. For judging models only.

    Example:
        >>> world_truth(3).shape
        (3, 28)
    """
    truth = _truth(n, seed)
    frame = pd.DataFrame({f"trait.{name}": values for name, values in truth.traits.items()}, index=_ids(n))
    frame[[f"p.{name}" for name in TASKS]] = truth.p
    frame = frame.round(4)
    frame["lies"] = [MODALITIES[place] if place >= 0 else "" for place in truth.lies]
    frame["missing"] = [";".join(np.array(MODALITIES)[row]) for row in truth.missing]
    return frame


def write_sample(folder, n: int = 2000, seed: int = 0) -> Path:
    """Write the shipped sample again: `make_world(n, seed)` as a folder for `load_users`, and `truth.parquet` beside it."""
    folder = make_world(n, seed).save(folder)
    world_truth(n, seed).reset_index().to_parquet(folder / "truth.parquet", index=False, compression="zstd")
    return folder


def _ids(n: int) -> pd.Index:
    return pd.Index([f"u{row:06d}" for row in range(n)], name="user")


def _truth(n: int, seed: int) -> Truth:
    if n < 1:
        raise ValueError(f"n is {n}: a world needs at least 1 user")
    rng = np.random.default_rng([seed, 0])
    share = np.array(list(TRAITS.values()))
    own = np.sqrt(1 - (share**2).sum(axis=1))
    values = rng.standard_normal((n, share.shape[1])) @ share.T + own * rng.standard_normal((n, len(TRAITS)))
    traits = dict(zip(TRAITS, values.T, strict=True))
    p = np.stack([1 / (1 + np.exp(-_logit(traits, *task))) for task in TASKS.values()], axis=1)
    missing = rng.random((n, len(MODALITIES))) < MISSING
    missing[missing[:, :-1].sum(axis=1) > 3] = False  # nobody is left with nothing
    lies = np.where(rng.random(n) < LYING, rng.integers(0, len(RATES), n), -1)
    lies[(lies >= 0) & missing[np.arange(n), lies]] = -1
    donor = (np.arange(n) + rng.integers(1, max(n, 2), n)) % n
    return Truth(traits, p, rng.random(p.shape) < p, missing, lies, donor)


def _logit(traits: dict[str, np.ndarray], constant: float, terms: dict[str, float]) -> np.ndarray:
    start = np.full(len(traits["activity"]), float(constant))
    return sum((w * np.prod([traits[t] for t in term.split("*")], axis=0) for term, w in terms.items()), start)


def _facts(rng: np.random.Generator, truth: Truth) -> pd.DataFrame:
    """Make the fixed facts: noisy shows of traits, empty for users whose `tabular` is missing."""
    n, frame = len(truth.p), {}
    for name, mean, spread, terms in rows(FACT_TABLE):
        shown = weights(terms)
        rest = np.sqrt(1 - sum(w**2 for w in shown.values()))
        value = float(mean) + float(spread) * (_logit(truth.traits, 0, shown) + rest * rng.standard_normal(n))
        frame[name] = np.where(truth.missing[:, -1], np.nan, np.maximum(value, 0).round(1))
    return pd.DataFrame(frame, index=_ids(n))


def _months(rng: np.random.Generator, truth: Truth, days: int, history_days: int) -> list[tuple[int, np.ndarray]]:
    """Draw what comes true in each month: the labels in the month after the cut-off, the same odds drawn anew in the others."""
    starts = range(history_days - MONTH * (history_days // MONTH), days - MONTH + 1, MONTH)
    return [(start, truth.label if start == history_days else rng.random(truth.p.shape) < truth.p) for start in starts]


def _emit(rng: np.random.Generator, place: int, truth: Truth, months: list, days: int, noise: np.ndarray) -> pd.DataFrame:
    """Emit the events of one modality for all users."""
    modality, n = MODALITIES[place], len(truth.p)
    shown = np.where(truth.lies == place, truth.donor, np.arange(n))  # a lying modality shows its donor
    there = ~truth.missing[:, place]
    traits = {name: values[shown] for name, values in truth.traits.items()}
    rate = RATES[modality] / 120 * days * np.exp(0.25 * traits["activity"] + noise)
    user = np.repeat(np.arange(n), rng.poisson(rate * there))
    parts = [(user, _choose(rng, modality, traits, user), _days(rng, user, traits, days))]
    for number, theme in enumerate(themes()):
        if theme.name in TASKS and modality in theme.weight:
            for start, outcome in months:
                true = np.flatnonzero(outcome[shown, list(TASKS).index(theme.name)] & there)
                true = np.repeat(true, 1 + rng.poisson(2.0 if theme.name in OFTEN else 0.4, len(true)))
                parts.append((true, np.full(len(true), number), start + rng.integers(0, MONTH, len(true))))
    user, theme, day = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _write(rng, modality, traits, user, theme, day)


def _choose(rng: np.random.Generator, modality: str, traits: dict[str, np.ndarray], user: np.ndarray) -> np.ndarray:
    """Draw a theme's number for each event: softmax of the user's traits over the modality's themes."""
    at = [i for i, theme in enumerate(themes()) if modality in theme.weight and theme.name not in TASKS]
    logit = [np.log(themes()[i].weight[modality]) + STRENGTH * _logit(traits, 0, themes()[i].load) for i in at]
    share = np.exp(np.stack(logit, axis=1)).cumsum(axis=1)
    share = share / share[:, -1:] + np.arange(len(share))[:, None]  # one rising row for a single sorted search
    found = np.searchsorted(share.ravel(), user + rng.random(len(user)))
    return np.array(at)[np.clip(found - user * len(at), 0, len(at) - 1)]


def _days(rng: np.random.Generator, user: np.ndarray, traits: dict[str, np.ndarray], days: int) -> np.ndarray:
    """Draw the day of each event: rising with the trend, sociable users at weekends, some events in bursts."""
    slope, r = 0.9 * np.tanh(0.7 * traits["trend"])[user], rng.random(len(user))
    x = 2 * r / (1 - slope + np.sqrt((1 - slope) ** 2 + 4 * slope * r))  # a straight density from 1 - slope up to 1 + slope
    day = np.minimum(days * x, days - 1).astype(int)
    moved = rng.random(len(user)) < 0.4 / (1 + np.exp(-1.5 * traits["social"][user]))
    day = np.where(moved & (day % 7 < 5), np.minimum(day - day % 7 + rng.integers(5, 7, len(user)), days - 1), day)
    burst = np.flatnonzero((rng.random(len(user)) < 0.15)[1:] & (user[1:] == user[:-1])) + 1
    day[burst] = day[burst - 1]
    return day


def _minutes(rng: np.random.Generator, user: np.ndarray, traits: dict[str, np.ndarray]) -> np.ndarray:
    """Draw the minute of the day: night owls late, users of routine early."""
    night = rng.random(len(user)) < 1 / (1 + np.exp(2.2 - 1.1 * traits["night"][user]))
    early = rng.random(len(user)) < 1 / (1 + np.exp(1.2 - 0.7 * traits["routine"][user]))
    late, dawn, day = (rng.integers(*hours, len(user)) for hours in ((23, 28), (6, 10), (10, 23)))
    return np.where(night, late % 24, np.where(early, dawn, day)) * 60 + rng.integers(0, 60, len(user))


def _write(rng, modality: str, traits: dict, user: np.ndarray, theme: np.ndarray, day: np.ndarray) -> pd.DataFrame:
    """Give each event its text (half the time the user's favourite of the theme), time and numbers."""
    known = [t.texts.get(modality, ()) for t in themes()]
    size, first = np.array([len(t) for t in known]), np.cumsum([0, *map(len, known)])
    favourite = (user * 7919 + theme * 104729) % 997 % size[theme]
    pick = np.where(rng.random(len(user)) < 0.5, favourite, rng.integers(0, size[theme]))
    texts = pd.Categorical.from_codes(first[theme] + pick, [text for t in known for text in t])
    frame = pd.DataFrame({"user": pd.Categorical.from_codes(user, _ids(len(traits["wealth"])))})
    minute = day * 1440 + _minutes(rng, user, traits)
    frame["time"] = START.to_datetime64() + minute.astype("timedelta64[m]")
    frame["modality"], frame["text"] = modality, texts
    if modality == "bill":
        taste = 0.3 * traits["wealth"] - 0.1 * traits["thrift"]
        price = np.array([t.price for t in themes()])[theme]
        frame["amount"] = (price * np.exp(taste[user] + 0.4 * rng.standard_normal(len(user)))).round(2)
        cut = rng.random(len(user)) < 1 / (1 + np.exp(1.8 - traits["thrift"][user]))
        frame["discount"] = (frame["amount"] * cut * rng.choice([0.05, 0.1, 0.2, 0.3], len(user))).round(2)
    if modality in ("mini", "app"):
        frame["minutes"] = np.exp(1.2 + 0.3 * traits["activity"][user] + 0.7 * rng.standard_normal(len(user))).round() + 1
    return frame
