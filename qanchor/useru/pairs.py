"""User-understanding pairs (UserU, paper 3.1): questions with graded answers from the events."""

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
SUMMARY_WORDINGS = (  # used half the time instead; the last `HELD_OUT` are for tests
    "What will this {user} do in the next month?",
    "What is next for this {user}?",
    "Sum up what to expect of this {user} next month.",
    "What does the coming month look like for this {user}?",
    "Tell me what this {user} is going to do soon.",
)
FACT_SHARE = 0.4  # share of the answers that include a number
UNIT_SHARE = 0.8  # share of the queries that use the unit word; the others say "user"
MIN_RARITY, MAX_RARITY = 0.3, 5  # bounds of the weight of a grade by its rarity
MEASURE_WEIGHT = {  # measures that are asked about more often than others
    "stop": 4,
    "trend": 3,
    "spend_trend": 2,
    "discount": 3,
    "private": 3,
    "modality:coupon": 3,
}


def make_pairs(
    users: Users,
    *,
    topics: tuple[Topic, ...] = TOPICS,
    cutoffs=None,
    per_sample: int = 8,
    future_share: float = 0.6,
    seed: int = 0,
    horizons: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Make questions with graded answers from users' events, about the past and what follows.

    One sample is a user at one cut-off with at least 5 events before it. It gives `per_sample`
    pairs and one summary of the next `users.horizon_days` (topic "summary"). A grade compares a
    user with all others at the same cut-off. Rare grades are drawn more often, so every topic has
    both ends; in one horizon no topic is repeated. Nothing at or after `users.cutoff` is read, and
    a profile pair reads nothing from its own cut-off on. After UserU (paper 3.1).

    Args:
        users: The users.
        topics: Topics to ask about (default: all 72).
        cutoffs: Cut-offs to ask at (default: `default_cutoffs(users)`).
        per_sample: Pairs per sample (default 8).
        future_share: Share of them about the days that follow, 0 to 1 (default 0.6).
        seed: Seed of the draws (default 0).
        horizons: Horizons of future pairs in days. Each other than the users' own takes a fifth of
            them (default: about a quarter, the whole and three times `users.horizon_days`).

    Returns:
        Columns `user, cutoff, query, answer, topic, kind` ("profile" or "future"), `horizon_days`
        (of a profile, what counts as recent) and `grade` (0 to 4, -1 for summaries). Empty if no
        user has enough events.

    Raises:
        ValueError: A cut-off is after the users' own, or none fits into the history.

    Example:
        >>> pairs = make_pairs(load_users("data/sample"), per_sample=4)  # doctest: +SKIP
        >>> pairs[pairs.topic == "baby"].answer.iloc[0]  # doctest: +SKIP
        'Very unlikely to buy baby products: none at all in the next 30 days.'
    """
    horizons = default_horizons(users.horizon_days) if horizons is None else tuple(horizons)
    config = PairConfig(
        unit=users.unit,
        horizon_days=users.horizon_days,
        per_sample=per_sample,
        future_share=future_share,
        seed=seed,
        horizons=horizons,
        topics=tuple(topics),
    )
    events = EventArrays(users, config.topics)
    rows = []
    cutoffs = default_cutoffs(users) if cutoffs is None else cutoffs
    for window in query_windows(cutoffs, users.cutoff, config):
        sources = find_spend_sources(users.history(window.cutoff))
        values = measure_users(events, window, sources)
        stats = PopulationStats.of(values.value, values.active, window, config)
        rows += build_pairs(values, stats, window, config)
    return pair_frame(rows)


def pair_frame(rows: list[tuple]) -> pd.DataFrame:
    """Return pairs as a frame in a fixed order.

    Args:
        rows: Pairs, values in the order of `COLUMNS`.
    """
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame = frame.astype({"cutoff": "datetime64[us]", "grade": "int64"})
    order = ["cutoff", "user", "kind", "topic"]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def user_hash(ids: Iterable[str], salt: str = "") -> np.ndarray:
    """Return a number below 2**60 for each id, the same on every machine and version.

    Args:
        ids: Ids of users.
        salt: Another salt gives other numbers (default "").

    Returns:
        The first 15 hex digits of the MD5 of salt and id, as uint64.

    Example:
        >>> user_hash(["a"]).tolist()
        [57446577476672362]
    """
    digests = [hashlib.md5(f"{salt}{user}".encode()).hexdigest() for user in ids]
    return np.array([int(digest[:15], 16) for digest in digests], dtype=np.uint64)


def _draws(ids: np.ndarray, salt: str, columns: int) -> np.ndarray:
    """Draw uniform numbers (user, column) from id and salt alone, by SplitMix64."""
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix(user_hash(ids, salt))[:, None] + steps
    return (_mix(mixed) >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class UserMeasurements:
    """What each user with enough events before a cut-off did, by topic.

    Args:
        ids: Ids of the users.
        value: Value of the topic's measure, (user, topic), NaN for unknown.
        spent: Money spent on the topic, (user, topic).
        ago: Days since the last occasion, (user, topic).
        active: Visits in each third of the horizon, (user, 3); of a profile all visits, (user, 1).
    """

    ids: np.ndarray
    value: np.ndarray
    spent: np.ndarray
    ago: np.ndarray
    active: np.ndarray


def measure_users(
    records: EventArrays, window: QueryWindow, sources: SpendSources
) -> UserMeasurements:
    """Measure all users before or after a cut-off.

    Args:
        records: The events.
        window: The cut-off, and whether the past or the future is measured.
        sources: `find_spend_sources` of all users' history before the cut-off.

    Returns:
        The measurements of users with at least 5 events before the cut-off.
    """
    cutoff = window.cutoff.value // 1000
    horizon = window.days * DAY
    beginning = np.iinfo("int64").min
    past = BehaviorWindow(records, beginning, cutoff, sources)
    if window.kind == "future":
        span = BehaviorWindow(records, cutoff, cutoff + horizon, sources)
        recent = span
        former = past
        active = np.stack([span.thirds(part) for part in range(3)], 1)
    else:
        span = past
        recent = BehaviorWindow(records, cutoff - horizon, cutoff, sources)
        former = BehaviorWindow(records, beginning, cutoff - horizon, sources)
        active = span.events[:, None]
    n_events = past.count(records.user[past.now])
    rows = np.flatnonzero(n_events >= MIN_EVENTS)
    by_topic = [_measure(topic, window, span, recent, former) for topic in records.topics]
    tables = []
    for column in range(3):  # value, spent, ago
        table = np.array([measures[column][rows] for measures in by_topic])
        table = table.reshape(len(by_topic), len(rows))  # also without topics
        tables.append(np.round(table, 6).T)
    ids = np.array(records.users.ids, dtype=object)[rows]
    return UserMeasurements(ids, *tables, active[rows])


def _measure(
    topic: Topic,
    window: QueryWindow,
    span: BehaviorWindow,
    recent: BehaviorWindow,
    former: BehaviorWindow,
) -> tuple[np.ndarray, ...]:
    """Return value, money spent and days since the last occasion of a topic, for all users."""
    style = style_of(topic)
    unknown = np.full(span.records.n, np.nan)
    if style == "count":
        user, time, amount = span.occasions(topic)
        return span.count(user), span.count(user, amount), span.since(user, time)
    if style == "stop":
        silent = span.silent
        if window.kind == "future":
            silent = np.where(np.isnan(silent), window.days, silent)
        return silent, unknown, unknown
    if style == "trend":
        measure = "spend" if topic.measure == "spend_trend" else "events"
        rate = former.rate(measure)
        known = (rate > 0) & (former.events >= MIN_FORMER)
        trend = np.divide(recent.rate(measure), rate, out=unknown.copy(), where=known)
        return trend, unknown, unknown
    return getattr(span, topic.measure), unknown, unknown


@dataclass(frozen=True)
class PopulationStats:
    """Statistics of all users in one query window, to compare any user with the rest.

    Plain lists, so that they can be written as JSON.

    Args:
        users: Number of users.
        begins: Values at which the grades 1 to 4 begin, by topic.
        counts: Number of users with each grade, by topic.
        active: Values at which the grades of all visits begin.
        less: For each topic of the style "count", the values that occur and the share of users with
            less.
    """

    users: int
    begins: list[list[float]]
    counts: list[list[int]]
    active: list[float]
    less: list[list[list[float]]]

    @classmethod
    def of(
        cls, value: np.ndarray, active: np.ndarray, window: QueryWindow, config: PairConfig
    ) -> PopulationStats:
        """Compute the statistics of all users.

        Args:
            value: Values of all users, (user, topic).
            active: Visits of all users, (user, third).
            window: The query window.
            config: What is asked.
        """
        begins = []
        grade_counts = []
        less = []
        for column, topic in zip(value.T, config.topics, strict=True):
            style = style_of(topic)
            values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
            begin = grade_begins(style, values, counts, window.days)
            grade = grades(style, values, begins=begin)
            begins.append(begin.tolist())
            grade_counts.append(np.bincount(grade, counts, minlength=5).astype(int).tolist())
            if style == "count":
                share = (np.cumsum(counts) - counts) / max(len(column), 1)
                less.append([values.tolist(), share.tolist()])
        visits, counts = np.unique(active.sum(1), return_counts=True)
        active_begins = grade_begins("level", visits, counts)
        return cls(len(value), begins, grade_counts, active_begins.tolist(), less)

    def tells(self, column: int) -> bool:
        """Return whether users differ on a topic; otherwise a pair about it teaches nothing.

        Args:
            column: Number of the topic.
        """
        counts = np.array(self.counts[column])
        if self.users < MIN_USERS_COMPARED:
            return bool(counts[1:].sum())
        n_different = counts.sum() - counts.max()
        return bool(n_different >= max(1, MIN_SHARE * self.users))


def build_pairs(
    values: UserMeasurements, stats: PopulationStats, window: QueryWindow, config: PairConfig
) -> list[tuple]:
    """Return the pairs of some users in one query window.

    Args:
        values: Measurements of these users.
        stats: Statistics of all users.
        window: The query window.
        config: What is asked.

    Returns:
        Pairs, values in the order of `COLUMNS`.
    """
    builder = _PairBuilder(values, stats, window, config)
    pairs = builder.pairs()
    if window.kind == "future" and window.days == config.horizon_days:
        pairs += builder.summaries()
    return pairs


class _PairBuilder:
    """Grades of each user on each topic in one window, and the draws of topics and wordings."""

    def __init__(
        self,
        values: UserMeasurements,
        stats: PopulationStats,
        window: QueryWindow,
        config: PairConfig,
    ):
        self.values = values
        self.stats = stats
        self.window = window
        self.config = config
        n_topics = len(config.topics)
        # draws of their own for each (user, topic): no user or topic changes those of another
        salt = f"{config.seed} {window.cutoff.value} {window.kind} {window.days} "
        draws = _draws(values.ids, salt, (n_topics + 1) * 6)
        self.draws = draws.reshape(len(draws), n_topics + 1, 6)
        self.grade = np.full(values.value.shape, -1)
        for column, topic in enumerate(config.topics):
            style = style_of(topic)
            # a silent week does not mean that a user has left
            too_short = style == "stop" and window.days < config.horizon_days
            if stats.tells(column) and not too_short:
                begins = np.array(stats.begins[column])
                self.grade[:, column] = grades(style, values.value[:, column], begins=begins)

    def pairs(self) -> list[tuple]:
        """Draw topics for each user, preferring rare grades, and write a pair for each."""
        known = self.grade >= 0
        weight = self._topic_weights(known)
        # exponential waiting times: the k shortest are a weighted draw without replacement
        wait = np.full(weight.shape, np.inf)
        np.divide(-np.log1p(-self.draws[:, :-1, 0]), weight, out=wait, where=known)
        order = np.argsort(wait, axis=1, kind="stable")[:, : self.window.pairs]
        pairs = []
        for row, columns in enumerate(order.tolist()):
            pairs += [self._pair(row, column) for column in columns if known[row, column]]
        return pairs

    def _topic_weights(self, known: np.ndarray) -> np.ndarray:
        power = 1 if self.window.kind == "future" else 0.5
        weight = np.zeros(self.grade.shape)
        for column, topic in enumerate(self.config.topics):
            counts = np.array(self.stats.counts[column])
            share = np.maximum(counts / max(counts.sum(), 1), 1e-9)
            rarity = np.clip(0.2 / share, MIN_RARITY, MAX_RARITY)[self.grade[:, column]]
            importance = MEASURE_WEIGHT.get(topic.measure, 1) ** power
            weight[:, column] = known[:, column] * rarity * importance
        return weight

    def _pair(self, row: int, column: int) -> tuple:
        topic = self.config.topics[column]
        draw = self.draws[row, column]
        kind = self.window.kind
        days = self.window.days
        wording = _pick(getattr(topic, kind)[:-HELD_OUT], draw[1])
        query = wording.format(user=self._unit(draw[2]))
        if kind == "future":
            query = look_ahead(query, days)
        value = self.values.value[row, column]
        grade = int(self.grade[row, column])
        options = {"unit": self.config.unit, "horizon_days": days, "none": bool(value == 0)}
        answer = _pick(answers(topic, grade, kind, **options), draw[3])
        spent = self.values.spent[row, column]
        ago = self.values.ago[row, column]
        numbers = facts(topic, kind, value, spent, ago, days)
        if numbers and draw[4] < FACT_SHARE:
            answer = with_fact(answer, _pick(numbers, draw[5]))
        return self._row(row, query, answer, topic.name, grade)

    def _unit(self, draw: float) -> str:
        return self.config.unit if draw < UNIT_SHARE else "user"

    def _row(self, row: int, query: str, answer: str, topic: str, grade: int) -> tuple:
        user = self.values.ids[row]
        window = self.window
        return user, window.cutoff, query, answer, topic, window.kind, window.days, grade

    def summaries(self) -> list[tuple]:
        """Write for each user how active the next days are and on which three or four topics."""
        columns = [
            column for column, topic in enumerate(self.config.topics) if style_of(topic) == "count"
        ]
        topics = [self.config.topics[column] for column in columns]
        value = self.values.value[:, columns]
        lower = np.zeros(value.shape)
        for column, (values, less) in enumerate(self.stats.less):
            lower[:, column] = np.array(less)[np.searchsorted(values, value[:, column])]
        visits = self.values.active.sum(1)
        activity = grades("level", visits, begins=np.array(self.stats.active))
        activity[visits == 0] = -1
        days = self.window.days
        rows = []
        for row, draw in enumerate(self.draws[:, -1]):
            n_topics = 3 + int(draw[0] < 0.5)
            chosen = distinctive_topics(topics, value[row], lower[row], n_topics)
            things = [topic.thing for topic in chosen]
            third = busiest_third(self.values.active[row])
            answer = summary(int(activity[row]), things, days, third)
            query = look_ahead(self._summary_query(draw), days)
            rows.append(self._row(row, query, answer, "summary", -1))
        return rows

    def _summary_query(self, draw: np.ndarray) -> str:
        if draw[1] < 0.5:
            return SUMMARY_QUERY
        wording = _pick(SUMMARY_WORDINGS[:-HELD_OUT], draw[2])
        return wording.format(user=self._unit(draw[3]))


def _pick(items, draw: float):
    return items[int(draw * len(items))]
