"""Generate sample users, whose latent traits determine events and facts in six modalities.

Each user has 16 latent traits, which are correlated through four common causes (affluence, youth,
order, engagement; loadings in `resources/sample_traits.csv`). Traits set the odds of ten tasks
(`sample_tasks.csv`; a product is an interaction) and which themes a user's events are about
(`sample_themes.csv`). A theme with the name of a task occurs only in months in which the task comes
true. `sample_facts.csv` defines noisy facts known before the first event.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod, sqrt

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.special import expit

from qanchor.data.users import Users
from qanchor.utils.io import read_resource_rows

MODALITIES = ("bill", "mini", "spm", "app", "search", "tabular")
EVENT_RATES = {"bill": 34, "mini": 21, "spm": 20, "app": 22, "search": 17}  # mean per 120 days
START = pd.Timestamp("2025-03-03")  # a Monday
DAYS = 120  # of events
HISTORY_DAYS = 90  # before the cut-off
MONTH = 30  # days; the tasks look one month ahead
MISSING_SHARE = 0.08  # share of (user, modality) that is absent
LYING_SHARE = 0.12  # share of users one of whose modalities shows another user's behavior
TRAIT_STRENGTH = 1.6  # how strongly traits choose themes
FREQUENT_TASKS = ("Active", "Login")  # several events a month when true, the others one or two
TEXT_TEMPLATES = {  # by modality; every text names a thing or an app of its theme
    "bill": ("{verb} {thing}", "{verb} {thing} via {app}", "{verb} {thing}, {app} receipt"),
    "mini": ("opened the {app} mini program", "browsed {thing} in the {app} mini program"),
    "spm": (
        "home > {section} > {thing}",
        "{section} > {thing} > details",
        "{section} > {app} > {thing}",
    ),
    "app": ("opened {app} app", "long session in {app} app", "notification from {app} app"),
    "search": ("searched for {thing}", "looked up {thing} online"),
}


UserTraits = np.ndarray  # one row per user, one named field per trait; standard normal values


@dataclass(frozen=True)
class Theme:
    """One subject of events.

    Args:
        name: Name of the theme.
        weight: Relative frequency, by modality.
        load: Weights of the traits that make a user choose it.
        price: Median amount of a bill.
        texts: Texts of its events, by modality.
    """

    name: str
    weight: dict[str, float]
    load: dict[str, float]
    price: float
    texts: dict[str, tuple[str, ...]]


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of one of the generator's tables in `qanchor/data/resources`.

    Args:
        name: Name of the file, without its ending.
    """
    return read_resource_rows("qanchor.data", f"resources/{name}.csv")


def parse_weights(field: str) -> dict[str, float]:
    """Parse "app 2, mini" into weights by name.

    Args:
        field: Names separated by commas, each with an optional weight (default 1); "-" is none.

    Returns:
        The weights by name, in the given order.

    Example:
        >>> parse_weights("app 2, mini")
        {'app': 2.0, 'mini': 1.0}
    """
    result = {}
    for part in field.split(","):
        name, _, weight = part.strip().partition(" ")
        if name != "-":
            result[name] = float(weight or 1)
    return result


@cache
def themes() -> tuple[Theme, ...]:
    """Return the themes of the sample data, each with its texts: first those of `TASKS`, in order.

    Example:
        >>> themes()[0].texts["app"][0]
        'opened Circle Chat app'
    """
    result = []
    for row in read_table("sample_themes"):
        things = row["things"].split(", ")
        apps = row["apps"].split(", ")
        weight = parse_weights(row["modalities"])
        texts = {}
        for modality in weight:
            filled = []
            for template, thing, app in product(TEXT_TEMPLATES[modality], things, apps):
                filled.append(template.format_map(row | {"thing": thing, "app": app}))
            texts[modality] = tuple(dict.fromkeys(filled))
        load = parse_weights(row["traits"])
        result.append(Theme(row["theme"], weight, load, float(row["price"]), texts))
    return tuple(result)


TRAITS = {}  # trait -> its loading on each of the four common causes
for trait, *shares in map(dict.values, read_table("sample_traits")):
    TRAITS[trait] = tuple(map(float, shares))
TASKS = {}  # task -> constant of the logit, weights of its traits (the main one first)
QUERIES = {}  # task -> its question; `{user}`: the unit
for row in read_table("sample_tasks"):
    TASKS[row["task"]] = (float(row["constant"]), parse_weights(row["terms"]))
    QUERIES[row["task"]] = row["query"]


def _carriers(task: str) -> tuple[str, ...]:
    main_trait = next(iter(TASKS[task][1]))
    modalities = set()
    for theme in themes():
        if theme.name == task or theme.load.get(main_trait, 0) >= 0.6:
            modalities.update(theme.weight)
    return tuple(sorted(modalities, key=MODALITIES.index))


CARRIERS = {task: _carriers(task) for task in TASKS}  # modalities that reveal its main trait


@dataclass(frozen=True)
class GroundTruth:
    """The latent state of the generated users, one row per user.

    Args:
        traits: Standard normal values, one field per trait, (user,).
        p: Probability of each task, (user, task).
        label: Whether each task comes true, bool (user, task).
        missing: Whether a modality has no events, bool (user, modality).
        lies: Index of the modality that shows another user's behavior, -1 for none, (user,).
        donor: Row of the user whose behavior the lying modality shows, (user,).
    """

    traits: UserTraits
    p: np.ndarray
    label: np.ndarray
    missing: np.ndarray
    lies: np.ndarray
    donor: np.ndarray


def make_sample_users(n: int = 2000, seed: int = 0) -> Users:
    """Generate users with events in five modalities, facts, and ten labels for the next month.

    A user has about 150 events, three quarters of them before the cut-off. Events carry `amount`
    and `discount` (bill) and `minutes` (mini, app). The result does not contain the latent state,
    which `sample_ground_truth(n, seed)` returns.

    Args:
        n: Number of users (default 2000).
        seed: Seed of the generator (default 0); the same arguments give the same users.

    Returns:
        The users.

    Raises:
        ValueError: `n` is below 1.

    Example:
        >>> users = make_sample_users(50, seed=0)
        >>> len(users), len(users.labels.columns), users.modalities[0]
        (50, 10, 'bill')
    """
    truth = _truth(n, seed)
    rng = np.random.default_rng([seed, 1])
    # outcomes of each month of the history, then the labels: those of the month after it
    history = rng.random((HISTORY_DAYS // MONTH, *truth.p.shape)) < truth.p
    months = [*history, truth.label]
    noise = 0.3 * rng.standard_normal((len(EVENT_RATES), n))
    parts = [_emit(rng, place, truth, months, row) for place, row in enumerate(noise)]
    labels = pd.DataFrame(truth.label.astype(float), index=_ids(n), columns=list(TASKS))
    return Users.from_events(
        pd.concat(parts, ignore_index=True),
        START + pd.Timedelta(days=HISTORY_DAYS),
        name="world",
        tabular=_facts(rng, truth),
        labels=labels,
        modalities=MODALITIES,
    )


def sample_ground_truth(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Return the latent state behind `make_sample_users(n, seed)`, for evaluation only.

    Args:
        n: Number of users (default 2000).
        seed: Seed of the generator (default 0).

    Returns:
        Index `user`; columns `trait.*`, `p.<task>` (probability), `lies` (the modality that shows
        another user's behavior, or "") and `missing` (modalities without events, joined by ";").

    Raises:
        ValueError: `n` is below 1.

    Example:
        >>> sample_ground_truth(3).shape
        (3, 28)
    """
    truth = _truth(n, seed)
    frame = pd.DataFrame(truth.traits, index=_ids(n)).add_prefix("trait.")
    frame[[f"p.{name}" for name in TASKS]] = truth.p
    frame = frame.round(4)
    names = np.array([*MODALITIES, ""])  # "" at -1, for users without a lie
    frame["lies"] = names[truth.lies]
    frame["missing"] = [";".join(names[:-1][row]) for row in truth.missing]
    return frame


def _ids(n: int) -> pd.Index:
    return pd.Index([f"u{row:06d}" for row in range(n)], name="user")


def _truth(n: int, seed: int) -> GroundTruth:
    if n < 1:
        raise ValueError(f"n is {n}. Choose at least 1 user.")
    rng = np.random.default_rng([seed, 0])
    loadings = np.array(list(TRAITS.values()))
    causes = rng.standard_normal((n, loadings.shape[1]))
    noise = rng.standard_normal((n, len(TRAITS)))
    noise_spread = np.sqrt(1 - (loadings**2).sum(axis=1))
    values = causes @ loadings.T + noise_spread * noise
    traits = np.rec.fromarrays(values.T, names=list(TRAITS))
    logits = [_logit(traits, *task) for task in TASKS.values()]
    p = expit(np.stack(logits, axis=1))
    missing = rng.random((n, len(MODALITIES))) < MISSING_SHARE
    # every user keeps at least two modalities of events
    missing[missing[:, :-1].sum(axis=1) > 3] = False
    users = np.arange(n)
    is_lying = rng.random(n) < LYING_SHARE
    modality = rng.integers(0, len(EVENT_RATES), n)
    lies = np.where(is_lying & ~missing[users, modality], modality, -1)
    donor = (users + rng.integers(1, max(n, 2), n)) % n
    label = rng.random(p.shape) < p
    return GroundTruth(traits, p, label, missing, lies, donor)


def _logit(traits: UserTraits, constant: float, terms: dict[str, float]) -> np.ndarray:
    """Return a constant plus weighted traits; a term such as "music*wealth" is a product."""
    logit = np.full_like(traits["activity"], constant)
    for term, weight in terms.items():
        logit += weight * prod(traits[trait] for trait in term.split("*"))
    return logit


def _facts(rng: Generator, truth: GroundTruth) -> pd.DataFrame:
    """Generate the facts: noisy views of traits, NaN for users whose `tabular` is missing."""
    frame = pd.DataFrame(index=_ids(len(truth.p)))
    for row in read_table("sample_facts"):
        weights = parse_weights(row["traits"])
        noise = sqrt(1 - sum(weight**2 for weight in weights.values()))
        signal = _logit(truth.traits, 0, weights)
        standard = signal + noise * rng.standard_normal(len(signal))
        value = float(row["mean"]) + float(row["spread"]) * standard
        frame[row["fact"]] = np.maximum(value, 0).round(1)
    frame.loc[truth.missing[:, -1]] = np.nan
    return frame


def _emit(
    rng: Generator, place: int, truth: GroundTruth, months: list, noise: np.ndarray
) -> pd.DataFrame:
    """Generate the events of one modality for all users."""
    modality = MODALITIES[place]
    n = len(truth.p)
    source = np.where(truth.lies == place, truth.donor, np.arange(n))
    has_events = ~truth.missing[:, place]
    traits = truth.traits[source]
    rate = EVENT_RATES[modality] * np.exp(0.25 * traits["activity"] + noise)
    user = np.repeat(np.arange(n), rng.poisson(rate * has_events))
    theme = _choose(rng, modality, traits, user)
    day = _days(rng, user, traits)
    parts = [(user, theme, day)]
    for number, name in enumerate(TASKS):
        if modality not in themes()[number].weight:
            continue
        more = 2.0 if name in FREQUENT_TASKS else 0.4
        for month, outcome in enumerate(months):
            true = np.flatnonzero(outcome[source, number] & has_events)
            user = np.repeat(true, 1 + rng.poisson(more, len(true)))
            theme = np.full(len(user), number)
            day = month * MONTH + rng.integers(0, MONTH, len(user))
            parts.append((user, theme, day))
    user, theme, day = np.concatenate(parts, axis=1)
    return _write(rng, modality, traits, user, theme, day)


def _choose(rng: Generator, modality: str, traits: UserTraits, user: np.ndarray) -> np.ndarray:
    """Draw a theme for each event: softmax of the user's traits over the modality's themes."""
    numbers = []
    odds = []
    for number, theme in enumerate(themes()):
        if modality in theme.weight and theme.name not in TASKS:
            numbers.append(number)
            preference = TRAIT_STRENGTH * _logit(traits, 0, theme.load)
            odds.append(np.exp(np.log(theme.weight[modality]) + preference))
    total = np.cumsum(odds, axis=0).T
    share = total / total[:, -1:]
    # user i's cumulative shares lie in (i, i + 1], so that one search serves all users
    share += np.arange(len(share))[:, None]
    position = np.searchsorted(share.ravel(), user + rng.random(len(user)))
    choice = position - user * len(numbers)
    return np.array(numbers)[choice.clip(0, len(numbers) - 1)]


def _days(rng: Generator, user: np.ndarray, traits: UserTraits) -> np.ndarray:
    """Draw the day of each event: frequency follows `trend`, weekends `social`; some are bursts."""
    n = len(user)
    slope = 0.9 * np.tanh(0.7 * traits["trend"])[user]
    r = rng.random(n)
    start = 1 - slope
    x = 2 * r / (start + np.sqrt(start**2 + 4 * slope * r))  # linear density
    day = np.minimum(DAYS * x, DAYS - 1).astype(int)
    is_moved = rng.random(n) < 0.4 * expit(1.5 * traits["social"][user])
    weekday = day % 7
    weekend = day - weekday + rng.integers(5, 7, n)
    weekend = np.minimum(weekend, DAYS - 1)
    day = np.where(is_moved & (weekday < 5), weekend, day)
    is_burst = rng.random(n) < 0.15
    same_user = user[1:] == user[:-1]
    burst = np.flatnonzero(is_burst[1:] & same_user) + 1
    day[burst] = day[burst - 1]
    return day


def _minutes(rng: Generator, user: np.ndarray, traits: UserTraits) -> np.ndarray:
    """Draw the minute of the day: the trait `night` makes it late, the trait `routine` early."""
    n = len(user)
    is_late = rng.random(n) < expit(1.1 * traits["night"][user] - 2.2)
    is_early = rng.random(n) < expit(0.7 * traits["routine"][user] - 1.2)
    late = rng.integers(23, 28, n) % 24
    early = rng.integers(6, 10, n)
    hour = np.select([is_late, is_early], [late, early], rng.integers(10, 23, n))
    return hour * 60 + rng.integers(0, 60, n)


def _write(
    rng: Generator,
    modality: str,
    traits: UserTraits,
    user: np.ndarray,
    theme: np.ndarray,
    day: np.ndarray,
) -> pd.DataFrame:
    """Return events with numbers and texts; half of these are the user's favorite of the theme."""
    n = len(user)
    texts_by_theme = [t.texts.get(modality, ()) for t in themes()]
    all_texts = [text for texts in texts_by_theme for text in texts]
    size = np.array([len(texts) for texts in texts_by_theme])
    first = (size.cumsum() - size)[theme]
    n_texts = size[theme]
    favorite = (user * 7919 + theme * 104729) % 997 % n_texts
    is_favorite = rng.random(n) < 0.5
    pick = np.where(is_favorite, favorite, rng.integers(0, n_texts))
    minute = day * 1440 + _minutes(rng, user, traits)
    frame = pd.DataFrame({"user": _ids(len(traits))[user]})
    frame["time"] = START + pd.to_timedelta(minute, "min")
    frame["modality"] = modality
    frame["text"] = np.array(all_texts)[first + pick]
    if modality == "bill":
        price = np.array([t.price for t in themes()])[theme]
        taste = 0.3 * traits["wealth"] - 0.1 * traits["thrift"]
        amount = price * np.exp(taste[user] + 0.4 * rng.standard_normal(n))
        frame["amount"] = amount.round(2)
        is_cut = rng.random(n) < expit(traits["thrift"][user] - 1.8)
        cut = is_cut * rng.choice([0.05, 0.1, 0.2, 0.3], n)
        frame["discount"] = (frame["amount"] * cut).round(2)
    if modality in ("mini", "app"):
        length = 1.2 + 0.3 * traits["activity"][user] + 0.7 * rng.standard_normal(n)
        frame["minutes"] = np.exp(length).round() + 1
    return frame
