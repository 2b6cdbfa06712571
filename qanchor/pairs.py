"""UserU, the training signal: what the records of a user say and what the user does next, as questions with graded answers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .answers import answers, facts, grades, style_of, summary, telling_topics, with_fact
from .measures import DAY, FEW, MIN_EVENTS, MIN_FORMER, MIN_SHARE, Records, Span, money_modality
from .reflect import reflect
from .schema import Users
from .topics import HELD_OUT, TOPICS, Topic

COLUMNS = ["user", "cutoff", "query", "answer", "topic", "kind", "grade"]
SUMMARY_QUERY = "What are the user's most likely actions in the next period?"  # the paper's fixed query
MIN_DAYS, MIN_HISTORY, N_CUTOFFS = 45, 0.4, 6
FACT_SHARE = 0.4  # share of the answers that carry one number from the tables
UNIT_SHARE = 0.8  # share of the queries that say "household" where these are households; the others say "user"
RARITY = (0.3, 5)  # how much a rare grade is preferred to a usual one, at least and at most
BOOST = {"stop": 4, "trend": 3, "spend_trend": 2, "discount": 3, "private": 3, "modality:coupon": 3}  # what is asked for most

__all__ = ["SUMMARY_QUERY", "default_cutoffs", "make_pairs", "reflect"]


def make_pairs(
    users: Users,
    *,
    topics: tuple[Topic, ...] = TOPICS,
    cutoffs=None,
    per_sample: int = 8,
    future_share: float = 0.6,
    seed: int = 0,
    held_out: bool = False,
) -> pd.DataFrame:
    """Turn many users' records into questions with graded answers: about the past, and about the 30 days that follow.

    One sample is a user at one of several sliding cut-offs (`default_cutoffs`) with at least 5 events before it. It gives
    `per_sample` pairs on different topics, `future_share` of them on the next `users.horizon_days`, and one summary of these
    days (topic "summary"). A grade compares a user with all others at the same cut-off; rare grades are drawn more often, so
    every topic has both ends. Nothing at or after `users.cutoff` is read; a profile pair reads nothing from its own cut-off on,
    and a cut-off too late for a whole future gives profile pairs only. `held_out` asks in the wordings kept for tests only.
    Columns `user, cutoff, query, answer, topic, kind, grade` (0 to 4,
    -1 for summaries); no rows when nobody has enough events. After the paper's UserU.
    Raises ValueError for a cut-off after the users' own, and when no cut-off fits into the history.

    Example:
        >>> pairs = make_pairs(load_users("data/sample"), per_sample=4)  # doctest: +SKIP
        >>> pairs[pairs.topic == "baby"].answer.iloc[0]  # doctest: +SKIP
        'Very unlikely to buy baby products: none at all in the next 30 days.'
    """
    cutoffs = default_cutoffs(users) if cutoffs is None else [pd.Timestamp(cutoff) for cutoff in cutoffs]
    if late := [cutoff for cutoff in cutoffs if cutoff > users.cutoff]:
        raise ValueError(f"cut-off {late[0]:%Y-%m-%d} is after the users' own, {users.cutoff:%Y-%m-%d}: choose earlier ones")
    records = Records(users, tuple(topics))
    future = round(per_sample * future_share)
    rows = []
    for cutoff in cutoffs:
        rows += _Moment(records, cutoff, "profile", seed).pairs(per_sample - future, held_out)
        if cutoff + pd.Timedelta(days=users.horizon_days) <= users.cutoff:
            moment = _Moment(records, cutoff, "future", seed)
            rows += moment.pairs(future, held_out) + ([] if held_out else moment.summaries())
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"cutoff": "datetime64[us]"})
    return frame.sort_values(["cutoff", "user", "kind", "topic"], kind="stable").reset_index(drop=True)


def default_cutoffs(users: Users, n: int = N_CUTOFFS) -> list[pd.Timestamp]:
    """Choose `n` days, evenly spaced, with at least 45 days (and 40 % of the history) before and a whole horizon after."""
    days = users.history()["time"].dt.floor("D")
    start = days.quantile(0.01, interpolation="lower") if len(days) else users.cutoff  # a few odd old events move nothing
    span = (users.cutoff - start).days
    first, last = max(MIN_DAYS, int(np.ceil(MIN_HISTORY * span))), span - users.horizon_days
    if first > last:
        raise ValueError(
            f"{span} days of history are too short: {first} and {users.horizon_days} after are needed; pass cutoffs=[...]"
        )
    return [start + pd.Timedelta(days=int(day)) for day in np.unique(np.linspace(first, last, n).round())]


class _Moment:
    """Stand at one cut-off and look back ("profile") or ahead ("future"): each user's value and grade on each topic."""

    def __init__(self, records: Records, cutoff: pd.Timestamp, kind: str, seed: int):
        self.records, self.cutoff, self.kind, self.days = records, cutoff, kind, records.users.horizon_days
        at, horizon, ever = cutoff.value // 1000, self.days * DAY, np.iinfo("int64").min
        money = money_modality(records.users.history(cutoff))
        past = Span(records, ever, at, money)
        if kind == "future":
            self.span = self.recent = Span(records, at, at + horizon, money)
            self.former = past
        else:
            self.span, self.recent = past, Span(records, at - horizon, at, money)
            self.former = Span(records, ever, at - horizon, money)
        self.crowd = np.flatnonzero(past.count(records.user[past.now]) >= MIN_EVENTS)
        # one draw for each (user, topic): what happens to one user or one topic never moves the draws of another
        rng = np.random.default_rng([seed, at // DAY, kind == "future"])
        self.draws = rng.random((records.n, len(records.topics) + 1, 6))[self.crowd]
        tables = [self._measure(topic) for topic in records.topics]
        self.value, self.spent, self.ago = (np.round([table[i][self.crowd] for table in tables], 6).T for i in range(3))
        self.grade = np.full(self.value.shape, -1)
        for column, topic in enumerate(records.topics):
            grade = grades(style_of(topic), self.value[:, column], self.days)
            if self._tells(grade):
                self.grade[:, column] = grade

    def _measure(self, topic: Topic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give a topic's value, the money spent on it, and the days since the last occasion, each over all users."""
        style, nothing = style_of(topic), np.full(self.records.n, np.nan)
        if style == "count":
            user, time, amount = self.span.within(self.records.streams[topic.name])
            return self.span.count(user), self.span.count(user, amount), self.span.since(user, time)
        if style == "stop":
            silent = self.span.silent
            return np.where(np.isnan(silent), self.days, silent) if self.kind == "future" else silent, nothing, nothing
        if style == "trend":
            measure = "spend" if topic.measure == "spend_trend" else "events"
            former = self.former.rate(measure)
            known = (former > 0) & (self.former.events >= MIN_FORMER)
            return np.divide(self.recent.rate(measure), former, out=nothing.copy(), where=known), nothing, nothing
        return getattr(self.span, topic.measure), nothing, nothing

    def _tells(self, grade: np.ndarray) -> bool:
        """Say whether a topic parts these users: one on which (nearly) all stand alike teaches nothing."""
        counts = np.bincount(grade[grade >= 0], minlength=5)
        if len(grade) < FEW:
            return bool(counts.sum() and counts[1:].sum())
        return bool(counts.sum() - counts.max() >= max(1, MIN_SHARE * len(grade)))

    def pairs(self, k: int, held_out: bool) -> list[tuple]:
        """Draw `k` topics for each user, the rare grades of a topic first, and write a query and an answer for each."""
        known = self.grade >= 0
        weight = np.zeros(self.grade.shape)
        for column, topic in enumerate(self.records.topics):
            counts = np.bincount(self.grade[known[:, column], column], minlength=5) / max(known[:, column].sum(), 1)
            rare = np.clip(0.2 / np.maximum(counts, 1e-9), *RARITY)[self.grade[:, column]]
            weight[:, column] = known[:, column] * rare * BOOST.get(topic.measure, 1) ** (1 if self.kind == "future" else 0.5)
        wait = np.full(weight.shape, np.inf)  # exponential waiting times: the k shortest are a weighted draw
        np.divide(-np.log1p(-self.draws[:, :-1, 0]), weight, out=wait, where=known)
        order = np.argsort(wait, axis=1, kind="stable")[:, :k]
        return [
            self._pair(row, column, held_out)
            for row, chosen in enumerate(order.tolist())
            for column in chosen
            if known[row, column]
        ]

    def _pair(self, row: int, column: int, held_out: bool) -> tuple:
        topic, draw, unit = self.records.topics[column], self.draws[row, column], self.records.users.unit
        wordings = getattr(topic, self.kind)
        wordings = wordings[-HELD_OUT:] if held_out else wordings[:-HELD_OUT]
        query = _pick(wordings, draw[1]).format(user=unit if draw[2] < UNIT_SHARE else "user")
        value = self.value[row, column]
        bodies = answers(
            topic, int(self.grade[row, column]), self.kind, unit=unit, horizon_days=self.days, none=bool(value == 0)
        )
        answer = _pick(bodies, draw[3])
        numbers = facts(topic, self.kind, value, self.spent[row, column], self.ago[row, column], self.days)
        if numbers and draw[4] < FACT_SHARE:
            answer = with_fact(answer, _pick(numbers, draw[5]))
        return self._row(row, query, answer, topic.name, int(self.grade[row, column]))

    def _row(self, row: int, query: str, answer: str, topic: str, grade: int) -> tuple:
        return self.records.users.ids[self.crowd[row]], self.cutoff, query, answer, topic, self.kind, grade

    def summaries(self) -> list[tuple]:
        """Say of each user how active the next days are, and which three or four topics tell most of them."""
        count = [column for column, topic in enumerate(self.records.topics) if style_of(topic) == "count"]
        value = self.value[:, count]
        lower = np.stack([np.searchsorted(np.sort(v), v) / max(len(v), 1) for v in value.T], 1) if count else value
        active = grades("level", self.span.events[self.crowd])
        active[self.span.events[self.crowd] == 0] = -1
        topics, rows = [self.records.topics[c] for c in count], []
        for row, draw in enumerate(self.draws[:, -1, 0]):
            telling = telling_topics(topics, value[row], lower[row], 3 + int(draw < 0.5))
            answer = summary(int(active[row]), [topic.thing for topic in telling], self.days)
            rows.append(self._row(row, SUMMARY_QUERY, answer, "summary", -1))
        return rows


def _pick(items, draw: float):
    return items[int(draw * len(items))]
