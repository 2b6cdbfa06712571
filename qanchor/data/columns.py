"""Infer the role of each column of an events table from its name and its values."""

from __future__ import annotations

import difflib
import re

import numpy as np
import pandas as pd

from qanchor.data.cells import number_share
from qanchor.data.dates import looks_like_clock, looks_like_times
from qanchor.data.sources import Table
from qanchor.data.validation import COLUMN_MEANINGS, REQUIRED, did_you_mean, shown
from qanchor.errors import DataError

INFERRED_KINDS = {
    "date": "times",
    "datetime": "times",
    "datetime64": "times",
    "decimal": "numbers",
    "integer": "numbers",
    "floating": "numbers",
    "mixed-integer-float": "numbers",
    "boolean": "numbers",
}
NESTED_TYPES = (list, tuple, dict, set, np.ndarray)
SAMPLE = 2_000  # cells of a column that are inspected
MAX_MODALITIES = 20  # a column with more distinct values describes the event, not its source
SURE = 0.9  # share of cells that must be of a kind
PEOPLE = (
    "user|member|customer|client|account|household|patient|student|reader|subscriber|guest|visitor"
    "|player|donor|distinct|case|person|cust|kunde|kunden|mitglied|cliente|usuario|utilisateur"
)
# Usual column names for each role, in snake case, the most reliable first.
NAMES = {
    "user": (
        "user|user_?id",
        rf"({PEOPLE})_?(id|no|nr|num|number|nummer|key|code)|uid",
        rf"({PEOPLE}|who)s?",
        "id|card_?(id|no|nr|number)|name",
    ),
    "time": (
        "time|timestamp|event_?time(stamp)?|date_?time",
        "ts|date|day|when|datum|fecha|zeit|zeitpunkt|data|(created|occurred|happened)_?(at|on)",
        "(.+_)?(date|time|timestamp|datetime|at|day)",
    ),
    "text": (
        "text",
        "event|event_?name|activity|action",
        "description|title|what",
        "items?|product(_?name)?|details?|notes?|name",
        "event_?type",
    ),
    "modality": (
        "modality",
        "source|channel|platform",
        "event_?type",
        "type|kind|area|location|place|where",
    ),
}
MONEY_NAMES = (
    r"(.*_)?(amount|price|cost|costs|dollars|euros?|eur|usd|paid|revenue|spend|sales|betrag|preis)"
    r"(_.*)?"
)
# Numbers that are summed over events. They are never attributes, even if constant for each user.
SUMMED_NAMES = MONEY_NAMES + "|(.*_)?(quantity|qty|count|number|items|points|units|menge|anzahl)"
ID_NAMES = (
    r"(.+_)?(id|ids|uuid|guid|key|hash|session|no|nr|token|ip|url)|order|invoice|basket|transaction"
    r"|(stock|item|product|article)?_?(code|sku|ean|isbn|barcode)"
)
# Numbers that are codes of categories, not amounts. They are read as words.
CATEGORY_NAMES = "(.+_)?(group|category|class|type|mcc|segment|department)"
ROW_NUMBER_NAMES = "|index|row|rows?_?(id|no|nr|number)|nr|no|unnamed_0|level_0|column_1"
# where a name that is not a column is kept
DEFAULTS = {"text": "default_text", "modality": "default_modality"}
WHOLE = r"\d+(\.0+)?"
CODE = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-.*|[0-9a-fA-F]{16,}"


def plain_name(name: str) -> str:
    """Return a column name in snake case.

    Args:
        name: Name of a column.

    Example:
        >>> plain_name("CustomerID"), plain_name("Date/Time")
        ('customer_id', 'date_time')
    """
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"\W+|_+", "_", split.lower()).strip("_")


def _is_named(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, plain_name(name)) is not None


def kind_of(cells: pd.Series) -> str:
    """Return what a column holds: "empty", "nested", "numbers", "times", "clock" or "words".

    Args:
        cells: The column. Of a long column, 2,000 to 4,000 evenly spaced cells are inspected.
    """
    sample = _sample(cells)
    if any(isinstance(value, NESTED_TYPES) for value in sample):
        return "nested"
    inferred = pd.api.types.infer_dtype(sample)
    if inferred in INFERRED_KINDS:
        return INFERRED_KINDS[inferred]
    texts = sample.astype(str).str.strip()
    texts = texts[texts != ""]
    if texts.empty:
        return "empty"
    if texts.str.match(r"[{\[].*[}\]]$").mean() > SURE:
        return "nested"
    if looks_like_clock(texts):
        return "clock"
    if looks_like_times(texts):
        return "times"
    sure = SURE if len(texts) >= 20 else 0.5  # in a short table one wrong cell is a large share
    if number_share(texts) >= sure or texts.str.lower().isin(["true", "false"]).all():
        return "numbers"
    return "words"


def _sample(cells: pd.Series) -> pd.Series:
    known = cells.dropna()
    return known.iloc[:: max(1, len(known) // SAMPLE)].astype(object)


class Roles:
    """The role of each column of a table.

    Args:
        table: The table.
        one_row_per_user: Whether it holds facts or labels instead of events (default False).

    Attributes:
        user: Column of the user ids.
        time: Columns of the time: one, or a day and a time of day.
        text: Columns whose words are joined to say what happened; if empty, the text of all events
            is `default_text`.
        modality: Column of the modality; None if the modality of all events is `default_modality`.
        numbers: Number columns.
        words: Other columns of words.
        attributes: Columns that describe the user; None if they have to be inferred.
        left_out: The reason for each column that is not used.
        default_text: Text of events without a text.
        default_modality: Modality of all events if there is no column for it.
    """

    def __init__(self, table: Table, one_row_per_user: bool = False):
        self.table = table
        self.one_row_per_user = one_row_per_user
        self.frame = table.frame
        self.kinds = {name: kind_of(cells) for name, cells in table.frame.items()}
        self.user: str | None = None
        self.time: list[str] = []
        self.text: list[str] = []
        self.modality: str | None = None
        self.numbers: list[str] = []
        self.words: list[str] = []
        self.attributes: list[str] | None = None
        self.left_out: dict[str, str] = {}
        self.default_text = "event"
        self.default_modality = "event"

    def take_known(self, known: dict) -> None:
        """Assign the columns that the caller names.

        Args:
            known: A column, several, or a default, by role.
        """
        for role, given in known.items():
            names = [given] if isinstance(given, str | int) else given
            if role in DEFAULTS and not difflib.get_close_matches(
                str(names[0]), list(self.frame), cutoff=0.8
            ):
                setattr(self, DEFAULTS[role], str(names[0]))
                continue
            existing = [self._column(role, name) for name in names]
            setattr(self, role, existing[0] if role in ("user", "modality") else existing)

    def _column(self, role: str, name) -> str:
        if str(name) in self.frame:
            return str(name)
        message = (
            f"no column of this name{did_you_mean(name, self.frame)}."
            f" The columns are {', '.join(self.frame)}."
        )
        raise DataError(self.table.name, None, role, name, message)

    def _free(self, *kinds: str) -> list[str]:
        """Return the columns without a role, of some kinds (default: all)."""
        taken = {self.user, self.modality, *self.time, *self.text, *self.numbers, *self.words}
        taken |= {*(self.attributes or ()), *self.left_out}
        free = [name for name in self.frame if name not in taken]
        return [name for name in free if not kinds or self.kinds[name] in kinds]

    def leave_out_nothings(self) -> None:
        """Leave out columns that hold nothing of use."""
        for name in self._free():
            kind = self.kinds[name]
            if kind == "empty":
                self.left_out[name] = "empty"
            elif kind == "numbers" and self._is_row_number(name):
                self.left_out[name] = "row numbers"
            elif kind == "nested":
                self.left_out[name] = "lists or objects, not words or numbers"

    def _is_row_number(self, name: str) -> bool:
        if not _is_named(ROW_NUMBER_NAMES, name):
            return False
        values = pd.to_numeric(self.frame[name], errors="coerce")
        return len(values) > 1 and bool((values.diff().iloc[1:] == 1).all())

    def find_time(self) -> None:
        """Find the time column: by name among the columns of dates, else the only one of them."""
        days = self._free("times")
        times = self._ranked("time", days) or self._ranked("time", self._free("numbers"))
        if not times and len(days) > 1:
            self._ask("time", days)
        exact = NAMES["time"][0]  # trust such a name, even if few of the cells are times
        named = [name for name in self._free("words") if _is_named(exact, name)]
        times = times or days or named
        if not times:
            self._ask("time", self._ranked("time", self._free()) or self._free("words", "numbers"))
        day = times[0]
        self.time = [day]
        clocks = self._free("clock")
        cells = self.frame[day].dropna().astype(str).str.strip()
        if len(clocks) == 1 and (cells.str.len() <= len("2025-01-31")).all():
            self.time.append(clocks[0])
            message = f"a day, and {clocks[0]!r} is its time of day. They are joined."
            self.table.findings.add(day, None, message, "note")

    def find_user(self) -> None:
        """Find the user column: by name, else the only column of ids that repeat."""
        free = self._free("words", "numbers")
        *sure, unsure = NAMES["user"]
        for names in sure:
            near = [name for name in free if _is_named(names, name)]
            if near:
                break
        else:  # `id` may number the rows, `name` may be of a product
            repeated = [name for name in free if self._repeats(name)]
            near = [name for name in repeated if _is_named(unsure, name)]
            near = near or [name for name in repeated if self._is_id(name)]
        if len(near) != 1:
            self._ask("user", near or free)
        self.user = near[0]

    def _repeats(self, name: str) -> bool:
        return self.one_row_per_user or 2 * self.frame[name].nunique() <= len(self.frame)

    def _ranked(self, role: str, columns: list[str]) -> list[str]:
        """Return the columns whose names match a role, the most reliable names first."""
        return [name for pattern in NAMES[role] for name in columns if _is_named(pattern, name)]

    def _ask(self, role: str, near: list[str]) -> None:
        maybe = f" (is it {' or '.join(map(repr, near[:5]))}?)" if near else ""
        names = shown(list(self.frame))
        message = (
            f"no column is clearly the {role}{maybe}. It should hold {COLUMN_MEANINGS[role]}."
            f' Pass {role}="COLUMN", name it in about.json\'s "columns", or rename it to {role!r}.'
        )
        raise DataError(self.table.name, None, role, names, message)

    def find_text(self) -> None:
        """Find the text column, to which an event type of many kinds is joined."""
        words = [name for name in self._free("words") if not self._is_id(name)]
        named = self._ranked("text", [name for name in words if name != "modality"])
        self.text = named[:1]
        kinds = [name for name in named[1:] if _is_named("event_?type", name)][:1]
        n_kinds = self.frame[kinds].nunique().max()
        if n_kinds > MAX_MODALITIES:
            self.text = kinds + named[:1]
            message = f"{n_kinds:,} kinds. The column is read as text, not as modality."
            self.table.findings.add(kinds[0], None, message, "note")

    def find_modality(self) -> None:
        """Find the modality column: one that is named so, with few kinds."""
        for name in self._ranked("modality", self._free("words")):
            exact = plain_name(name) == "modality"
            if exact or self.frame[name].nunique() <= MAX_MODALITIES:
                self.modality = name
                return

    def _is_id(self, name: str) -> bool:
        """Return whether a column holds ids: an id-like name with digits, or code-like values."""
        sample = _sample(self.frame[name]).astype(str).str.strip()
        named = _is_named(ID_NAMES, name)
        if self.kinds[name] == "numbers":
            huge = sample.str.fullmatch(WHOLE).all() and sample.str.len().median() >= 15
            fraction = sample.str.contains(r"\.\d*[1-9]").any()
            return bool(huge or (named and not fraction))
        is_code = sample.str.fullmatch(CODE).mean() > SURE
        return bool(is_code or (named and sample.str.contains(r"\d").mean() > 0.5))

    def _is_category(self, name: str) -> bool:
        if not _is_named(CATEGORY_NAMES, name) or self.text:
            return False
        return bool(_sample(self.frame[name]).astype(str).str.fullmatch(WHOLE).all())

    def sort_rest(self, numbers_are_known: bool = False) -> None:
        """Assign the remaining columns to numbers or words, or leave them out.

        Args:
            numbers_are_known: Whether the number columns are named, so that other numbers are left
                out (default False).
        """
        for name in self._free():
            kind = self.kinds[name]
            if kind in ("times", "clock"):
                self.left_out[name] = "another time"
            elif self._is_id(name):
                self.left_out[name] = "ids"
            elif kind == "numbers":
                self._sort_number(name, numbers_are_known)
            elif self.frame[name].nunique(dropna=False) == 1:
                self.left_out[name] = f"{shown(self.frame[name].iloc[0])!r} in every row"
            else:
                self.words.append(name)

    def _sort_number(self, name: str, numbers_are_known: bool) -> None:
        if name in REQUIRED or self._is_category(name):
            self.words.append(name)
        elif numbers_are_known:
            self.left_out[name] = "not named in numbers"
        else:
            self.numbers.append(name)


def find_columns(table: Table, known: dict) -> Roles:
    """Find the role of every column.

    Args:
        table: The events.
        known: Columns that the caller names, by role: user, time, text, modality (a column, or a
            word for all events if there is no such column), numbers and attributes (lists).

    Returns:
        The roles.

    Raises:
        DataError: A named column does not exist, or the user or time column is not clear.
    """
    roles = Roles(table)
    roles.take_known(known)
    roles.leave_out_nothings()
    if not roles.time:
        roles.find_time()
    if not roles.user:
        roles.find_user()
    if "text" not in known:
        roles.find_text()
    if "modality" not in known:
        roles.find_modality()
    roles.sort_rest("numbers" in known)
    has_words = "text" in known or roles.text or roles.words
    if not has_words and any(_is_named(MONEY_NAMES, name) for name in roles.numbers):
        roles.default_text = "purchase"
    return roles


def may_be_attribute(name: str) -> bool:
    """Return whether a number column may describe the user: amounts and counts never do.

    Args:
        name: Name of the column.

    Example:
        >>> may_be_attribute("age"), may_be_attribute("amount_rur")
        (True, False)
    """
    return not _is_named(SUMMED_NAMES, name)


def find_attributes(frame: pd.DataFrame, user: pd.Series) -> list[str]:
    """Return the columns that are constant for each user.

    Args:
        frame: Candidate columns of the events of the history.
        user: The user id of each event.

    Returns:
        The constant columns that differ between users; none if there is only one user, or if most
        events are the only one of their user.
    """
    repeated = user.duplicated(keep=False)
    if repeated.mean() < 0.5 or user.nunique() < 2:
        return []
    varies = frame.groupby(user, observed=True).nunique().max() > 1
    differs = frame.nunique() > 1
    return list(frame.columns[differs & ~varies])


def find_fact_columns(table: Table) -> Roles:
    """Find the user, the numbers and the words of a table with one row per user.

    Args:
        table: Facts or labels.

    Returns:
        The roles; an empty column counts as numbers.

    Raises:
        DataError: The user column is not clear.
    """
    roles = Roles(table, one_row_per_user=True)
    roles.numbers = [name for name, kind in roles.kinds.items() if kind == "empty" and name]
    roles.leave_out_nothings()
    roles.find_user()
    roles.sort_rest()
    return roles
