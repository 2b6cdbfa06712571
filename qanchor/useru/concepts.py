"""Concepts: what can be asked of users, induced from their own events, and what is true of them.

Induction reads only events before the first training cut-off and is deterministic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.things import Thing, ThingEvents

MAX_TEXT_CONCEPTS = 256
MIN_SHARE = 0.004  # of the (user, cut-off) samples in which a concept happens
MAX_SHARE = 0.98
N_CLUSTERS = (20, 60)  # clusters of texts at two heights
MAX_CLUSTER_TEXTS = 2000
QUANTILES = (0.5, 0.75, 0.9)  # of a number, as thresholds
HELD_OUT_SHARE = 0.15  # of the concepts of each family, by hash of the name
FAMILIES = ("text", "cluster", "modality", "number", "time", "behavior")
MEASURES = ("occurs", "more", "less", "first", "exceeds", "high", "share")
MORE = 1.25  # times the former rate
LESS = 0.5


@dataclass(frozen=True)
class Concept:
    """Something that can be asked of the users and computed from their events.

    Args:
        name: Stable name, such as "text:payment_done" or "number:amount>50".
        family: One of `FAMILIES`.
        label: As people name it, such as "payment done".
        things: Names of the things that its events belong to; empty: any event.
        measure: One of `MEASURES`: it occurs, it rises, it falls, it occurs for the first time, one
            amount exceeds the threshold, there is much of it, it is much of all that occurs.
        threshold: Smallest amount that counts; only for "exceeds".
        split: "train" or "held_out".
    """

    name: str
    family: str
    label: str
    things: tuple[str, ...]
    measure: str = "occurs"
    threshold: float = 0.0
    split: str = "train"

    def to_dict(self) -> dict:
        """Return the fields for JSON."""
        return asdict(self)


def _split(name: str) -> str:
    """Return the split of a concept, by hash of its name."""
    digest = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4])
    return "held_out" if digest / 2**32 < HELD_OUT_SHARE else "train"


def induce_concepts(
    events: ThingEvents,
    vectors: Float[np.ndarray, "thing text"],
    cutoffs: Sequence[pd.Timestamp],
) -> tuple[Concept, ...]:
    """Return the concepts of a data set.

    Args:
        events: Of the users, with `until` the first cut-off, so that later events have no
            influence.
        vectors: Text vector of each thing.
        cutoffs: Training cut-offs; only the first is used.
    """
    first = min(cutoffs)
    count, _, largest = events.counts(events.users.events["time"].min(), first)
    active = count.any(1)
    users = max(int(active.sum()), 1)
    share = (count[active] > 0).sum(0) / users
    things = events.things
    found = [
        Concept("behavior:any", "behavior", "any event", ()),
        Concept("behavior:more", "behavior", "any event", (), "more"),
        Concept("behavior:less", "behavior", "any event", (), "less"),
        Concept("behavior:high", "behavior", "any event", (), "high"),
    ]
    texts = [i for i, thing in enumerate(things) if thing.kind == "text" and share[i] > MIN_SHARE]
    texts = sorted(texts, key=lambda i: (-share[i], things[i].name))[:MAX_TEXT_CONCEPTS]
    for i in texts:
        thing = things[i]
        found.append(Concept(thing.name, "text", thing.label, (thing.name,)))
        if share[i] > 0.1:
            found.append(Concept(f"{thing.name}:more", "text", thing.label, (thing.name,), "more"))
            found.append(Concept(f"{thing.name}:high", "text", thing.label, (thing.name,), "high"))
            name = f"{thing.name}:share"
            found.append(Concept(name, "text", thing.label, (thing.name,), "share"))
        if 0.02 < share[i] < 0.7:
            name = f"{thing.name}:first"
            found.append(Concept(name, "text", thing.label, (thing.name,), "first"))
    found += _clusters(events, vectors, share)
    for i, thing in enumerate(things):
        if thing.kind == "modality" and share[i] > 0:
            found.append(Concept(thing.name, "modality", thing.label, (thing.name,)))
            for measure in ("more", "less", "high", "share"):
                name = f"{thing.name}:{measure}"
                found.append(Concept(name, "modality", thing.label, (thing.name,), measure))
        if thing.kind == "time" and share[i] > MIN_SHARE:
            found.append(Concept(thing.name, "time", thing.label, (thing.name,)))
            name = f"{thing.name}:more"
            found.append(Concept(name, "time", thing.label, (thing.name,), "more"))
        if thing.kind == "number" and share[i] > MIN_SHARE:
            has_share = bool(events.share_base[i])
            found += _number_concepts(thing, largest[active, i], has_share)
    unique = {concept.name: concept for concept in found}
    return tuple(
        Concept(**(concept.to_dict() | {"split": _split(name)})) for name, concept in unique.items()
    )


def _number_concepts(thing: Thing, largest: np.ndarray, has_share: bool) -> list[Concept]:
    """Return the concepts of a number column: high and rising totals, shares, and amounts of one
    event.
    """
    found = [
        Concept(f"{thing.name}:high", "number", thing.label, (thing.name,), "high"),
        Concept(f"{thing.name}:more", "number", thing.label, (thing.name,), "more"),
        Concept(f"{thing.name}:less", "number", thing.label, (thing.name,), "less"),
    ]
    if has_share:
        name = f"{thing.name}:share"
        found.append(Concept(name, "number", thing.label, (thing.name,), "share"))
    values = largest[largest > 0]
    for quantile in QUANTILES if len(values) else ():
        threshold = float(f"{np.quantile(values, quantile):.2g}")
        name = f"{thing.name}>={threshold:g}"
        label = thing.label
        found.append(Concept(name, "number", label, (thing.name,), "exceeds", threshold))
    return found


def _clusters(events: ThingEvents, vectors: np.ndarray, share: np.ndarray) -> list[Concept]:
    """Return clusters of similar texts, named by their two most central members."""
    from sklearn.cluster import MiniBatchKMeans

    things = events.things
    texts = [i for i, thing in enumerate(things) if thing.kind == "text" and share[i] > 0]
    texts = sorted(texts, key=lambda i: (-share[i], things[i].name))[:MAX_CLUSTER_TEXTS]
    vectors = vectors[texts]
    found = []
    for n in N_CLUSTERS:
        if len(texts) < 4 * n:
            continue
        kmeans = MiniBatchKMeans(n, random_state=0, n_init=3).fit(vectors)
        for cluster in range(n):
            members = np.flatnonzero(kmeans.labels_ == cluster)
            if len(members) < 2:
                continue
            centrality = vectors[members] @ kmeans.cluster_centers_[cluster]
            best = members[np.argsort(-centrality, kind="stable")[:2]]
            label = " or ".join(things[texts[i]].label for i in best)
            names = tuple(things[texts[i]].name for i in members)
            found.append(Concept(f"cluster:{n}:{label}", "cluster", label, names))
    return found


def concept_truth(
    events: ThingEvents,
    concepts: Sequence[Concept],
    rows: np.ndarray,
    cutoff: pd.Timestamp,
    days: int,
) -> Float[np.ndarray, "user concept"]:
    """Return what is true of each concept in the days after a cut-off.

    Args:
        events: Of the users.
        concepts: The concepts.
        rows: Rows of the users in `events.users.ids`.
        cutoff: Start of the window.
        days: Length of the window.

    Returns:
        1 or 0; NaN where it cannot be said (a user without the past that a trend needs).
    """
    return Outcomes.of(events, rows, cutoff, days).truth(events, concepts)


@dataclass(frozen=True)
class Outcomes:
    """Hold what some users did of each thing before and after a cut-off.

    Args:
        count: Events after the cut-off, (user, thing).
        total: Sum of each thing's number after it.
        largest: Largest number after it.
        share: Share of all that the user did after it.
        count_before: Events before the cut-off.
        total_before: Sum of each thing's number before it.
        horizons: Length of each user's history in horizons.
        is_active: Whether the user had any event after the cut-off.
    """

    count: np.ndarray
    total: np.ndarray
    largest: np.ndarray
    share: np.ndarray
    count_before: np.ndarray
    total_before: np.ndarray
    horizons: np.ndarray
    is_active: np.ndarray

    @classmethod
    def of(cls, events: ThingEvents, rows: np.ndarray, cutoff: pd.Timestamp, days: int) -> Outcomes:
        """Count what users did before and after a cut-off.

        Args:
            events: Of the users.
            rows: Rows of the users in `events.users.ids`.
            cutoff: Start of the window.
            days: Length of the window.
        """
        start = events.users.events["time"].min()
        end = cutoff + pd.Timedelta(days=days)
        count, total, largest = (part[rows] for part in events.counts(cutoff, end))
        count_before, total_before, _ = (part[rows] for part in events.counts(start, cutoff))
        first = events.users.events.groupby("user", observed=False)["time"].min().to_numpy()[rows]
        tenure = (cutoff.to_datetime64() - first) / np.timedelta64(1, "D")
        return cls(
            count,
            total,
            largest,
            events.shares(count, total),
            count_before,
            total_before,
            np.maximum(tenure, days / 2) / days,
            count[:, events.modality_rows].any(1),
        )

    def truth(
        self, events: ThingEvents, concepts: Sequence[Concept]
    ) -> Float[np.ndarray, "user concept"]:
        """Return what is true of each concept: 1, 0, or NaN if it cannot be said.

        Args:
            events: The events that were counted.
            concepts: The concepts.
        """
        out = np.zeros((len(self.horizons), len(concepts)), np.float32)
        for column, concept in enumerate(concepts):
            index = [events.index[name] for name in concept.things if name in events.index]
            if not concept.things:
                index = events.modality_rows
            sums = concept.family == "number" and concept.measure in ("high", "more", "less")
            future = (self.total if sums else self.count)[:, index].sum(1)
            if concept.measure == "share":
                is_high = _in_upper_quarter(self.share[:, index].sum(1))
                out[:, column] = np.where(self.is_active, is_high, np.nan)
            elif concept.measure == "high":
                out[:, column] = _in_upper_quarter(future)
            elif concept.measure == "exceeds":
                largest = self.largest[:, index].max(1, initial=0)
                out[:, column] = largest >= concept.threshold
            else:
                before = (self.total_before if sums else self.count_before)[:, index].sum(1)
                out[:, column] = self.answer(concept.measure, future, before)
        return out

    def answer(self, measure: str, future: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return whether users did something as a measure asks: 1, 0, or NaN if it cannot be said.

        Args:
            measure: "occurs", "more", "less" or "first".
            future: How much of it after the cut-off; users are the first axis.
            before: How much of it before.
        """
        rate = (before.T / self.horizons).T
        if measure == "more":
            return future > MORE * rate
        if measure == "less":
            return np.where(before > 0, future < LESS * rate, np.nan)
        if measure == "first":
            return (future > 0) & (before == 0)
        return future > 0

    def targets(self, events: ThingEvents, measure: str) -> np.ndarray:
        """Return what heads of things learn: what is measured of each thing, and last of any event.

        How much is the log of the sum or the largest number, a share is the share itself.

        Args:
            events: The events that were counted.
            measure: One of `MEASURES`.
        """
        any_event = events.modality_rows
        if measure == "share":
            share = np.where(self.is_active[:, None], self.share, np.nan)
            unknown = np.full(len(share), np.nan)
            return np.column_stack([share, unknown])
        if measure == "exceeds":
            of_any = self.largest[:, any_event].max(1, initial=0)
            return np.log1p(np.column_stack([self.largest, of_any]).clip(min=0))
        is_number = np.array([thing.kind == "number" for thing in events.things])
        is_sum = is_number & (measure in ("high", "more", "less"))
        future = np.where(is_sum, self.total.clip(min=0), self.count)
        before = np.where(is_sum, self.total_before.clip(min=0), self.count_before)
        future = np.column_stack([future, self.count[:, any_event].sum(1)])
        before = np.column_stack([before, self.count_before[:, any_event].sum(1)])
        if measure == "high":
            return np.log1p(future)
        return self.answer(measure, future, before)


def _in_upper_quarter(values: np.ndarray) -> np.ndarray:
    """Return which values are in the upper quarter of the positive ones."""
    positive = values[values > 0]
    limit = np.quantile(positive, 0.75) if len(positive) else np.inf
    return values >= limit


# -- wordings --

# {t}: label, {user}: unit word. The last wording of each list is for tests only.
NEXT = ("in the next month", "soon", "in the coming weeks", "next month", "")
OCCURS = (
    "Will this {user} {verb} {t} {when}?",
    "Will there be {t} {when}?",
    "How likely is {t} {when}?",
    "{t}",
    "Is {t} to be expected of this {user}?",
    "Do you expect this {user} to {verb} {t} {when}?",
    "Is this {user} going to {verb} {t} {when}?",
    "Should we expect {t} from this {user}?",
)
NOT_OCCURS = (
    "Will this {user} not {verb} {t} {when}?",
    "Will this {user} never {verb} {t} again?",
    "Is {t} unlikely {when}?",
    "Will this {user} stop having {t}?",
    "Will there be no {t} {when}?",
    "Is this {user} unlikely to {verb} {t} {when}?",
    "Won't this {user} {verb} {t} {when}?",
    "Will this {user} no longer {verb} {t}?",
    "Will this {user} quit {t}?",
    "Will this {user} skip {t} {when}?",
    "Will this {user} do without {t} {when}?",
    "Will this {user} stay away from {t}?",
    "Will this {user} refrain from {t} {when}?",
    "Will this {user} refuse {t}?",
    "Will this {user} avoid {t} {when}?",
)
MORE_WORDINGS = (
    "Will this {user} {verb} {t} more often than before?",
    "Will {t} go up {when}?",
    "Is {t} of this {user} rising?",
    "Will there be more {t} {when}?",
    "Will {t} increase {when}?",
)
LESS_WORDINGS = (
    "Will this {user} {verb} {t} less often than before?",
    "Will {t} go down {when}?",
    "Is {t} of this {user} falling?",
    "Will there be less {t} {when}?",
    "Will {t} decrease {when}?",
)
FIRST_WORDINGS = (
    "Will this {user} {verb} {t} for the first time?",
    "Will this {user} try {t} {when}?",
    "Will this {user} start with {t}?",
)
EXCEEDS_WORDINGS = (
    "Will this {user} {verb} {t} of at least {v} at once?",
    "Will this {user} have more than {v} {t} in one go {when}?",
    "Will there be an event with {t} above {v}?",
    "Will a single {t} exceed {v} {when}?",
)
HIGH_WORDINGS = (
    "Will this {user} have much {t} {when}?",
    "Will {t} of this {user} be high {when}?",
    "Is a large total {t} to be expected {when}?",
)
OFTEN_WORDINGS = (
    "Will this {user} {verb} {t} often {when}?",
    "Will this {user} {verb} {t} nearly every day {when}?",
    "Will there be a lot of {t} {when}?",
    "Will there be many {t} {when}?",
)
SHARE_WORDINGS = (
    "Does this {user} mostly {verb} {t}?",
    "Is it mainly {t} that this {user} will {verb} {when}?",
    "Does this {user} prefer {t}?",
    "Will this {user} choose {t} above all?",
    "Is this {user} one for {t}?",
    "Will most of this {user}'s events be {t}?",
)
ANY_OFTEN = (
    "Will this {user} be very active {when}?",
    "Will this {user} come often {when}?",
    "Will this {user} be here nearly every day {when}?",
    "Is this {user} among the most active {when}?",
    "Will this {user} be a heavy {user} {when}?",
)
ANY_SELDOM = (
    "Will this {user} hardly be active {when}?",
    "Will this {user} come seldom {when}?",
    "Is this {user} among the least active {when}?",
    "Will this {user} rarely be here {when}?",
)
TIME_WORDINGS = (
    "Will this {user} be active in the {t} {when}?",
    "Will this {user} come on a {t}?",
    "Is this {user} a {t} person?",
    "Will there be events in the {t}?",
)
ANY_WORDINGS = (
    "Will this {user} come back?",
    "Will this {user} be active {when}?",
    "Will we see this {user} again {when}?",
    "Is this {user} still with us?",
    "Will this {user} return {when}?",
    "Will this {user} stay with us?",
    "Will anything happen with this {user} {when}?",
    "Will this {user} buy anything {when}?",
    "Is this {user} still active?",
)
NONE_WORDINGS = (
    "Will this {user} stop coming?",
    "Will this {user} churn?",
    "Will this {user} leave?",
    "Will we lose this {user}?",
    "Will this {user} not come back?",
    "Will this {user} never return?",
    "Is this {user} unlikely to come back {when}?",
    "Won't we see this {user} again?",
    "Will this {user} stop being active?",
    "Will this {user} disappear?",
    "Will this {user} no longer be active {when}?",
    "Is this {user} about to quit?",
    "Will there be nothing from this {user} {when}?",
    "Will this {user} be inactive {when}?",
    "Is this {user} gone?",
)
ANY_MORE = (
    "Will this {user} be more active than before?",
    "Will this {user} come more often?",
    "Will visits go up {when}?",
    "Is this {user} becoming more active?",
)
ANY_LESS = (
    "Will this {user} be less active than before?",
    "Will this {user} come less often?",
    "Will visits go down {when}?",
    "Is this {user} becoming less active?",
)
STAY_VERBS = (
    "come back",
    "return",
    "stay",
    "remain a customer",
    "keep coming",
    "be around",
    "show up again",
    "continue",
    "be active",
    "stick with us",
)
LEAVE_VERBS = (
    "leave",
    "leave us",
    "churn",
    "quit",
    "give up coming",
    "go away",
    "drop out",
    "stop coming",
    "disappear",
    "lapse",
    "fail to return",
    "cancel",
    "unsubscribe",
    "abandon us",
    "cease to come",
    "go inactive",
    "lose interest",
    "switch to a competitor",
    "walk away",
    "end the subscription",
    "close the account",
)
AFFIRMING = (
    "Will this {user} {v} {when}?",
    "Is this {user} going to {v} {when}?",
    "Is this {user} likely to {v} {when}?",
    "How likely is this {user} to {v} {when}?",
    "Does this {user} intend to {v}?",
    "Does this {user} still {v}?",
    "Do you expect this {user} to {v} {when}?",
    "Is this {user} about to {v}?",
)
DENYING = (
    "Will this {user} not {v} {when}?",
    "Won't this {user} {v} {when}?",
    "Is this {user} not going to {v}?",
    "Is this {user} unlikely to {v} {when}?",
    "How unlikely is this {user} to {v}?",
    "Will this {user} cease to {v}?",
    "Will this {user} fail to {v} {when}?",
    "Is it unlikely that this {user} will {v} {when}?",
    "Will this {user} no longer {v}?",
    "Will this {user} refuse to {v} {when}?",
    "Does this {user} decline to {v}?",
    "Will this {user} never {v} {when}?",
)
# frames that ask how much or how often, not whether
MEASURING = {
    "more": (
        "Will this {user} {v} more often than before?",
        "Will this {user} {v} more and more?",
        "Is this {user} going to {v} much more {when}?",
        "Will this {user} increasingly {v}?",
        "Is this {user} likely to {v} more than in the past?",
    ),
    "less": (
        "Will this {user} {v} less often than before?",
        "Will this {user} {v} less and less?",
        "Is this {user} going to {v} much less {when}?",
        "Will this {user} {v} more seldom than before?",
        "Will this {user} {v} fewer times than before?",
        "Is this {user} likely to {v} less than in the past?",
    ),
    "first": (
        "Will this {user} {v} for the first time {when}?",
        "Will this {user} start to {v}?",
        "Will this {user} {v} as never before?",
    ),
    "exceeds": (
        "Will this {user} {v} for more than {n} at once?",
        "Will this {user} {v}, at least {n} at a time?",
        "Is this {user} going to {v} with over {n} in one go {when}?",
    ),
    "high": (
        "Will this {user} {v} often {when}?",
        "Will this {user} {v} nearly every day {when}?",
        "Will this {user} {v} daily {when}?",
        "Will this {user} {v} a lot {when}?",
        "Does this {user} {v} very frequently?",
        "Will this {user} {v} many times {when}?",
    ),
    "share": (
        "Does this {user} mostly {v}?",
        "Does this {user} mainly {v}?",
        "Does this {user} {v} rather than do anything else?",
        "Would this {user} above all {v}?",
        "Does this {user} prefer to {v}?",
    ),
}
SELDOM = (
    "Will this {user} hardly ever {v}?",
    "Will this {user} seldom {v} {when}?",
    "Does this {user} {v} only now and then?",
    "Will this {user} scarcely {v} {when}?",
    "Will this {user} {v} infrequently?",
)
AMOUNTS = (2, 3, 5, 10, 20, 50, 100, 500)
# what is asked about must not tell the sense: a complaint that happens is a yes
TOPICS = (
    "book a hotel",
    "go on a trip",
    "send money",
    "watch a film",
    "listen to music",
    "paint a fence",
    "play a game",
    "order food",
    "change the password",
    "log in",
    "renew the contract",
    "open a letter",
    "invite a friend",
    "rate something",
    "compare prices",
    "download a file",
    "complain",
    "report a fault",
    "return a parcel",
    "cancel an order",
    "miss a deadline",
    "pay late",
    "sleep badly",
    "get a warning",
    "lose a card",
    "dispute a bill",
    "be stuck in traffic",
    "see a broken page",
    "water the garden",
    "sing a song",
    "get a refund",
    "skip an instalment",
    "fall ill",
    "have an accident",
    "break something",
    "end a call",
    "close a window",
    "empty the basket",
    "block a caller",
    "delete a photo",
    "reject an offer",
    "drop an item",
    "turn off alerts",
    "hit a limit",
    "be charged a fee",
    "have an outage",
    "claim a loss",
    "decline an invitation",
    "wait in a queue",
    "give up a seat",
    "commit fraud",
    "be robbed",
    "run into debt",
    "go bankrupt",
    "get sick",
    "suffer a loss",
    "fail a test",
    "crash the car",
    "make a suspicious transfer",
    "pay a fine",
    "feel pain",
    "get divorced",
    "spill the coffee",
    "be arrested",
    "use a stolen card",
    "buy something cheap",
    "buy something expensive",
    "win a prize",
    "celebrate a birthday",
    "learn a language",
    "take a loan",
    "plant a flower",
    "visit a friend",
    "get a promotion",
    "see a scary film",
    "hear a sad song",
    "have a flat tyre",
    "skip a lesson",
    "owe money",
    "file a fraudulent claim",
    "miss a train",
    "ask for a discount",
    "search for a job",
    "wait for a bus",
    "pay for a meal",
    "apply for a visa",
    "look for a present",
    "leave for the airport",
    "start the engine",
    "try a new recipe",
    "arrive on time",
    "eat at home",
    "call before noon",
    "buy several tickets at a time",
    "meet most of the team",
)
VERBS = ("do", "have", "use", "get", "see", "choose", "buy", "make", "visit", "look at", "go for")
HORIZON_WORDINGS = {
    1: "within a day",
    7: "within a week",
    14: "in the next two weeks",
    30: "within 30 days",
    60: "in the next two months",
    90: "in the next three months",
}
FRAME_VERBS = 8  # of staying and of leaving, in each frame
FRAME_TOPICS = 60


@dataclass(frozen=True)
class Wording:
    """A question about a concept.

    Args:
        query: Its text, with the word "user".
        measure: One of `MEASURES`.
        sign: 1 if yes means that the concept is true, -1 if it means the contrary.
        days: Horizon that it names; 0 for the users' own.
        held_out: Whether it is for tests only.
    """

    query: str
    measure: str
    sign: int
    days: int
    held_out: bool


def templates(concept: Concept) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the wordings whose yes means that a concept is true, and those that deny it.

    Args:
        concept: The concept.
    """
    any_event = not concept.things
    if concept.measure == "occurs":
        if any_event:
            return ANY_WORDINGS, NONE_WORDINGS
        if concept.family == "time":
            return TIME_WORDINGS, ()
        return OCCURS, NOT_OCCURS
    if concept.measure == "more":
        return (ANY_MORE if any_event else MORE_WORDINGS), ()
    if concept.measure == "less":
        return (ANY_LESS if any_event else LESS_WORDINGS), ()
    if concept.measure == "first":
        return FIRST_WORDINGS, ()
    if concept.measure == "exceeds":
        return EXCEEDS_WORDINGS, ()
    if concept.measure == "share":
        return SHARE_WORDINGS, ()
    if any_event:
        return ANY_OFTEN, ANY_SELDOM
    return (HIGH_WORDINGS if concept.family == "number" else OFTEN_WORDINGS), ()


def _staying_and_leaving(rng: np.random.Generator) -> list[Wording]:
    """Return every frame with some verbs of staying and leaving; the sense is their product."""
    found = []
    for sense, frames in ((1, AFFIRMING), (-1, DENYING)):
        for frame in frames:
            for verb_sense, verbs in ((1, STAY_VERBS), (-1, LEAVE_VERBS)):
                for verb in rng.choice(verbs, FRAME_VERBS, replace=False):
                    query = frame.format(user="user", v=verb, when=str(rng.choice(NEXT)))
                    query = query.replace(" ?", "?")
                    is_last = frame == frames[-1]
                    found.append(Wording(query, "occurs", sense * verb_sense, 0, is_last))
    return found


def behavior_wordings(rng: np.random.Generator) -> list[Wording]:
    """Return questions about staying and leaving, of any users.

    Args:
        rng: Random generator that chooses verbs and times.
    """
    return wordings(Concept("behavior:any", "behavior", "any event", ()), rng)


def topic_wordings(rng: np.random.Generator) -> list[Wording]:
    """Return questions about everyday topics, good and bad, in frames that affirm, that deny, and
    that ask how much.

    They say nothing of any data set; they only teach what denies a question and what it measures.

    Args:
        rng: Random generator that chooses topics, times and amounts.
    """
    found = []
    frames = [("occurs", 1, frame) for frame in AFFIRMING]
    frames += [("occurs", -1, frame) for frame in DENYING]
    frames += [("high", -1, frame) for frame in SELDOM]
    frames += [(measure, 1, frame) for measure, texts in MEASURING.items() for frame in texts]
    topics = rng.choice(TOPICS, FRAME_TOPICS, replace=False)  # the same, or they would tell frames
    for measure, sense, frame in frames:
        for topic in topics:
            when = str(rng.choice(NEXT))
            amount = int(rng.choice(AMOUNTS))
            query = frame.format(user="user", v=topic, when=when, n=amount).replace(" ?", "?")
            found.append(Wording(query, measure, sense, 0, False))
    return found


def wordings(concept: Concept, rng: np.random.Generator, n: int = 16) -> list[Wording]:
    """Return questions about a concept.

    Args:
        concept: The concept.
        rng: Random generator that chooses verbs and times.
        n: Questions for each sense, at most (default 16).
    """
    found = []
    value = f"{concept.threshold:g}"
    for sign, texts in zip((1, -1), templates(concept), strict=True):
        for place, text in enumerate(texts[:n]):
            days = 0
            when = str(rng.choice(NEXT))
            if "{when}" in text and rng.random() < 0.3:
                days = int(rng.choice(list(HORIZON_WORDINGS)))
                when = HORIZON_WORDINGS[days]
            verb = str(rng.choice(VERBS))
            query = text.format(user="user", t=concept.label, v=value, verb=verb, when=when)
            query = query.replace(" ?", "?")
            held_out = place == len(texts) - 1
            found.append(Wording(query, concept.measure, sign, days, held_out))
    if concept.measure == "occurs" and not concept.things:
        found += _staying_and_leaving(rng)
    return found


def behavior_queries() -> list[str]:
    """Return questions about behaviour in general: coming back, leaving, more, less and often."""
    texts = [*ANY_WORDINGS, *NONE_WORDINGS, *ANY_MORE, *ANY_LESS, *ANY_OFTEN, *ANY_SELDOM]
    return [text.format(user="user", when="next month") for text in texts]
