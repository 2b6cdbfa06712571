"""Things: what events consist of (texts, modalities, numbers, times), counted in time windows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.data.users import Users

MAX_TEXTS = 4000  # the most frequent distinct texts become things
MAX_LABEL_LENGTH = 80
MIN_PART = 0.8  # a column is part of the amount if this share of its numbers is at most the amount
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
SHARE_BASES = ("events", "occasions", "amount")  # possible denominators of a thing's share


@dataclass(frozen=True)
class Thing:
    """Something that a question can point at: a text, a modality, a number, a time, an attribute.

    Args:
        name: Stable name, such as "text:payment_done".
        kind: One of `KINDS`.
        label: Its name in plain words, such as "payment done".
        modality: Modality of most of its events; empty for times and attributes.
        alias: What questions call it instead of its label (default: empty, they use the label).
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
    """Turn a code or path into words: split snake case, camel case and paths; mask long ids.

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
    """List the things of each event: its text, modality, numbers, time of day and part of the week.

    Args:
        users: The users.
        until: Texts are listed from events before this time (default: the users' cut-off).
        main_number: Number column of the amounts (default: the one that most events have).
        share_bases: Denominator of each thing's share, by name: one of `SHARE_BASES` (default:
            inferred from the events).

    Attributes: `main_number`, `things`, `index` (row of each thing by name), `share_base` (position
    in `SHARE_BASES` for each thing), `rows` (one row per pair of event and thing: `user`, `thing`,
    `time` in seconds and `value`) and `n_texts_left_out` (distinct texts beyond the 4,000 most
    frequent).
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
        bases = [share_bases.get(name, "events") for name in self.index]
        self.share_base = np.array([SHARE_BASES.index(base) for base in bases])
        self.main_row = self.index.get(f"number:{self.main_number}", -1)
        self.modality_rows = self.rows_of(f"modality:{name}" for name in users.modalities)
        self.rows = self._event_things()

    def amounts(self) -> np.ndarray:
        """Return the main number of every event, 0 if it has none."""
        if not self.main_number:
            return np.zeros(len(self.users.events))
        return np.nan_to_num(self.users.events[self.main_number].to_numpy(float))

    def rows_of(self, names: Iterable[str]) -> list[int]:
        """Return the rows of things by name; unknown names are left out.

        Args:
            names: Names of things.
        """
        return [self.index[name] for name in names if name in self.index]

    def _rows_of(self, kind: str, names: Iterable[str]) -> np.ndarray:
        """Return the row of each thing (-1 if unknown), with a final -1 for empty cells."""
        rows = [self.index.get(f"{kind}:{name}", -1) for name in names]
        return np.array([*rows, -1])

    def _event_things(self) -> dict[str, np.ndarray]:
        """Return one row per (event, thing): user, thing, time and amount."""
        events = self.users.events
        amount = self.amounts()
        columns = []  # the thing of each event (-1 for none), and its value
        for kind in ("text", "modality"):
            cells = events[kind].cat
            rows = self._rows_of(kind, cells.categories)
            columns.append((rows[cells.codes], amount))  # code -1 of an empty cell: the last row
        for column in self.users.numbers:
            values = np.nan_to_num(events[column].to_numpy(float))
            row = self.index[f"number:{column}"]
            columns.append((np.where(values != 0, row, -1), values))
        hours = self._rows_of("time", PART_OF_HOUR)
        columns.append((hours[events["time"].dt.hour], amount))
        weekdays = self._rows_of("time", PART_OF_WEEKDAY)
        columns.append((weekdays[events["time"].dt.day_of_week], amount))
        user = events["user"].cat.codes.to_numpy(np.int64)
        time = events["time"].to_numpy().astype("datetime64[s]").astype(np.int64)
        parts = []
        for thing, value in columns:
            part = pd.DataFrame({"user": user, "thing": thing, "time": time, "value": value})
            parts.append(part[thing >= 0])
        table = pd.concat(parts)
        return {name: table[name].to_numpy() for name in table}

    def days(self, start, end) -> np.ndarray:
        """Count the days of a window on which each user had any event.

        Days are counted back from the end of the window, so windows of equal length have equally
        many.

        Args:
            start: First time to include.
            end: First time not to include.
        """
        events = self.users.events
        inside = events[events["time"].between(start, end, inclusive="left")]
        user = inside["user"].cat.codes
        day = (inside["time"] - pd.Timestamp(end)) // pd.Timedelta(days=1)
        days = pd.DataFrame({"user": user, "day": day}).drop_duplicates()
        return np.bincount(days["user"], minlength=len(self.users))

    def counts(self, start, end) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count what happens in a window, to decide which concepts are true.

        Args:
            start: First time to include.
            end: First time not to include.

        Returns:
            Number of events, sum and maximum of their values, each of shape (user, thing).
        """
        time = self.rows["time"]
        is_late = time >= pd.Timestamp(start).timestamp()
        inside = is_late & (time < pd.Timestamp(end).timestamp())
        value = self.rows["value"][inside]
        shape = (len(self.users), len(self.things))
        cell = self.rows["user"][inside] * shape[1] + self.rows["thing"][inside]
        count = np.bincount(cell, minlength=shape[0] * shape[1])
        total = np.bincount(cell, value, len(count))
        largest = np.zeros(len(count))
        np.maximum.at(largest, cell, value)
        return count.reshape(shape), total.reshape(shape), largest.reshape(shape)

    def shares(self, count: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Return the share of each thing in what each user did, 0 to 1.

        Args:
            count: Number of events (user, thing), from `counts`.
            total: Sum of values (user, thing), from `counts`.
        """
        events = count[:, self.modality_rows].sum(1, keepdims=True)
        bases = [events, events, events]
        if self.main_row >= 0:
            bases[1] = count[:, [self.main_row]]
            bases[2] = total[:, [self.main_row]]
        return share_of_bases(self.share_base[None], count, total, bases)


def share_of_bases(base: np.ndarray, count: np.ndarray, total: np.ndarray, bases) -> np.ndarray:
    """Return shares, 0 to 1: of the events, of the occasions with an amount, or of the amount.

    Args:
        base: Position in `SHARE_BASES` for each thing.
        count: Number of events of each thing.
        total: Sum of each thing's number.
        bases: The denominators, one for each of `SHARE_BASES`.
    """
    part = np.where(base == 0, count, total)
    whole = np.choose(base, bases)
    return np.clip(part / np.maximum(whole, 1e-9), 0, 1)


def _find_share_bases(past: pd.DataFrame, numbers: tuple[str, ...], main: str) -> dict[str, str]:
    """Infer the denominator of the share of each number column.

    For ratios (0 to 1) it is the number of occasions, which gives a mean. For a column that is
    nearly always part of the amount, such as a discount, it is the amount. Otherwise it is the
    number of events.
    """
    bases = {}
    if not main:
        return bases
    for column in numbers:
        if column == main:
            continue
        known = past.loc[past[column].fillna(0) != 0, [column, main]]
        values = known[column]
        positive = known[(values > 0) & (known[main] > 0)]
        is_part = (positive[column] <= positive[main]).mean()
        if values.between(0, 1).all() and values.min() < 1:
            bases[f"number:{column}"] = "occasions"
        elif len(positive) / max(len(known), 1) >= MIN_PART and is_part >= MIN_PART:
            bases[f"number:{column}"] = "amount"
    return bases


def _main_number(past: pd.DataFrame, numbers: tuple[str, ...]) -> str:
    """Return the number column that most past events have; empty if there is none."""
    filled = past[list(numbers)].fillna(0).ne(0).sum()
    return filled.idxmax() if numbers else ""


def _list_things(users: Users, past: pd.DataFrame) -> tuple[Thing, ...]:
    """List the things that questions can point at, from the past events."""
    counts = past["text"].value_counts()
    counts = counts[counts > 0].head(MAX_TEXTS)
    sizes = past.groupby(["text", "modality"], observed=True).size().sort_values(kind="stable")
    modality = dict(sizes.index)  # the last modality of a text wins: the most frequent one

    def label(name: str) -> str:
        return plain_label(users.words.get(name) or name)

    things = []

    def add(kind: str, name: str, words: str, modality: str = "", alias: str = "") -> None:
        things.append(Thing(f"{kind}:{name}", kind, words, modality, alias))

    for text in sorted(counts.index):
        add("text", text, label(text), modality[text])
    for name in users.modalities:
        add("modality", name, label(name), name)
    for column in users.numbers:
        words = label(column)
        is_money = not MONEY_WORDS.isdisjoint(words.split())
        # people ask what was spent, whatever the column is called
        add("number", column, words, alias=f"{words} spent" if is_money else "")
    times = WEEK_PARTS
    if (past["time"].dt.normalize() != past["time"]).any():
        times = DAY_PARTS + WEEK_PARTS
    for name in times:
        add("time", name, name)
    for column in users.tabular.columns:
        words = users.words.get(column) or column
        add("attribute", column, plain_label(words.replace(".", " ")))
    return tuple(things)
