"""Measures of what each user did between two times, as arrays over users."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.sparse import csr_array

from qanchor.data.users import Users
from qanchor.useru.answers import style_of
from qanchor.useru.topics import TOPICS, Topic, match

OFFERS = ("campaign", "coupon", "promotion")  # modalities of offers: they are no visits
MIN_EVENTS = 5  # users with fewer events before a cut-off are neither asked about nor compared
MIN_FORMER = 3  # visits needed before a trend is computed
MIN_USERS_COMPARED = 20  # with fewer users, any difference makes a topic worth asking about
MIN_SHARE = 0.005  # share of users that must differ from the most common grade of a topic
DAY = 86_400_000_000  # microseconds


def topic_rates(
    users: Users, n_users: int | None = None, n_texts: int | None = None
) -> Float[np.ndarray, "user topic"]:
    """Return the share of each user's events that is about each topic, 0 to 1.

    Args:
        users: The users; only their history is read.
        n_users: Number of users to look at, evenly spaced (default: all).
        n_texts: Number of texts to look at, the most frequent (default: all).

    Returns:
        One row per user with events, in order of first occurrence in the history, then rows of
        zeros for users without; columns in the order of `TOPICS`.

    Example:
        >>> topic_rates(qa.make_sample_users(40)).shape
        (40, 72)
    """
    ids = users.ids[:: max(1, len(users) // (n_users or len(users)))]
    past = users.history()
    past = past[past["user"].isin(ids)]
    user, _ = pd.factorize(past["user"])
    text, texts = pd.factorize(past["text"])
    by_frequency = np.argsort(-np.bincount(text, minlength=len(texts)), kind="stable")
    frequent = by_frequency[:n_texts]
    ones = np.ones(len(past), np.float32)
    counts = csr_array((ones, (user, text)), shape=(len(ids), len(texts)))
    about_topic = counts[:, frequent] @ match(texts[frequent]).astype(np.float32)
    return about_topic / np.maximum(counts.sum(1), 1)[:, None]


class EventArrays:
    """The history of users as arrays over events sorted by user and time, for all cut-offs.

    Args:
        users: The users.
        topics: Topics whose occasions are needed.
        start: Time of the first visit in microseconds, if `users` are only some of all users
            (default: their own first visit).
    """

    def __init__(self, users: Users, topics: tuple[Topic, ...], start: int | None = None):
        past = users.history()
        self.users = users
        self.topics = topics
        self.n = len(users)
        self.user = past["user"].cat.codes.to_numpy()
        self.time = past["time"].astype("datetime64[us]").astype("int64").to_numpy()
        self.text = past["text"].cat.codes.to_numpy()
        self.modality = past["modality"].astype(str).to_numpy()
        self.amount = self._number(past, "amount")
        self.saved = self._number(past, "discount")
        self.own = self._number(past, "private")
        self.visit = ~np.isin(self.modality, OFFERS)
        if start is None:
            start = self.time[self.visit].min(initial=users.cutoff.value // 1000)
        self.start = start
        about_topic = match(past["text"].cat.categories)
        self.streams = {}
        for topic in topics:
            if style_of(topic) == "count":
                chosen = about_topic[self.text, TOPICS.index(topic)]
                self.streams[topic.name] = self._occasions(chosen)
            if topic.measure.startswith("modality:"):
                chosen = self.modality == topic.measure.removeprefix("modality:")
                self.streams[topic.measure] = self._occasions(chosen)
        self.visits = self._occasions(self.visit)

    @staticmethod
    def _number(past: pd.DataFrame, column: str) -> np.ndarray:
        return past[column].to_numpy() if column in past else np.full(len(past), np.nan)

    def _occasions(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user, time and amount of occasions: events of a user at one time are one."""
        rows = np.flatnonzero(chosen)
        user = self.user[rows]
        time = self.time[rows]
        amount = np.nan_to_num(self.amount[rows])
        changed = (np.diff(user) != 0) | (np.diff(time) != 0)
        first = np.flatnonzero(np.r_[True, changed][: len(rows)])
        total = np.add.reduceat(amount, first) if len(first) else amount[:0]
        return user[first], time[first], total


class SpendSources(NamedTuple):
    """Which modalities occurred before a cut-off, and in which one money is counted.

    Money is counted in the modality with the largest sum. If two have the same sum, one holds
    totals (baskets) and one their parts (products).

    Args:
        whole: The modality with the fewest events among those with the largest sum: baskets.
        single: The one with the most events: products.
        seen: All modalities, sorted.
    """

    whole: str = ""
    single: str = ""
    seen: tuple[str, ...] = ()


def find_spend_sources(events: pd.DataFrame) -> SpendSources:
    """Return where money is counted in the events before a cut-off.

    Args:
        events: The events, with or without a column `amount`.
    """
    paid = pd.DataFrame(columns=["sum", "size"], dtype=float)
    if "amount" in events:
        by_modality = events[events["amount"] > 0].groupby("modality", observed=True)
        paid = by_modality["amount"].agg(["sum", "size"])
    return spend_sources_from_table(paid, events["modality"].unique())


def spend_sources_from_table(paid: pd.DataFrame, seen: Iterable) -> SpendSources:
    """Return where money is counted, from sums per modality.

    Args:
        paid: Index modality; `sum` and `size` (number) of the events with an amount above 0.
        seen: All modalities that occurred.
    """
    seen = tuple(sorted(map(str, seen)))
    size = paid.loc[paid["sum"] > 0.98 * paid["sum"].max(), "size"]
    if not len(size):
        return SpendSources(seen=seen)
    return SpendSources(str(size.idxmin()), str(size.idxmax()), seen)


class BehaviorWindow:
    """Measures of what each user did in a span of time: arrays over users, NaN for unknown.

    Args:
        records: The events of all users.
        low: Start of the span in microseconds, inclusive.
        high: End of the span in microseconds, exclusive.
        sources: `find_spend_sources` of the events before the cut-off.
    """

    def __init__(self, records: EventArrays, low: int, high: int, sources: SpendSources):
        self.records = records
        self.low = low
        self.high = high
        self.sources = sources
        self.now = (records.time >= low) & (records.time < high)

    def occasions(self, topic: Topic):
        """Return the occasions of a topic in the span.

        They are the events of its modality if that occurred before the cut-off, otherwise the
        events whose text is about it.

        Args:
            topic: A topic of the style "count".
        """
        by_modality = topic.measure in {f"modality:{name}" for name in self.sources.seen}
        name = topic.measure if by_modality else topic.name
        return self.within(self.records.streams[name])

    def within(self, stream):
        """Return the rows of a stream (user, time, amount) that are in the span."""
        in_span = (stream[1] >= self.low) & (stream[1] < self.high)
        return tuple(column[in_span] for column in stream)

    def count(self, user: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the number of rows of each user, or the sum of their weights."""
        return np.bincount(user, weights, minlength=self.records.n).astype(float)

    def share(
        self, user: np.ndarray, part: np.ndarray, whole: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the sum of `part` divided by the sum of `whole` (default: rows), by user."""
        total = self.count(user, whole)
        unknown = np.full(len(total), np.nan)
        return np.divide(self.count(user, part), total, out=unknown, where=total > 0)

    def since(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the days from each user's last time to the end of the span."""
        last = np.full(self.records.n, np.nan)
        last[user] = time  # sorted by time: of repeated users numpy keeps the last value
        return (self.high - last) / DAY

    def rate(self, measure: str) -> np.ndarray:
        """Return a measure per day, from the first visit of all on."""
        days = (self.high - max(self.low, self.records.start)) / DAY
        return getattr(self, measure) / max(days, 1)

    @cached_property
    def visits(self) -> tuple[np.ndarray, np.ndarray]:
        """User and time of the visits."""
        return self.within(self.records.visits)[:2]

    @cached_property
    def events(self) -> np.ndarray:
        """Number of visits."""
        return self.count(self.visits[0])

    def thirds(self, part: int) -> np.ndarray:
        """Return the number of visits in one third of the span (0, 1 or 2)."""
        user, time = self.visits
        return self.count(user[(time - self.low) * 3 // (self.high - self.low) == part])

    @cached_property
    def silent(self) -> np.ndarray:
        """Days since the last visit."""
        return self.since(*self.visits)

    @cached_property
    def weekend(self) -> np.ndarray:
        """Share of visits on Saturday and Sunday."""
        user, time = self.visits
        return self.share(user, (time // DAY + 3) % 7 >= 5)  # 1970-01-01 was a Thursday

    def _hours(self, first: int, last: int) -> np.ndarray:
        user, time = self.visits
        clock = time % DAY != 0  # exactly midnight is a date without an hour
        hour = (time // (DAY // 24) - first) % 24
        return self.share(user[clock], (hour < (last - first) % 24)[clock])

    @cached_property
    def evening(self) -> np.ndarray:
        """Share of visits from 17:00 to 22:00."""
        return self._hours(17, 22)

    @cached_property
    def night(self) -> np.ndarray:
        """Share of visits from 22:00 to 5:00."""
        return self._hours(22, 5)

    @cached_property
    def variety(self) -> np.ndarray:
        """Number of distinct texts."""
        chosen = self.now & self.records.visit
        kinds = int(self.records.text.max(initial=0)) + 1
        seen = np.unique(
            self.records.user[chosen].astype("int64") * kinds + self.records.text[chosen]
        )
        return self.count(seen // kinds)

    @cached_property
    def _paid(self) -> tuple[np.ndarray, ...]:
        records = self.records
        paid = self.now & (records.modality == self.sources.whole) & ~np.isnan(records.amount)
        return records.user[paid], records.amount[paid], records.saved[paid], records.own[paid]

    @cached_property
    def spend(self) -> np.ndarray:
        """Money spent."""
        return self.count(*self._paid[:2])

    @cached_property
    def basket(self) -> np.ndarray:
        """Mean amount of a purchase."""
        return self.share(*self._paid[:2])

    @cached_property
    def discount(self) -> np.ndarray:
        """Share of the things bought that were bought at a reduced price."""
        is_single = self.records.modality == self.sources.single
        things = self.now & is_single & ~np.isnan(self.records.saved)
        return self.share(self.records.user[things], self.records.saved[things] > 0)

    @cached_property
    def private(self) -> np.ndarray:
        """Share of money spent on store brands."""
        user, amount, _, own = (column[~np.isnan(self._paid[3])] for column in self._paid)
        return self.share(user, amount * own, amount)
