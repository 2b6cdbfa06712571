"""A slow reference implementation of every grade and number that the answers of pairs claim."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.answers import (
    CUTS,
    answers,
    distinctive_topics,
    facts,
    silent_days,
    style_of,
    summary,
    with_fact,
)
from qanchor.useru.behavior import MIN_EVENTS, MIN_FORMER, OFFERS, find_spend_sources
from qanchor.useru.topics import TOPICS, Topic, by_name, match

EVER = pd.Timestamp.min


def check_pairs_by_hand(
    users: Users, pairs: pd.DataFrame, topics: tuple[Topic, ...] = TOPICS
) -> pd.Series:
    """Return whether every grade and number that an answer claims is true, by plain pandas.

    Slow: meant for samples of a few hundred pairs.

    Args:
        users: The users given to `make_pairs`; grades compare them.
        pairs: Some rows of its result.
        topics: The topics given to `make_pairs`; summaries choose among them.

    Returns:
        True or False for each pair.

    Example:
        >>> check_pairs_by_hand(users, make_pairs(users).sample(200, random_state=0)).all()  # doctest: +SKIP
        True
    """
    plain = _Plain(users, topics)
    said = [
        _summaries(plain, pair) if pair.topic == "summary" else _sentences(plain, pair)
        for pair in pairs.itertuples()
    ]
    return pd.Series(
        [answer in may for answer, may in zip(pairs["answer"], said, strict=True)],
        index=pairs.index,
        dtype=bool,
    )


def _sentences(plain: _Plain, pair) -> set[str]:
    """Write all that may truly be said of this user on this topic."""
    topic, days, unit = by_name(pair.topic), pair.horizon_days, plain.users.unit
    table = plain.table(topic, pair.cutoff, pair.kind, days)
    value, spent, ago = map(float, table.loc[pair.user])
    grade = _grade(topic, table["value"], value, days)
    bodies = answers(topic, grade, pair.kind, unit=unit, horizon_days=days, none=bool(value == 0))
    return {
        with_fact(body, fact)
        for body in bodies
        for fact in facts(topic, pair.kind, value, spent, ago, days)
    } | set(bodies)


def _summaries(plain: _Plain, pair) -> set[str]:
    """Write the summaries, of three or of four topics, that are true of this user."""
    days = pair.horizon_days
    values = {
        t: plain.table(t, pair.cutoff, "future", days)["value"]
        for t in plain.topics
        if style_of(t) == "count"
    }
    mine = np.array([value[pair.user] for value in values.values()])
    lower = np.array([(value < value[pair.user]).mean() for value in values.values()])
    active = by_name("active")
    events = plain.table(active, pair.cutoff, "future", days)["value"]
    grade = _grade(active, events, float(events[pair.user]), days) if events[pair.user] else -1
    third = plain.third(pair.user, pair.cutoff, days)
    chosen = [distinctive_topics(list(values), mine, lower, k) for k in (3, 4)]
    return {summary(grade, [topic.thing for topic in topics], days, third) for topics in chosen}


def _grade(topic: Topic, values: pd.Series, value: float, horizon_days: int) -> int:
    style = style_of(topic)
    if style == "stop":
        return sum(bool(value >= cut) for cut in silent_days(horizon_days))
    if style == "trend":
        return sum(bool(value >= cut) for cut in CUTS["trend"])
    if value == 0:
        return 0
    others = [other for other in values if other > 0 or (style == "level" and other == 0)]
    lower = sum(bool(other < value) for other in others) / len(others)
    if style == "level":
        higher = sum(bool(other > value) for other in others) / len(others)
        return 2 + (lower >= 0.6) + (lower >= 0.8) - (higher >= 0.6) - (higher >= 0.8)
    return sum(lower >= cut for cut in CUTS[style]) + int(style == "count")


class _Plain:
    """Compute one measure at a time from the events, in plain pandas."""

    def __init__(self, users: Users, topics: tuple[Topic, ...]):
        past = users.history()
        self.users, self.topics = users, topics
        self.events = past.assign(
            user=past["user"].astype(str), modality=past["modality"].astype(str)
        )
        self.texts = past["text"].cat.categories
        self.speaks = match(self.texts)
        self.tables = {}

    def between(self, low, high) -> pd.DataFrame:
        if (low, high) not in self.tables:
            self.tables[low, high] = self.events[
                (self.events["time"] >= low) & (self.events["time"] < high)
            ]
        return self.tables[low, high]

    def third(self, user: str, cutoff: pd.Timestamp, days: int) -> int:
        """Find the third of the next days that holds more than half of at least three visits; -1 if none does."""
        step = pd.Timedelta(days=days) / 3
        now = self.visits(cutoff, cutoff + 3 * step)
        times = now.loc[now["user"] == user, "time"].drop_duplicates()
        parts = [
            ((times >= cutoff + k * step) & (times < cutoff + (k + 1) * step)).sum()
            for k in range(3)
        ]
        most = [k for k in range(3) if len(times) >= 3 and 2 * parts[k] > len(times)]
        return most[0] if most else -1

    def table(self, topic: Topic, cutoff: pd.Timestamp, kind: str, days: int) -> pd.DataFrame:
        """Give index user, columns value, spent, ago, for the users with enough events before the cut-off."""
        key, horizon = (topic.name, cutoff, kind, days), pd.Timedelta(days=days)
        if key not in self.tables:
            sizes = self.between(EVER, cutoff)["user"].value_counts()
            span = (EVER, cutoff) if kind == "profile" else (cutoff, cutoff + horizon)
            table = (
                self.counted(topic, *span, cutoff)
                if style_of(topic) == "count"
                else self.behaviour(topic, cutoff, kind, horizon, *span)
            )
            table = table.reindex(sorted(sizes[sizes >= MIN_EVENTS].index))
            if style_of(topic) == "count" or topic.measure in ("events", "spend", "variety"):
                table["value"] = table["value"].fillna(0)
            if topic.measure == "stop" and kind == "future":
                table["value"] = table["value"].fillna(days)
            self.tables[key] = table.round(6)
        return self.tables[key]

    def counted(self, topic: Topic, low, high, cutoff) -> pd.DataFrame:
        now, speaks = self.between(low, high), self.texts[self.speaks[:, TOPICS.index(topic)]]
        kind, _, name = topic.measure.partition(":")
        by_modality = kind == "modality" and (self.between(EVER, cutoff)["modality"] == name).any()
        chosen = now[now["modality"] == name] if by_modality else now[now["text"].isin(speaks)]
        by = chosen.groupby("user")
        spent = by["amount"].sum() if "amount" in chosen else 0.0
        last = (high - by["time"].max()) / pd.Timedelta(days=1)
        return pd.DataFrame({"value": by["time"].nunique(), "spent": spent, "ago": last})

    def behaviour(self, topic: Topic, cutoff, kind: str, horizon, low, high) -> pd.DataFrame:
        visits = self.visits(low, high)
        moments = visits.drop_duplicates(["user", "time"])
        timed = moments[moments["time"] != moments["time"].dt.normalize()]
        value = {
            "events": lambda: moments.groupby("user").size(),
            "variety": lambda: visits.groupby("user")["text"].nunique(),
            "weekend": lambda: (
                moments["time"]
                .dt.day_name()
                .isin(["Saturday", "Sunday"])
                .groupby(moments["user"])
                .mean()
            ),
            "evening": lambda: (
                timed["time"].dt.hour.isin([17, 18, 19, 20, 21]).groupby(timed["user"]).mean()
            ),
            "night": lambda: (
                timed["time"].dt.hour.isin([22, 23, 0, 1, 2, 3, 4]).groupby(timed["user"]).mean()
            ),
            "stop": lambda: (high - moments.groupby("user")["time"].max()) / pd.Timedelta(days=1),
            "trend": lambda: self.trend(topic.measure, cutoff, kind, horizon),
            "spend_trend": lambda: self.trend(topic.measure, cutoff, kind, horizon),
        }.get(topic.measure, lambda: self.spent(topic.measure, low, high, cutoff))()
        return pd.DataFrame({"value": value, "spent": np.nan, "ago": np.nan})

    def visits(self, low, high) -> pd.DataFrame:
        now = self.between(low, high)
        return now[~now["modality"].isin(OFFERS)]

    def spent(self, measure: str, low, high, cutoff) -> pd.Series:
        now = self.between(low, high)
        if "amount" not in now:
            return pd.Series(dtype=float)
        # not `self.events`: with equal sums and sizes, the order of the modalities decides
        sources = find_spend_sources(self.users.history(cutoff))
        if measure == "discount":
            things = (
                now[now["modality"] == sources.single].dropna(subset="discount")
                if "discount" in now
                else now[:0]
            )
            return (
                (things["discount"] > 0).groupby(things["user"]).mean()
                if len(things)
                else pd.Series(dtype=float)
            )
        paid = now[(now["modality"] == sources.whole) & now["amount"].notna()]
        if measure in ("spend", "basket"):
            return paid.groupby("user")["amount"].agg("sum" if measure == "spend" else "mean")
        told = (
            paid[paid[measure].notna()] if measure in paid else paid[:0].assign(**{measure: np.nan})
        )
        own = (told["amount"] * told["private"]).groupby(told["user"]).sum()
        return (own / told["amount"].groupby(told["user"]).sum()).replace(np.inf, np.nan)

    def trend(self, measure: str, cutoff, kind: str, horizon) -> pd.Series:
        middle = cutoff if kind == "future" else cutoff - horizon
        seen = self.visits(EVER, middle).drop_duplicates(["user", "time"]).groupby("user").size()
        former, recent = (
            seen,
            self.visits(middle, middle + horizon)
            .drop_duplicates(["user", "time"])
            .groupby("user")
            .size(),
        )
        if measure == "spend_trend":
            former, recent = (
                self.spent("spend", *span, cutoff)
                for span in ((EVER, middle), (middle, middle + horizon))
            )
        days = max(
            (middle - self.visits(EVER, self.users.cutoff)["time"].min()) / pd.Timedelta(days=1), 1
        )
        known = [
            user for user in former.index if former[user] > 0 and seen.get(user, 0) >= MIN_FORMER
        ]
        return (recent.reindex(known).fillna(0) / horizon.days) / (former.reindex(known) / days)
