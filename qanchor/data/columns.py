"""Infer the role of each column of an events table from its name and its values."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

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
WORD_FOR_ALL = {"text": "word", "modality": "kind"}  # field for a name that is not a column
WHOLE = r"\d+(\.0+)?"
CODE = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-.*|[0-9a-fA-F]{16,}"


@dataclass
class Roles:
    """Which column plays which role.

    Args:
        user: Column of the user ids.
        time: Columns of the time: one, or a day and a time of day.
        text: Columns whose words are joined to say what happened; if empty, the text of all events
            is `word`.
        modality: Column of the modality; None if the modality of all events is `kind`.
        numbers: Number columns.
        words: Other columns of words.
        attributes: Columns that describe the user; None if they have to be inferred.
        left_out: The reason for each column that is not used.
        word: Text of events without a text.
        kind: Modality of all events if there is no column for it.
    """

    user: str | None = None
    time: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    modality: str | None = None
    numbers: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    attributes: list[str] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    word: str = "event"
    kind: str = "event"

    def taken(self) -> set[str]:
        """Return the columns that have a role already."""
        used = {self.user, self.modality, *self.time, *self.text, *self.numbers}
        used |= {*self.words, *(self.attributes or ()), *self.left_out}
        return used - {None}


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
    finder = _Finder(table)
    finder.take_known(known)
    finder.leave_out_nothings()
    roles = finder.roles
    if not roles.time:
        finder.find_time()
    if not roles.user:
        finder.find_user()
    if "text" not in known:
        finder.find_text()
    if "modality" not in known:
        finder.find_modality()
    finder.sort_rest("numbers" in known)
    has_words = "text" in known or roles.text or roles.words
    if not has_words and any(_is_named(MONEY_NAMES, name) for name in roles.numbers):
        roles.word = "purchase"
    return roles


class _Finder:
    """Assign a role to each column, step by step."""

    def __init__(self, table: Table, one_row_per_user: bool = False):
        self.one_row_per_user = one_row_per_user
        self.table = table
        self.frame = table.frame
        self.kinds = {name: kind_of(self.frame[name]) for name in self.frame}
        self.roles = Roles()

    def take_known(self, known: dict) -> None:
        roles = self.roles
        for role, given in known.items():
            names = _listed(given)
            if role in WORD_FOR_ALL and not self._may_be_column(names[0]):
                setattr(roles, WORD_FOR_ALL[role], str(names[0]))
                continue
            existing = [self._column(role, name) for name in names]
            setattr(roles, role, existing[0] if role in ("user", "modality") else existing)

    def _may_be_column(self, name) -> bool:
        """Return whether this is the name of a column, or similar to one."""
        return bool(difflib.get_close_matches(str(name), list(self.frame), cutoff=0.8))

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
        free = [name for name in self.frame if name not in self.roles.taken()]
        return [name for name in free if not kinds or self.kinds[name] in kinds]

    def leave_out_nothings(self) -> None:
        left_out = self.roles.left_out
        for name in self._free():
            if self.kinds[name] == "empty":
                left_out[name] = "empty"
            elif self._is_row_number(name):
                left_out[name] = "row numbers"
            elif self.kinds[name] == "nested":
                left_out[name] = "lists or objects, not words or numbers"

    def _is_row_number(self, name: str) -> bool:
        if not _is_named(ROW_NUMBER_NAMES, name) or self.kinds[name] != "numbers":
            return False
        values = pd.to_numeric(self.frame[name], errors="coerce")
        return bool((values.diff().iloc[1:] == 1).all()) and len(values) > 1

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
        self.roles.time = times[:1]
        clocks = self._free("clock")
        if len(clocks) == 1 and self._has_days_only(times[0]):
            self.roles.time.append(clocks[0])
            message = f"a day, and {clocks[0]!r} is its time of day. They are joined."
            self.table.findings.add(times[0], None, message, "note")

    def _has_days_only(self, name: str) -> bool:
        cells = self.frame[name].dropna().astype(str)
        return bool((cells.str.strip().str.len() <= len("2025-01-31")).all())

    def find_user(self) -> None:
        free = self._free("words", "numbers")
        for names in NAMES["user"]:
            near = [name for name in free if _is_named(names, name)]
            if names == NAMES["user"][-1]:  # `id` may number the rows, `name` may be of a product
                near = [name for name in near if self._repeats(name)]
            if len(near) > 1:
                self._ask("user", near)
            if near:
                self.roles.user = near[0]
                return
        ids = [name for name in free if self._is_id(name) and self._repeats(name)]
        if len(ids) != 1:
            self._ask("user", ids or free)
        self.roles.user = ids[0]

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
        words = [name for name in self._free("words") if not self._is_id(name)]
        named = self._ranked("text", [name for name in words if name != "modality"])
        self.roles.text = named[:1]
        kinds = [name for name in named[1:] if _is_named("event_?type", name)][:1]
        n_kinds = self.frame[kinds].nunique().max()
        if n_kinds > MAX_MODALITIES:
            self.roles.text = kinds + named[:1]
            message = f"{n_kinds:,} kinds. The column is read as text, not as modality."
            self.table.findings.add(kinds[0], None, message, "note")

    def find_modality(self) -> None:
        for name in self._ranked("modality", self._free("words")):
            exact = plain_name(name) == "modality"
            if exact or self.frame[name].nunique() <= MAX_MODALITIES:
                self.roles.modality = name
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
        if not _is_named(CATEGORY_NAMES, name) or self.roles.text:
            return False
        return bool(_sample(self.frame[name]).astype(str).str.fullmatch(WHOLE).all())

    def sort_rest(self, numbers_are_known: bool = False) -> None:
        """Assign the remaining columns to numbers or words, or leave them out.

        Args:
            numbers_are_known: Whether the number columns are named, so that other numbers are left
                out (default False).
        """
        roles = self.roles
        for name in self._free():
            kind = self.kinds[name]
            values = self.frame[name]
            if kind in ("times", "clock"):
                roles.left_out[name] = "another time"
            elif self._is_id(name):
                roles.left_out[name] = "ids"
            elif kind == "numbers" and (name in REQUIRED or self._is_category(name)):
                roles.words.append(name)
            elif kind == "numbers" and numbers_are_known:
                roles.left_out[name] = "not named in numbers"
            elif kind == "numbers":
                roles.numbers.append(name)
            elif values.nunique(dropna=False) == 1:
                roles.left_out[name] = f"{shown(values.iloc[0])!r} in every row"
            else:
                roles.words.append(name)


def _listed(value) -> list:
    return [value] if isinstance(value, str | int) else list(value)


def may_be_attribute(name: str) -> bool:
    """Return whether a number column may describe the user: amounts and counts never do.

    Args:
        name: Name of the column.

    Example:
        >>> may_be_attribute("age"), may_be_attribute("amount_rur")
        (True, False)
    """
    return not _is_named(SUMMED_NAMES, name)


def find_attributes(
    frame: pd.DataFrame, columns: list[str], user: pd.Series, past: pd.Series
) -> list[str]:
    """Return the columns that are constant for each user over the history.

    Args:
        frame: The events.
        columns: Candidate columns.
        user: The user id of each event.
        past: Mask of the events of the history; the others are ignored.

    Returns:
        The constant columns that differ between users; none if there is only one user, or if most
        events are the only one of their user.
    """
    ids = user[past]
    repeated = ids.duplicated(keep=False)
    if repeated.mean() < 0.5 or ids.nunique() < 2:
        return []
    constant = []
    for name in columns:
        cells = frame.loc[past, name]
        pairs = pd.DataFrame({"user": ids, "cell": cells}).dropna().drop_duplicates()
        if pairs["user"].is_unique and pairs["cell"].nunique() > 1:
            constant.append(name)
    return constant


def find_fact_columns(table: Table) -> Roles:
    """Find the user, the numbers and the words of a table with one row per user.

    Args:
        table: Facts or labels.

    Returns:
        The roles; an empty column counts as numbers.

    Raises:
        DataError: The user column is not clear.
    """
    finder = _Finder(table, one_row_per_user=True)
    for name, kind in finder.kinds.items():
        if kind == "empty" and name:
            finder.roles.numbers.append(name)
    finder.leave_out_nothings()
    finder.find_user()
    finder.sort_rest()
    return finder.roles
