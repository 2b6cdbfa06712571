"""What each user did between two times: the measures behind the answers, as arrays over users."""

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

OFFERS = (
    "campaign",
    "coupon",
    "promotion",
)  # modalities that tell of offers: no visit, no act at an hour of its own
MIN_EVENTS = 5  # a user with fewer events before a cut-off is neither asked about nor compared with
MIN_FORMER = 3  # visits before which no trend is told
MIN_USERS_COMPARED, MIN_SHARE = (
    20,
    0.005,
)  # with 20 users or more, a topic must part this share of them from the rest to be asked
DAY = 86_400_000_000  # microseconds


def topic_rates(
    users: Users, some: int | None = None, texts: int | None = None
) -> Float[np.ndarray, "user topic"]:
    """Say which part of each user's events speaks of each topic, 0 to 1, in the order of `TOPICS`.

    Rows come in no order to rely on; a user without events has zeros.

    some, texts   look at so many users, and at so many texts, the most frequent: an estimate
                  (default: at all).

    Example:
        >>> topic_rates(qa.make_sample_users(40)).shape
        (40, 72)
    """
    ids, past = users.ids[:: max(1, len(users) // (some or len(users)))], users.history()
    past = past[past["user"].isin(ids)]
    (who, _), (what, said) = pd.factorize(past["user"]), pd.factorize(past["text"])
    often = np.argsort(-np.bincount(what, minlength=len(said)), kind="stable")[:texts]
    has = csr_array((np.ones(len(past), np.float32), (who, what)), shape=(len(ids), len(said)))
    return (has[:, often] @ match(said[often]).astype(np.float32)) / np.maximum(has.sum(1), 1)[
        :, None
    ]


class EventArrays:
    """Hold the history as arrays over events sorted by user and time, once for all cut-offs.

    start  the time of the first visit of all (microseconds), when `users` are only some of them.
    """

    def __init__(self, users: Users, topics: tuple[Topic, ...], start: int | None = None):
        past = users.history()
        self.users, self.topics, self.n = users, topics, len(users)
        self.user = past["user"].cat.codes.to_numpy()
        self.time = past["time"].astype("datetime64[us]").astype("int64").to_numpy()
        self.text, modality = (
            past["text"].cat.codes.to_numpy(),
            past["modality"].astype(str).to_numpy(),
        )
        none = np.full(len(past), np.nan)
        self.amount, self.saved, self.own = (
            past[c].to_numpy() if c in past else none for c in ("amount", "discount", "private")
        )
        self.visit = ~np.isin(modality, OFFERS)
        self.modality = modality
        self.start = (
            self.time[self.visit].min(initial=users.cutoff.value // 1000)
            if start is None
            else start
        )
        hit = match(past["text"].cat.categories)
        self.streams = {}
        for topic in topics:
            if style_of(topic) == "count":
                self.streams[topic.name] = self._occasions(hit[self.text, TOPICS.index(topic)])
            if topic.measure.startswith("modality:"):
                self.streams[topic.measure] = self._occasions(
                    modality == topic.measure.removeprefix("modality:")
                )
        self.visits = self._occasions(self.visit)

    def _occasions(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count events at one time as one occasion (a basket of ten items is one): user, time,
        money.
        """
        at = np.flatnonzero(chosen)
        user, time, amount = self.user[at], self.time[at], np.nan_to_num(self.amount[at])
        first = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(time) != 0)][: len(at)])
        return (
            user[first],
            time[first],
            np.add.reduceat(amount, first) if len(first) else amount[:0],
        )


class SpendSources(NamedTuple):
    """Say which modalities there were before a cut-off (`seen`), and where money is counted: in the
    one with most of it; where
    two tell the same sums, in the one with fewest events (`replace_surrogates`: baskets) or with
    most (`single`: the things in them)."""

    whole: str = ""
    single: str = ""
    seen: tuple[str, ...] = ()


def find_spend_sources(events: pd.DataFrame) -> SpendSources:
    """Look at the events before a cut-off."""
    paid = pd.DataFrame(columns=["sum", "size"], dtype=float)
    if "amount" in events:
        paid = (
            events[events["amount"] > 0]
            .groupby("modality", observed=True)["amount"]
            .agg(["sum", "size"])
        )
    return spend_sources_from_table(paid, events["modality"].unique())


def spend_sources_from_table(paid: pd.DataFrame, seen: Iterable) -> SpendSources:
    """Say the same of a table with index modality and columns sum, size, of the events that cost
    something.
    """
    size, seen = (
        paid.loc[paid["sum"] > 0.98 * paid["sum"].max(), "size"],
        tuple(sorted(map(str, seen))),
    )
    return (
        SpendSources(str(size.idxmin()), str(size.idxmax()), seen)
        if len(size)
        else SpendSources(seen=seen)
    )


class BehaviorWindow:
    """Hold what each user did from `low` up to `high` (microseconds): arrays over users, NaN where
    there is nothing to say.

    sources  what `find_spend_sources` gives for the time before the cut-off.
    """

    def __init__(self, records: EventArrays, low: int, high: int, sources: SpendSources):
        self.records, self.low, self.high, self.sources = records, low, high, sources
        self.now = (records.time >= low) & (records.time < high)

    def occasions(self, topic: Topic):
        """Give the occasions of a topic: the events of its modality if there were any before the
        cut-off, or else by words.
        """
        by_modality = topic.measure in {f"modality:{name}" for name in self.sources.seen}
        return self.within(self.records.streams[topic.measure if by_modality else topic.name])

    def within(self, stream):
        now = (stream[1] >= self.low) & (stream[1] < self.high)
        return tuple(column[now] for column in stream)

    def count(self, user: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(user, weights, minlength=self.records.n).astype(float)

    def share(
        self, user: np.ndarray, part: np.ndarray, whole: np.ndarray | None = None
    ) -> np.ndarray:
        below = self.count(user, whole)
        return np.divide(
            self.count(user, part), below, out=np.full(len(below), np.nan), where=below > 0
        )

    def since(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Give the days from each user's last time to the end of the span."""
        last = np.full(self.records.n, np.nan)
        last[user] = time  # in order of time: numpy keeps the last of several
        return (self.high - last) / DAY

    def rate(self, measure: str) -> np.ndarray:
        return getattr(self, measure) / max(
            (self.high - max(self.low, self.records.start)) / DAY, 1
        )

    @cached_property
    def visits(self) -> tuple[np.ndarray, np.ndarray]:
        return self.within(self.records.visits)[:2]

    @cached_property
    def events(self) -> np.ndarray:
        return self.count(self.visits[0])

    def thirds(self, part: int) -> np.ndarray:
        """Count the visits in one third of the time (0, 1 or 2)."""
        user, time = self.visits
        return self.count(user[(time - self.low) * 3 // (self.high - self.low) == part])

    @cached_property
    def silent(self) -> np.ndarray:
        return self.since(*self.visits)

    @cached_property
    def weekend(self) -> np.ndarray:
        user, time = self.visits
        return self.share(user, (time // DAY + 3) % 7 >= 5)  # 1970-01-01 was a Thursday

    def _hours(self, first: int, last: int) -> np.ndarray:
        user, time = self.visits
        clock = time % DAY != 0  # a time of exactly midnight is a date without an hour
        hour = (time // (DAY // 24) - first) % 24
        return self.share(user[clock], (hour < (last - first) % 24)[clock])

    @cached_property
    def evening(self) -> np.ndarray:
        return self._hours(17, 22)

    @cached_property
    def night(self) -> np.ndarray:
        return self._hours(22, 5)

    @cached_property
    def variety(self) -> np.ndarray:
        chosen, kinds = self.now & self.records.visit, int(self.records.text.max(initial=0)) + 1
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
        return self.count(*self._paid[:2])

    @cached_property
    def basket(self) -> np.ndarray:
        return self.share(*self._paid[:2])

    @cached_property
    def discount(self) -> np.ndarray:
        """Give the share of the things bought that were bought at a reduced price."""
        things = (
            self.now
            & (self.records.modality == self.sources.single)
            & ~np.isnan(self.records.saved)
        )
        return self.share(self.records.user[things], self.records.saved[things] > 0)

    @cached_property
    def private(self) -> np.ndarray:
        user, amount, _, own = (column[~np.isnan(self._paid[3])] for column in self._paid)
        return self.share(user, amount * own, amount)
