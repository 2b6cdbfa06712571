"""A slow reference implementation of the truth and the grade of pairs: plain loops over events."""

from __future__ import annotations

import math

import pandas as pd

from qanchor.data.users import Users

DAY = pd.Timedelta(days=1)
PARTS = {"night": (0, 6), "morning": (6, 12), "afternoon": (12, 18), "evening": (18, 24)}
FIRST_YES = {"occurs": 1, "more": 2, "less": 2, "first": 1, "exceeds": 1, "high": 2, "share": 2}


class PairOracle:
    """Recompute grades from the events of the users before their cut-off, and nothing else.

    Args:
        users: The users given to `make_pairs`.
        concepts: The concepts by label, family and measure: things and thresholds.
    """

    def __init__(self, users: Users, concepts):
        self.users = users
        self.concepts = concepts
        events = users.events[users.events["time"] < users.cutoff]
        self.events = {user: [] for user in users.ids}
        for event in events.to_dict("records"):
            self.events[event["user"]].append(event)
        self.start = users.events["time"].min()

    def grades(self, pair) -> set[int]:
        """Return the grades that may be true of a pair; more than one if concepts share a label.

        Args:
            pair: A row of `make_pairs`.
        """
        key = (pair.concept, pair.family, pair.measure)
        return {
            self._grade(concept, pair)
            for concept in self.concepts
            if (concept.label, concept.family, concept.measure) == key
        }

    def answer(self, pair) -> str:
        """Return whether the answer of a pair with this grade and sign begins with yes or no.

        Args:
            pair: A row of `make_pairs`.
        """
        is_true = pair.grade >= FIRST_YES[pair.measure]
        return "Yes" if is_true == (pair.sign > 0) else "No"

    def _grade(self, concept, pair) -> int:
        end = pair.cutoff + pair.horizon_days * DAY
        future = self._amount(concept, pair.user, pair.cutoff, end)
        before = self._amount(concept, pair.user, self.start, pair.cutoff)
        first = min(event["time"] for event in self.events[pair.user])
        tenure = math.floor((pair.cutoff - first) / pd.Timedelta(seconds=1)) / 86400
        rate = before / (max(tenure, pair.horizon_days / 2) / pair.horizon_days)
        if concept.measure == "occurs":
            return 0 if not future else 1 if future < 2 else 2 if future < 4 else 3
        if concept.measure == "more":
            return 2 if future > 1.25 * rate else 1 if future >= 0.5 * rate else 0
        if concept.measure == "less":
            return 2 if future < 0.5 * rate else 1 if future <= 1.25 * rate else 0
        if concept.measure == "first":
            return int(future > 0 and not before)
        if concept.measure == "exceeds":
            values = [
                self._value(concept, event) for event in self._of(pair.user, pair.cutoff, end)
            ]
            return int(max(values, default=0) >= concept.threshold)
        if concept.measure == "share":
            return self._top(self._share, concept, pair, end, future)
        return self._top(self._amount, concept, pair, end, future)

    def _top(self, measure, concept, pair, end, future) -> int:
        """Return 2 for the top quarter of the users who have any, 1 for others who have some."""
        seen = [u for u in self.users.ids if self.events[u] and self._has_past(u, pair.cutoff)]
        values = {user: measure(concept, user, pair.cutoff, end) for user in seen}
        positive = sorted(value for value in values.values() if value > 0)
        if not positive:
            return int(future > 0)
        place = 0.75 * (len(positive) - 1)
        low = positive[math.floor(place)]
        high = positive[math.ceil(place)]
        limit = low + (high - low) * (place - math.floor(place))
        return int(values[pair.user] >= limit - 1e-9 * abs(limit)) + int(future > 0)

    def _has_past(self, user, cutoff) -> bool:
        return any(event["time"] < cutoff for event in self.events[user])

    def _of(self, user, start, end) -> list[dict]:
        return [event for event in self.events[user] if start <= event["time"] < end]

    def _amount(self, concept, user, start, end) -> float:
        events = self._of(user, start, end)
        if not concept.things:
            return len({(end - event["time"] - pd.Timedelta(1, "ns")) // DAY for event in events})
        if concept.family == "number" and concept.measure in ("high", "more", "less"):
            return sum(self._value(concept, event) for event in events)
        return sum(self._count(concept, event) for event in events)

    def _share(self, concept, user, start, end) -> float:
        """Return the share of all events; `number` concepts have other shares and are not asked."""
        events = self._of(user, start, end)
        of_things = 0.0
        for name in concept.things:
            n = sum(name in self._names(event) for event in events)
            of_things += n / len(events) if events else 0
        return of_things

    def _count(self, concept, event) -> int:
        return len(set(concept.things) & self._names(event))

    def _value(self, concept, event) -> float:
        [name] = concept.things
        value = event[name.removeprefix("number:")]
        return 0.0 if math.isnan(value) else value

    def _names(self, event) -> set[str]:
        """Return the things that an event is of."""
        time = event["time"]
        names = {f"text:{event['text']}", f"modality:{event['modality']}"}
        names |= {
            f"number:{column}"
            for column in self.users.numbers
            if event[column] and not math.isnan(event[column])
        }
        names.add(f"time:{'weekend' if time.weekday() >= 5 else 'weekday'}")
        names |= {f"time:{part}" for part, (a, b) in PARTS.items() if a <= time.hour < b}
        return names
