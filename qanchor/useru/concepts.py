"""Concepts: what questions can ask about, induced from the users' events, and the true outcomes.

Induction reads only events before the earliest training cut-off and is deterministic.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from numpy.random import Generator

from qanchor.data.things import Thing, ThingEvents
from qanchor.useru.topics import TOPICS
from qanchor.utils.io import read_resource_rows

MAX_TEXT_CONCEPTS = 256
MIN_SHARE = 0.004  # of the (user, cut-off) samples in which a concept is true
MAX_SHARE = 0.98
N_CLUSTERS = (20, 60)  # clusters of texts: a coarse and a fine partition
MAX_CLUSTER_TEXTS = 2000
QUANTILES = (0.5, 0.75, 0.9)  # of a number column, used as thresholds
HELD_OUT_SHARE = 0.15  # of the concepts, chosen by hash of the name
FAMILIES = ("text", "cluster", "topic", "modality", "number", "time", "behavior")
MEASURES = ("occurs", "more", "less", "first", "exceeds", "high", "share")
SUMMED_MEASURES = ("high", "more", "less")  # of a number column: its sum, not the event count
MEASURES_OF_KIND = {  # of things other than texts; numbers have additional ones
    "modality": ("occurs", "more", "less", "high", "share"),
    "time": ("occurs", "more"),
    "number": ("high", "more", "less"),
}
ANY_EVENT = "any event"
MORE = 1.25  # times the former rate
LESS = 0.5


@dataclass(frozen=True)
class Concept:
    """Something that can be asked about users and computed from their events.

    Args:
        name: Stable name, such as "text:payment_done" or "number:amount>=50".
        family: One of `FAMILIES`.
        label: What people call it, such as "payment done".
        things: Names of the things whose events count; empty means any event.
        measure: One of `MEASURES`: it "occurs"; it occurs "more" or "less" than before; it occurs
            for the "first" time; a single amount reaches the threshold ("exceeds"); its amount is
            in the top quarter ("high"), or its share of all that the user does is ("share").
        threshold: Smallest amount that counts, for "exceeds"; for "high" the smallest number of
            events (of any event: active days), or 0 for the top quarter.
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


BEHAVIOR = Concept("behavior:any", "behavior", ANY_EVENT, ())


def _split(name: str) -> str:
    """Return the split of a concept, by hash of its name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:4]) / 2**32
    return "held_out" if place < HELD_OUT_SHARE else "train"


def induce_concepts(
    events: ThingEvents,
    vectors: Float[np.ndarray, "thing text"],
    cutoff: pd.Timestamp,
    topics: Mapping[str, tuple[str, ...]],
) -> tuple[Concept, ...]:
    """Return the concepts of a data set.

    Args:
        events: Events of the users, made with `until=cutoff` so that later ones have no influence.
        vectors: Text vector of each thing.
        cutoff: The earliest training cut-off.
        topics: Names of the things that belong to each topic, by the label of the topic.
    """
    start = events.users.events["time"].min()
    count, _, largest = events.counts(start, cutoff)
    active = count.any(1)
    share = (count[active] > 0).sum(0) / max(active.sum(), 1)
    things = events.things
    concepts = [BEHAVIOR]
    for measure in ("more", "less", "high"):
        concepts.append(replace(BEHAVIOR, name=f"behavior:{measure}", measure=measure))
    texts = [row for row in np.flatnonzero(share) if things[row].kind == "text"]
    texts.sort(key=lambda row: (-share[row], things[row].name))
    texts = texts[:MAX_CLUSTER_TEXTS]
    for row in texts[:MAX_TEXT_CONCEPTS]:
        concepts += _of_text(things[row], share[row])
    concepts += _clusters([things[row] for row in texts], vectors[texts])
    for label, names in topics.items():
        concepts.append(Concept(f"topic:{label}", "topic", label, names))
    for row, thing in enumerate(things):
        least = 0 if thing.kind == "modality" else MIN_SHARE
        if share[row] <= least:
            continue
        concepts += _of_thing(thing, *MEASURES_OF_KIND.get(thing.kind, ()))
        if thing.kind == "number":
            if events.share_base[row]:
                concepts += _of_thing(thing, "share")
            concepts += _thresholds(thing, largest[active, row])
    unique = {concept.name: concept for concept in concepts}
    return tuple(replace(concept, split=_split(name)) for name, concept in unique.items())


def _of_text(thing: Thing, share: float) -> list[Concept]:
    """Return the concepts about a text, given the share of users that have it."""
    concepts = []
    if share > MIN_SHARE:
        concepts += _of_thing(thing, "occurs")
    if share > 0.1:
        concepts += _of_thing(thing, "more", "high", "share")
    if 0.02 < share < 0.7:
        concepts += _of_thing(thing, "first")
    return concepts


def _of_thing(thing: Thing, *measures: str) -> list[Concept]:
    """Return one concept about a thing for each measure."""
    concepts = []
    for measure in measures:
        name = thing.name if measure == "occurs" else f"{thing.name}:{measure}"
        concepts.append(Concept(name, thing.kind, thing.label, (thing.name,), measure))
    return concepts


def _thresholds(thing: Thing, largest: np.ndarray) -> list[Concept]:
    """Return concepts about a large amount in a single event."""
    values = largest[largest > 0]
    if not len(values):
        return []
    concepts = []
    for value in np.quantile(values, QUANTILES):
        threshold = float(f"{value:.2g}")
        name = f"{thing.name}>={threshold:g}"
        concepts.append(Concept(name, "number", thing.label, (thing.name,), "exceeds", threshold))
    return concepts


def _clusters(texts: list[Thing], vectors: np.ndarray) -> list[Concept]:
    """Return clusters of similar texts, named after their two most central members."""
    from sklearn.cluster import MiniBatchKMeans

    concepts = []
    for n in N_CLUSTERS:
        if len(texts) < 4 * n:
            continue
        kmeans = MiniBatchKMeans(n, random_state=0, n_init=3).fit(vectors)
        for cluster, center in enumerate(kmeans.cluster_centers_):
            members = np.flatnonzero(kmeans.labels_ == cluster)
            if len(members) < 2:
                continue
            order = np.argsort(-vectors[members] @ center, kind="stable")
            label = " or ".join(texts[row].label for row in members[order[:2]])
            names = tuple(texts[row].name for row in members)
            concepts.append(Concept(f"cluster:{n}:{label}", "cluster", label, names))
    return concepts


@dataclass(frozen=True)
class Window:
    """Hold the activity of users in a time window.

    Args:
        count: Number of events, (user, thing).
        total: Sum of the amounts, (user, thing).
        largest: Largest amount, (user, thing).
        days: Number of days with any event, (user,).
    """

    count: np.ndarray
    total: np.ndarray
    largest: np.ndarray
    days: np.ndarray


@dataclass(frozen=True)
class Outcomes:
    """Hold the activity of users before and after a cut-off.

    Args:
        after: Activity in the window after the cut-off.
        before: Activity before the cut-off.
        horizons: Length of each user's history as a multiple of the window, at least 0.5; (user,).
    """

    after: Window
    before: Window
    horizons: np.ndarray

    @classmethod
    def of(cls, events: ThingEvents, rows: np.ndarray, cutoff: pd.Timestamp, days: int) -> Outcomes:
        """Count the activity of users before and after a cut-off.

        Args:
            events: Events of the users.
            rows: Row numbers of the users in `events.users.ids`.
            cutoff: Start of the window.
            days: Length of the window in days.
        """

        def window(start, end) -> Window:
            counts = [part[rows] for part in events.counts(start, end)]
            return Window(*counts, events.days(start, end)[rows])

        day = pd.Timedelta(days=1)
        first = events.users.events.groupby("user", observed=False)["time"].min()
        tenure = ((cutoff - first) / day).to_numpy()[rows]
        horizons = np.maximum(tenure, days / 2) / days
        after = window(cutoff, cutoff + days * day)
        before = window(first.min(), cutoff)
        return cls(after, before, horizons)

    def truth(
        self, events: ThingEvents, concepts: Sequence[Concept]
    ) -> Float[np.ndarray, "user concept"]:
        """Return whether each concept is true of each user: 1, 0, or NaN if unknown.

        Args:
            events: Events that the outcomes were counted from.
            concepts: The concepts.
        """
        out = np.zeros((len(self.horizons), len(concepts)), np.float32)
        share = events.shares(self.after.count, self.after.total)
        for column, concept in enumerate(concepts):
            rows = events.rows_of(concept.things)
            future, before = self.amounts(events, concept)
            if concept.measure == "share":
                is_high = _in_upper_quarter(share[:, rows].sum(1))
                answer = np.where(self.after.days > 0, is_high, np.nan)
            elif concept.measure == "exceeds":
                largest = self.after.largest[:, rows].max(1, initial=0)
                answer = largest >= concept.threshold
            elif concept.measure != "high":
                answer = self.answer(concept.measure, future, before)
            elif concept.threshold:
                answer = future >= concept.threshold
            else:
                answer = _in_upper_quarter(future)
            out[:, column] = answer
        return out

    def amounts(
        self, events: ThingEvents, concept: Concept
    ) -> tuple[Num[np.ndarray, " user"], Num[np.ndarray, " user"]]:
        """Return the amount of a concept after the cut-off and before it.

        The amount is the number of events; for "any event", the number of active days, since one
        visit may be many events; for a number column with a measure in `SUMMED_MEASURES`, the sum.

        Args:
            events: Events that the outcomes were counted from.
            concept: The concept.
        """
        if not concept.things:
            return self.after.days, self.before.days
        rows = events.rows_of(concept.things)
        is_sum = concept.family == "number" and concept.measure in SUMMED_MEASURES

        def amount(window: Window) -> np.ndarray:
            of_thing = window.total if is_sum else window.count
            return of_thing[:, rows].sum(1)

        return amount(self.after), amount(self.before)

    def answer(self, measure: str, future: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return whether a measure is true of each user: 1, 0, or NaN if unknown.

        Args:
            measure: "occurs", "more", "less" or "first".
            future: Amounts after the cut-off; users are the first axis.
            before: Amounts before the cut-off, of the same shape.
        """
        rate = (before.T / self.horizons).T  # per window
        if measure == "more":
            return future > MORE * rate
        if measure == "less":
            return np.where(before > 0, future < LESS * rate, np.nan)
        if measure == "first":
            return (future > 0) & (before == 0)
        return future > 0

    def targets(self, events: ThingEvents, measure: str) -> np.ndarray:
        """Return regression targets (user, thing + 1) of a measure; the last column is any event.

        "high" gives log amounts, "exceeds" the log of the largest amount, "share" the share itself
        (NaN if unknown), and the other measures what `answer` returns.

        Args:
            events: Events that the outcomes were counted from.
            measure: One of `MEASURES`.
        """
        if measure == "share":
            share = events.shares(self.after.count, self.after.total)
            share[self.after.days == 0] = np.nan
            unknown = np.full(len(share), np.nan)
            return np.column_stack([share, unknown])
        if measure == "exceeds":
            largest = self.after.largest
            of_any = largest[:, events.modality_rows].max(1, initial=0)
            return np.log1p(np.column_stack([largest, of_any]).clip(min=0))
        is_number = np.array([thing.kind == "number" for thing in events.things])
        is_sum = is_number & (measure in SUMMED_MEASURES)

        def amount(window: Window) -> np.ndarray:
            of_thing = np.where(is_sum, window.total.clip(min=0), window.count)
            return np.column_stack([of_thing, window.days])

        future = amount(self.after)
        if measure == "high":
            return np.log1p(future)
        return self.answer(measure, future, amount(self.before))


def _in_upper_quarter(values: np.ndarray) -> np.ndarray:
    """Return which values are in the upper quarter of the positive values."""
    positive = values[values > 0]
    limit = np.quantile(positive, 0.75) if len(positive) else np.inf
    return values >= limit


# -- wordings --

NEXT = ("in the next month", "soon", "in the coming weeks", "next month", "")
AMOUNTS = (2, 3, 5, 10, 20, 50, 100, 500)
VERBS = ("do", "have", "use", "get", "see", "choose", "buy", "make", "visit", "look at", "go for")
HORIZON_WORDINGS = {
    1: "within a day",
    7: "within a week",
    14: "in the next two weeks",
    30: "within 30 days",
    60: "in the next two months",
    90: "in the next three months",
}
FRAME_VERBS = 14  # of staying, and as many of leaving, in each frame
FRAME_TOPICS = 60
WRITTEN_TIMES = 4  # how many times each hand-written question is taught: a tenth of such questions


def _read_wordings() -> dict[tuple[str, str, int], list[str]]:
    texts = {}
    for row in read_resource_rows("qanchor.useru", "wordings.csv"):
        key = (row["kind"], row["measure"], int(row["sense"]))
        texts.setdefault(key, []).append(row["text"])
    return texts


# Question templates by kind of concept, measure, and sign: 1 if yes means that the concept is true,
# -1 if yes means that it is false. {user} is the unit word, {t} the label, {v} the threshold. The
# last template of each list is held out for tests. In frames, {v} is a verb of staying (1) or
# leaving (-1), or a topic, and {n} an amount. A topic must not reveal the sign: if a complaint
# happens, the answer is yes.
WORDINGS = _read_wordings()


@dataclass(frozen=True)
class Wording:
    """A question about a concept.

    Args:
        query: Text of the question; a user is called "user".
        measure: One of `MEASURES`.
        sign: 1 if yes means that the concept is true, -1 if yes means that it is false.
        days: Horizon in days that the question names; 0 means the default horizon.
        held_out: Whether it is held out for tests.
    """

    query: str
    measure: str
    sign: int
    days: int
    held_out: bool


def templates(concept: Concept) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the affirmative and the negated question templates of a concept.

    Args:
        concept: The concept.
    """
    kind = concept.family if concept.things else "any"
    if (kind, concept.measure, 1) not in WORDINGS:
        kind = "thing"
    affirming = WORDINGS[kind, concept.measure, 1]
    denying = WORDINGS.get((kind, concept.measure, -1), ())
    return tuple(affirming), tuple(denying)


def _fill(text: str, **values) -> str:
    """Fill a template; the time may be empty."""
    return text.format(user="user", **values).replace(" ?", "?")


def _staying_and_leaving(rng: Generator) -> list[Wording]:
    """Fill each frame with random verbs of staying and leaving; the signs of both multiply."""
    questions = []
    for sense in (1, -1):
        frames = WORDINGS["frame", "occurs", sense]
        for frame, verb_sense in product(frames, (1, -1)):
            verbs = WORDINGS["verb", "occurs", verb_sense]
            sign = sense * verb_sense
            is_last = frame == frames[-1]
            for verb in rng.choice(verbs, FRAME_VERBS, replace=False):
                query = _fill(frame, v=verb, when=rng.choice(NEXT))
                questions.append(Wording(query, "occurs", sign, 0, is_last))
    return questions


# hand-written questions that deny, or ask how much
DENIES_OR_MEASURES = re.compile(
    r"\b(?:avoid|behind|gone|leaving|miss|tight|every|frequent|grown|fallen|heavily|how|increase"
    r"|large|less|lot|most|often|raise|regularly|usual)\b",
    re.IGNORECASE,
)


def topic_wordings(rng: Generator) -> list[Wording]:
    """Return questions about everyday topics, in affirmative, negated and quantitative frames.

    They are independent of the data set and only teach the sign and the measure of a question.
    Frames are filled with other topics than the 72. Of the hand-written questions about these,
    those that affirm are added.

    Args:
        rng: Random generator that chooses topics, times and amounts.
    """
    questions = []
    # the same topics in all frames, so that the topic does not give the frame away
    topics = rng.choice(WORDINGS["everyday topic", "occurs", 1], FRAME_TOPICS, replace=False)
    for (kind, measure, sense), frames in WORDINGS.items():
        if kind != "frame":
            continue
        for frame, topic in product(frames, topics):
            when = rng.choice(NEXT)
            query = _fill(frame, v=topic, when=when, n=rng.choice(AMOUNTS))
            questions.append(Wording(query, measure, sense, 0, False))
    # what people are said to be, as in "Is this user price-conscious?", affirms without a verb
    written = []
    for topic in TOPICS:
        for text in topic.questions:
            if not DENIES_OR_MEASURES.search(text):
                written.append(Wording(text.format(user="user"), "occurs", 1, 0, False))
    return questions + WRITTEN_TIMES * written


def wordings(concept: Concept, rng: Generator) -> list[Wording]:
    """Return questions about a concept.

    Args:
        concept: The concept.
        rng: Random generator that chooses verbs and times.
    """
    questions = []
    value = f"{concept.threshold:g}"
    for sign, texts in zip((1, -1), templates(concept), strict=True):
        for text in texts:
            days = 0
            when = rng.choice(NEXT)
            if "{when}" in text and rng.random() < 0.3:
                days = int(rng.choice(list(HORIZON_WORDINGS)))
                when = HORIZON_WORDINGS[days]
            query = _fill(text, t=concept.label, v=value, verb=rng.choice(VERBS), when=when)
            is_last = text == texts[-1]
            questions.append(Wording(query, concept.measure, sign, days, is_last))
    if concept.measure == "occurs" and not concept.things:
        questions += _staying_and_leaving(rng)
    return questions


def behavior_queries() -> list[str]:
    """Return questions about behaviour in general: coming back, leaving, being more active, etc."""
    queries = []
    for (kind, *_), texts in WORDINGS.items():
        if kind == "any":
            queries += [text.format(user="user", when="next month") for text in texts]
        elif kind == "verb":
            queries += [f"Will this user {verb}?" for verb in texts]
    return queries
