"""UserU, the training signal: what the records of a user say and what the user does next, as
questions with graded answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.answers import (
    answers,
    busiest_third,
    distinctive_topics,
    facts,
    grade_begins,
    grades,
    look_ahead,
    style_of,
    summary,
    with_fact,
)
from qanchor.useru.behavior import (
    DAY,
    MIN_EVENTS,
    MIN_FORMER,
    MIN_SHARE,
    MIN_USERS_COMPARED,
    BehaviorWindow,
    EventArrays,
    SpendSources,
    find_spend_sources,
)
from qanchor.useru.schedule import (
    PairConfig,
    QueryWindow,
    default_cutoffs,
    default_horizons,
    query_windows,
)
from qanchor.useru.topics import HELD_OUT, TOPICS, Topic

COLUMNS = ["user", "cutoff", "query", "answer", "topic", "kind", "horizon_days", "grade"]
SUMMARY_QUERY = (
    "What are the user's most likely actions in the next period?"  # the paper's fixed query
)
SUMMARY_WORDINGS = (  # asked half the time instead; the last `HELD_OUT` are for tests
    "What will this {user} do in the next month?",
    "What is next for this {user}?",
    "Sum up what to expect of this {user} next month.",
    "What does the coming month look like for this {user}?",
    "Tell me what this {user} is going to do soon.",
)
FACT_SHARE = 0.4  # share of the answers that carry one number from the tables
# share of the queries that say "household" where these are households; the others say "user"
UNIT_SHARE = 0.8
RARITY = (0.3, 5)  # how much a rare grade is preferred to a usual one, at least and at most
BOOST = {
    "stop": 4,
    "trend": 3,
    "spend_trend": 2,
    "discount": 3,
    "private": 3,
    "modality:coupon": 3,
}  # what is asked for most


def make_pairs(
    users: Users,
    *,
    topics: tuple[Topic, ...] = TOPICS,
    cutoffs=None,
    per_sample: int = 8,
    future_share: float = 0.6,
    seed: int = 0,
    held_out: bool = False,
    horizons: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Turn many users' records into questions with graded answers: about the past, and about what
    follows.

    One sample is a user at one of several sliding cut-offs (`default_cutoffs`) with at least 5
    events before it. It gives
    `per_sample` pairs, `future_share` of them on the days that follow, and one summary of the next
    `users.horizon_days` (topic
    "summary"). These days are the users' horizon, and for a fifth of the future pairs each of the
    other `horizons` (default: a
    week and three months where the users' own is a month); within one, no topic comes twice. A
    grade compares a user with all
    others at the same cut-off; rare grades are drawn more often, so every topic has both ends.
    Nothing at or after
    `users.cutoff` is read; a profile pair reads nothing from its own cut-off on, and what follows a
    cut-off is asked only for
    the horizons that are over by then. `held_out` asks in the wordings kept for tests only; for
    topics kept
    for tests, give `topics=TAUGHT` (of `qanchor.topics`).
    Columns `user, cutoff, query, answer, topic, kind, horizon_days` (looked ahead; of a profile,
    what counts as lately) and
    `grade` (0 to 4, -1 for summaries); no rows when nobody has enough events. After the paper's
    UserU.
    Raises ValueError for a cut-off after the users' own, and when no cut-off fits into the history.

    Example:
        >>> pairs = make_pairs(load_users("data/sample"), per_sample=4)  # doctest: +SKIP
        >>> pairs[pairs.topic == "baby"].answer.iloc[0]  # doctest: +SKIP
        'Very unlikely to buy baby products: none at all in the next 30 days.'
    """
    ahead = default_horizons(users.horizon_days) if horizons is None else tuple(horizons)
    wish = PairConfig(
        users.unit,
        users.horizon_days,
        per_sample,
        future_share,
        seed,
        held_out,
        ahead,
        tuple(topics),
    )
    records, rows = EventArrays(users, wish.topics), []
    for moment in query_windows(
        default_cutoffs(users) if cutoffs is None else cutoffs, users.cutoff, wish
    ):
        values = measure_users(records, moment, find_spend_sources(users.history(moment.cutoff)))
        rows += build_pairs(
            values, PopulationStats.of(values.value, values.active, moment, wish), moment, wish
        )
    return pair_frame(rows)


def pair_frame(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS).astype(
        {"cutoff": "datetime64[us]", "grade": "int64"}
    )
    return frame.sort_values(["cutoff", "user", "kind", "topic"], kind="stable").reset_index(
        drop=True
    )


def user_hash(ids: Iterable[str], salt: str = "") -> np.ndarray:
    """Give each id a number below 2**60, the same everywhere and for ever: the first 15 digits of
    the md5 of salt and id.
    """
    return np.array(
        [int(hashlib.md5(f"{salt}{i}".encode()).hexdigest()[:15], 16) for i in ids], dtype=np.uint64
    )


def _draws(ids: np.ndarray, salt: str, columns: int) -> np.ndarray:
    """Draw from 0 up to 1 (user, column), by the user's id and the salt, whoever else is there
    (SplitMix64).
    """
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix(user_hash(ids, salt))[:, None] + steps
    return (_mix(mixed) >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class UserMeasurements:
    """Hold what each user with enough events before a cut-off did (user), on each topic (user,
    topic).

    value  how much of it;  spent  money on it;  ago  days since the last occasion;  active  visits
           in each third of the time
    (user, 3).
    """

    ids: np.ndarray
    value: np.ndarray
    spent: np.ndarray
    ago: np.ndarray
    active: np.ndarray


def measure_users(
    records: EventArrays, moment: QueryWindow, sources: SpendSources
) -> UserMeasurements:
    """Look back or ahead from a cut-off; sources: `find_spend_sources` of all users' history before
    it.
    """
    at, horizon, ever = moment.cutoff.value // 1000, moment.days * DAY, np.iinfo("int64").min
    past = BehaviorWindow(records, ever, at, sources)
    if moment.kind == "future":
        span = recent = BehaviorWindow(records, at, at + horizon, sources)
        former = past
    else:
        span, recent, former = (
            past,
            BehaviorWindow(records, at - horizon, at, sources),
            BehaviorWindow(records, ever, at - horizon, sources),
        )
    crowd = np.flatnonzero(past.count(records.user[past.now]) >= MIN_EVENTS)
    tables = [_measure(topic, moment, span, recent, former) for topic in records.topics]
    thirds = (
        np.stack([span.thirds(part) for part in range(3)], 1)
        if moment.kind == "future"
        else span.events[:, None]
    )
    ids = np.array(records.users.ids, dtype=object)[crowd]
    columns = (
        np.array([table[i][crowd] for table in tables]).reshape(len(tables), len(crowd))
        for i in range(3)
    )
    return UserMeasurements(ids, *(np.round(table, 6).T for table in columns), thirds[crowd])


def _measure(
    topic: Topic,
    moment: QueryWindow,
    span: BehaviorWindow,
    recent: BehaviorWindow,
    former: BehaviorWindow,
) -> tuple[np.ndarray, ...]:
    """Give a topic's value, the money spent on it, and the days since the last occasion, each over
    all users.
    """
    style, nothing = style_of(topic), np.full(span.records.n, np.nan)
    if style == "count":
        user, time, amount = span.occasions(topic)
        return span.count(user), span.count(user, amount), span.since(user, time)
    if style == "stop":
        silent = span.silent
        return (
            np.where(np.isnan(silent), moment.days, silent) if moment.kind == "future" else silent,
            nothing,
            nothing,
        )
    if style == "trend":
        of = "spend" if topic.measure == "spend_trend" else "events"
        rate = former.rate(of)
        known = (rate > 0) & (former.events >= MIN_FORMER)
        return np.divide(recent.rate(of), rate, out=nothing.copy(), where=known), nothing, nothing
    return getattr(span, topic.measure), nothing, nothing


@dataclass(frozen=True)
class PopulationStats:
    """Hold how all users stand at one moment, in little, so that any of them can be compared with
    the rest (plain lists).

    begins  the values at which the grades 1 to 4 of each topic begin;  counts  how many users have
            each grade;  active  where
    the grades of all visits begin;  less  for each topic that counts, the values that occur and the
    share of users with less.
    """

    users: int
    begins: list[list[float]]
    counts: list[list[int]]
    active: list[float]
    less: list[list[list[float]]]

    @classmethod
    def of(
        cls, value: np.ndarray, active: np.ndarray, moment: QueryWindow, wish: PairConfig
    ) -> PopulationStats:
        """Compare all users: value (user, topic), active (user, third)."""
        begins, grade_counts, less = [], [], []
        for column, topic in zip(value.T, wish.topics, strict=True):
            style = style_of(topic)
            values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
            begins.append(grade_begins(style, values, counts, moment.days))
            grade = grades(style, values, begins=begins[-1])
            grade_counts.append(np.bincount(grade, counts, minlength=5).astype(int).tolist())
            if style == "count":
                less.append(
                    [values.tolist(), ((np.cumsum(counts) - counts) / max(len(column), 1)).tolist()]
                )
        everything = grade_begins("level", *np.unique(active.sum(1), return_counts=True))
        return cls(
            len(value),
            [begin.tolist() for begin in begins],
            grade_counts,
            everything.tolist(),
            less,
        )

    def tells(self, column: int) -> bool:
        """Say whether a topic parts these users: one on which (nearly) all stand alike teaches
        nothing.
        """
        counts = np.array(self.counts[column])
        if self.users < MIN_USERS_COMPARED:
            return bool(counts[1:].sum())
        return bool(counts.sum() - counts.max() >= max(1, MIN_SHARE * self.users))


def build_pairs(
    values: UserMeasurements, crowd: PopulationStats, moment: QueryWindow, wish: PairConfig
) -> list[tuple]:
    """Write the pairs of some users at one moment, each compared with the whole crowd."""
    asked = _UserPairs(values, crowd, moment, wish)
    whole = moment.kind == "future" and moment.days == wish.horizon_days
    return asked.pairs() + (asked.summaries() if whole else [])


class _UserPairs:
    """Stand at one moment: each user's grade on each topic, and the draws that choose topics and
    words.
    """

    def __init__(
        self,
        values: UserMeasurements,
        crowd: PopulationStats,
        moment: QueryWindow,
        wish: PairConfig,
    ):
        self.values, self.crowd, self.moment, self.kind, self.wish = (
            values,
            crowd,
            moment,
            moment.kind,
            wish,
        )
        self.value, topics = values.value, len(wish.topics)
        # one draw for each (user, topic): what happens to one user or one topic never moves the
        # draws of another
        salt = f"{wish.seed} {moment.cutoff.value} {moment.kind} {moment.days} "
        draws = _draws(values.ids, salt, (topics + 1) * 6)
        self.draws = draws.reshape(len(draws), topics + 1, 6)
        self.grade = np.full(self.value.shape, -1)
        for column, topic in enumerate(wish.topics):
            early = (
                style_of(topic) == "stop" and moment.days < wish.horizon_days
            )  # a quiet week is no farewell
            if crowd.tells(column) and not early:
                self.grade[:, column] = grades(
                    style_of(topic), self.value[:, column], begins=np.array(crowd.begins[column])
                )

    def pairs(self) -> list[tuple]:
        """Draw some topics for each user, the rare grades of a topic first, and write a query and
        an answer for each.
        """
        known = self.grade >= 0
        weight = np.zeros(self.grade.shape)
        for column, topic in enumerate(self.wish.topics):
            counts = np.array(self.crowd.counts[column])
            rare = np.clip(0.2 / np.maximum(counts / max(counts.sum(), 1), 1e-9), *RARITY)[
                self.grade[:, column]
            ]
            weight[:, column] = (
                known[:, column]
                * rare
                * BOOST.get(topic.measure, 1) ** (1 if self.kind == "future" else 0.5)
            )
        wait = np.full(
            weight.shape, np.inf
        )  # exponential waiting times: the k shortest are a weighted draw
        np.divide(-np.log1p(-self.draws[:, :-1, 0]), weight, out=wait, where=known)
        order = np.argsort(wait, axis=1, kind="stable")[:, : self.moment.pairs]
        return [
            self._pair(row, column)
            for row, chosen in enumerate(order.tolist())
            for column in chosen
            if known[row, column]
        ]

    def _pair(self, row: int, column: int) -> tuple:
        topic, draw, unit, days = (
            self.wish.topics[column],
            self.draws[row, column],
            self.wish.unit,
            self.moment.days,
        )
        wordings = getattr(topic, self.kind)
        wordings = wordings[-HELD_OUT:] if self.wish.held_out else wordings[:-HELD_OUT]
        query = _pick(wordings, draw[1]).format(user=unit if draw[2] < UNIT_SHARE else "user")
        query = look_ahead(query, days) if self.kind == "future" else query
        value, grade = self.value[row, column], int(self.grade[row, column])
        answer = _pick(
            answers(topic, grade, self.kind, unit=unit, horizon_days=days, none=bool(value == 0)),
            draw[3],
        )
        numbers = facts(
            topic,
            self.kind,
            value,
            self.values.spent[row, column],
            self.values.ago[row, column],
            days,
        )
        if numbers and draw[4] < FACT_SHARE:
            answer = with_fact(answer, _pick(numbers, draw[5]))
        return self._row(row, query, answer, topic.name, grade)

    def _row(self, row: int, query: str, answer: str, topic: str, grade: int) -> tuple:
        return (
            self.values.ids[row],
            self.moment.cutoff,
            query,
            answer,
            topic,
            self.kind,
            self.moment.days,
            grade,
        )

    def summaries(self) -> list[tuple]:
        """Say of each user how active the next days are, and which three or four topics tell most
        of them.
        """
        count = [
            column for column, topic in enumerate(self.wish.topics) if style_of(topic) == "count"
        ]
        value, lower = self.value[:, count], np.zeros((len(self.value), len(count)))
        for place, (values, less) in enumerate(self.crowd.less):
            lower[:, place] = np.array(less)[np.searchsorted(values, value[:, place])]
        visits, days = self.values.active.sum(1), self.moment.days
        active = grades("level", visits, begins=np.array(self.crowd.active))
        active[visits == 0] = -1
        topics, rows = [self.wish.topics[c] for c in count], []
        for row, draw in enumerate(self.draws[:, -1]):
            telling = distinctive_topics(topics, value[row], lower[row], 3 + int(draw[0] < 0.5))
            things, third = (
                [topic.thing for topic in telling],
                busiest_third(self.values.active[row]),
            )
            answer = summary(int(active[row]), things, days, third)
            rows.append(
                self._row(row, look_ahead(self._summary_query(draw), days), answer, "summary", -1)
            )
        return rows

    def _summary_query(self, draw: np.ndarray) -> str:
        if draw[1] < 0.5 and not self.wish.held_out:
            return SUMMARY_QUERY
        wordings = (
            SUMMARY_WORDINGS[-HELD_OUT:] if self.wish.held_out else SUMMARY_WORDINGS[:-HELD_OUT]
        )
        return _pick(wordings, draw[2]).format(
            user=self.wish.unit if draw[3] < UNIT_SHARE else "user"
        )


def _pick(items, draw: float):
    return items[int(draw * len(items))]
