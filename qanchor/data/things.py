"""Things: what the users' events are of, and how often each user had them in any window."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.data.users import Users

MAX_TEXTS = 4000  # distinct texts that become things; of more, the most frequent
MAX_LABEL_LENGTH = 80
MIN_PART = 0.8  # of a column's numbers that are at most the amount, if it is a part of it
DAY_PARTS = ("night", "morning", "afternoon", "evening")
WEEK_PARTS = ("weekday", "weekend")
PART_OF_HOUR = np.repeat(DAY_PARTS, 6)
PART_OF_WEEKDAY = np.repeat(WEEK_PARTS, [5, 2])
MONEY_WORDS = frozenset(
    [
        "amount",
        "spend",
        "spent",
        "price",
        "cost",
        "costs",
        "dollars",
        "euros",
        "usd",
        "eur",
        "gbp",
        "money",
        "payment",
        "revenue",
        "sales",
        "total",
        "value",
        "turnover",
        "monetary",
    ]
)
KINDS = ("text", "modality", "number", "time", "attribute")
SHARE_BASES = ("events", "occasions", "amount")  # what a share of a thing is a share of


@dataclass(frozen=True)
class Thing:
    """Something that a question can point at: a text, a modality, a number, a time, an attribute.

    Args:
        name: Stable name, such as "text:payment_done".
        kind: One of `KINDS`.
        label: Its name in plain words, such as "payment done".
        modality: Modality of most of its events; empty for times and attributes.
        alias: What questions call it, if they would not use its label; empty for none.
    """

    name: str
    kind: str
    label: str
    modality: str = ""
    alias: str = ""

    @property
    def words(self) -> str:
        """Return the words that questions are compared with."""
        return self.alias or self.label


def plain_label(text: str) -> str:
    """Return a code or path as words: snake case, camel case, paths and long ids split or replaced.

    Args:
        text: Text of an event, or name of a column.

    Example:
        >>> plain_label("payment_done"), plain_label("viewProduct2"), plain_label("cart/4f9a1be2c3")
        ('payment done', 'view product 2', 'cart <n>')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(text))
    words = re.sub(r"[_/>|\\:;=&?#+\-]+", " ", words)
    words = re.sub(r"\b(?=\w*\d)[0-9a-fA-F]{8,}\b", "<n>", words)
    words = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " ", words)
    words = re.sub(r"\s+", " ", words).strip().lower()
    return words[:MAX_LABEL_LENGTH] or str(text)[:MAX_LABEL_LENGTH]


class ThingEvents:
    """Say of which things every event is: its text, modality, numbers and time of day.

    Args:
        users: The users.
        until: Texts are listed from events before this time (default: the users' cut-off).
        main_number: Number column of the amounts (default: the one that most events have).
        share_bases: What the share of each thing is a share of, by name: one of `SHARE_BASES`
            (default: as the events say).

    Attributes: `main_number`, `things`, `index` (row of each thing by name), `share_base` (of each
    thing, a row of `SHARE_BASES`) and `rows`: one row per (event, thing) with `user`, `thing`,
    `time` in seconds and `value`; and `n_texts_left_out`, the distinct texts beyond the 4,000 most
    frequent.
    """

    def __init__(
        self,
        users: Users,
        until=None,
        main_number: str | None = None,
        share_bases: Mapping[str, str] | None = None,
    ):
        self.users = users
        past = users.history(until)
        if main_number is None:
            main_number = _main_number(past, users.numbers)
        self.main_number = main_number if main_number in users.numbers else ""
        self.things = _list_things(users, past)
        self.n_texts_left_out = max(past["text"].nunique() - MAX_TEXTS, 0)
        self.index = {thing.name: row for row, thing in enumerate(self.things)}
        if share_bases is None:
            share_bases = _find_share_bases(past, users.numbers, self.main_number)
        bases = [share_bases.get(thing.name, "events") for thing in self.things]
        self.share_base = np.array(list(map(SHARE_BASES.index, bases)))
        self.main_row = self.index.get(f"number:{self.main_number}", -1)
        self.modality_rows = [
            row for row, thing in enumerate(self.things) if thing.kind == "modality"
        ]
        self.rows = self._event_things()

    def amounts(self) -> np.ndarray:
        """Return the main number of every event; zeros without one."""
        if not self.main_number:
            return np.zeros(len(self.users.events))
        return np.nan_to_num(self.users.events[self.main_number].to_numpy(float))

    def rows_of(self, names: Iterable[str]) -> list[int]:
        """Return the rows of things by name; names that are no things are left out.

        Args:
            names: Names of things.
        """
        return [self.index[name] for name in names if name in self.index]

    def _rows_of(self, kind: str, names: Iterable[str]) -> np.ndarray:
        """Return the row of each thing, then -1 for none."""
        return np.array([*(self.index.get(f"{kind}:{name}", -1) for name in names), -1])

    def _event_things(self) -> dict[str, np.ndarray]:
        """Return one row per (event, thing): user, thing, time and amount."""
        events = self.users.events
        user = events["user"].cat.codes.to_numpy(np.int64)
        time = events["time"].to_numpy().astype("datetime64[s]").astype(np.int64)
        amount = self.amounts()
        parts = []

        def add(thing: np.ndarray, value: np.ndarray) -> None:
            at = np.flatnonzero(thing >= 0)
            parts.append((user[at], thing[at], time[at], value[at]))

        for kind in ("text", "modality"):
            cells = events[kind].cat
            rows = self._rows_of(kind, cells.categories)
            add(rows[cells.codes.to_numpy()], amount)  # code -1 of an empty cell: the last row
        for column in self.users.numbers:
            values = np.nan_to_num(events[column].to_numpy(float))
            add(np.where(values != 0, self.index[f"number:{column}"], -1), values)
        add(self._rows_of("time", PART_OF_HOUR)[events["time"].dt.hour], amount)
        add(self._rows_of("time", PART_OF_WEEKDAY)[events["time"].dt.day_of_week], amount)
        columns = zip(("user", "thing", "time", "value"), zip(*parts, strict=True), strict=True)
        return {name: np.concatenate(part) for name, part in columns}

    def days(self, start, end) -> np.ndarray:
        """Count the days of a window on which each user had any event. They are whole days back
        from its end, so that equal windows have equally many.

        Args:
            start: First time to include.
            end: First time not to include.
        """
        events = self.users.events
        inside = events[events["time"].between(start, end, inclusive="left")]
        day = (inside["time"] - pd.Timestamp(end)) // pd.Timedelta(days=1)
        days = pd.DataFrame({"user": inside["user"].cat.codes, "day": day}).drop_duplicates()
        return np.bincount(days["user"], minlength=len(self.users))

    def counts(self, start, end) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count what happens in a window, for the truth of concepts.

        Args:
            start: First time to include.
            end: First time not to include.

        Returns:
            Count, sum and largest amount of each (user, thing), for all users.
        """
        time = self.rows["time"]
        inside = (time >= pd.Timestamp(start).timestamp()) & (time < pd.Timestamp(end).timestamp())
        shape = (len(self.users), len(self.things))
        key = self.rows["user"][inside] * shape[1] + self.rows["thing"][inside]
        value = self.rows["value"][inside]
        size = shape[0] * shape[1]
        count = np.bincount(key, minlength=size).reshape(shape)
        total = np.bincount(key, value, minlength=size).reshape(shape)
        largest = np.zeros(size)
        np.maximum.at(largest, key, value)
        return count, total, largest.reshape(shape)

    def shares(self, count: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return how much of all that a user did each thing is, 0 to 1.

        Args:
            count: From `counts`.
            total: From `counts`.
        """
        events = count[:, self.modality_rows].sum(1, keepdims=True)
        bases = [events, events, events]
        if self.main_row >= 0:
            bases[1:] = count[:, [self.main_row]], total[:, [self.main_row]]
        return share_of_bases(self.share_base[None], count, total, bases)


def share_of_bases(base: np.ndarray, count: np.ndarray, total: np.ndarray, bases) -> np.ndarray:
    """Return shares, 0 to 1: of the events, of the occasions with an amount, or of the amount.

    Args:
        base: Row of `SHARE_BASES` of each thing.
        count: Events of each thing.
        total: Sum of each thing's number.
        bases: What a share is a share of, for each of `SHARE_BASES`.
    """
    part = np.where(base == 0, count, total)
    whole = np.choose(base, bases)
    return np.clip(part / np.maximum(whole, 1e-9), 0, 1)


def _find_share_bases(past: pd.DataFrame, numbers: tuple[str, ...], main: str) -> dict[str, str]:
    """Say what the share of each number column is a share of.

    A column of ratios has a mean per occasion; what is nearly always a part of the amount, such as
    a discount, has a share of it. All else has a share of the events.
    """
    bases = {}
    if not main:
        return bases
    for column in numbers:
        known = past[column][past[column].fillna(0) != 0]
        if column == main or known.empty:
            continue
        if known.between(0, 1).all() and known.min() < 1:
            bases[f"number:{column}"] = "occasions"
            continue
        amount = past[main][known.index]
        pairs = (known > 0) & (amount > 0)
        is_part = (known <= amount)[pairs].mean()
        if pairs.mean() >= MIN_PART and is_part >= MIN_PART:
            bases[f"number:{column}"] = "amount"
    return bases


def _main_number(past: pd.DataFrame, numbers: tuple[str, ...]) -> str:
    """Return the number column that most past events have; empty if there is none."""
    filled = past[list(numbers)].fillna(0).ne(0).sum()
    return filled.idxmax() if numbers else ""


def _list_things(users: Users, past: pd.DataFrame) -> tuple[Thing, ...]:
    """List what can be pointed at in the past events."""
    counts = past["text"].value_counts()
    counts = counts[counts > 0].head(MAX_TEXTS)
    sizes = past.groupby(["text", "modality"], observed=True).size().sort_values(kind="stable")
    modality = dict(sizes.index)  # of each text the last one, the most frequent

    def label(name: str) -> str:
        return plain_label(users.words.get(name) or name)

    things = []
    for text in sorted(counts.index):
        things.append(Thing(f"text:{text}", "text", label(text), modality[text]))
    for name in users.modalities:
        things.append(Thing(f"modality:{name}", "modality", label(name), name))
    for column in users.numbers:  # people ask what was spent, whatever money is called
        words = label(column)
        alias = "" if MONEY_WORDS.isdisjoint(words.split()) else f"{words} spent"
        things.append(Thing(f"number:{column}", "number", words, alias=alias))
    if (past["time"].dt.normalize() != past["time"]).any():
        for name in DAY_PARTS:
            things.append(Thing(f"time:{name}", "time", name))
    for name in WEEK_PARTS:
        things.append(Thing(f"time:{name}", "time", name))
    for column in users.tabular.columns:
        words = (users.words.get(column) or column).replace(".", " ")
        things.append(Thing(f"attribute:{column}", "attribute", plain_label(words)))
    return tuple(things)
