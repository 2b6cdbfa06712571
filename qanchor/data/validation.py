"""Validation rules for events, facts and labels, the findings, and the report for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from qanchor.data.dates import parse_times
from qanchor.errors import DataError
from qanchor.utils.io import replace_surrogates
from qanchor.utils.text import count

COLUMN_MEANINGS = {  # the required columns of events, and what each holds
    "user": "the id of the user that a row is about",
    "time": "when it happened",
    "modality": "the kind of source a row comes from, such as payment, search or visit",
    "text": "what happened, in words, such as 'yoga class'",
}
REQUIRED = tuple(COLUMN_MEANINGS)
MAX_TEXT = 2_000  # characters; the text encoder reads only about 256 tokens
MIN_TIME = pd.Timestamp("1900-01-01")
MAX_TIME = pd.Timestamp("2200-01-01")  # exclusive
MAX_NUMBER = 1e15  # beyond it, sums of float64 amounts lose their cents
MAX_SHOWN = 80  # characters of a value in a finding
MAX_NAMES = 100  # of columns in a finding


@dataclass(frozen=True)
class Finding:
    """A finding in a table: the place, the value, and what to do or what was done.

    Args:
        file: Name of the file or table.
        row: First row, counted from 0 without the header; None for the table as a whole.
        rows: Number of rows; 0 for the table as a whole.
        column: Name of the column; None for the table as a whole.
        value: The value in the first row.
        message: What is wrong and what to do, or what was done.
        kind: "error" (cannot be used), "dropped" (rows left out), "changed" (values rewritten) or
            "note" (good to know).

    Example:
        >>> print(Finding("events.csv", 3, 2, "time", "soon", "not a time", "error"))
        events.csv, row 3, column 'time': 'soon': not a time (2 rows)
    """

    file: str
    row: int | None
    rows: int
    column: str | None
    value: object
    message: str
    kind: str = "error"

    def error(self) -> DataError:
        """Return the finding as an exception."""
        return DataError(self.file, self.row, self.column, self.value, self.message)

    def __str__(self) -> str:
        rows = f" ({count(self.rows, 'row')})" if self.rows > 1 else ""
        return f"{self.error()}{rows}"


class Findings:
    """Collect the findings of one table in a list that several tables may share.

    Args:
        file: Name of the table (default: empty).
        strict: Whether to raise the first error instead of collecting it (default False).
        found: The list to extend (default: a new one).
    """

    def __init__(self, file: str = "", strict: bool = False, found: list[Finding] | None = None):
        self.file = file
        self.strict = strict
        self.found = [] if found is None else found

    def of_table(self, file: str) -> Findings:
        """Return an object for another table that extends the same list.

        Args:
            file: Name of the table.
        """
        return Findings(file, found=self.found)

    def add(self, column, value, message: str, kind="error", row=None, rows=0) -> None:
        """Add a finding; the arguments are those of `Finding`.

        Raises:
            DataError: The findings are strict, and this is an error.
        """
        if column is not None:
            column = str(column)
        if self.strict and kind == "error":
            raise DataError(self.file, row, column, value, message)
        self.found.append(Finding(self.file, row, rows, column, shown(value), message, kind))

    def rows(self, cells: pd.Series, bad, message: str, kind: str = "error") -> None:
        """Add a finding about the rows where `bad` is true, if there are any.

        Args:
            cells: The column; its index holds the numbers of the rows in the file.
            bad: Boolean mask of the cells.
            message: What is wrong and what to do.
            kind: Kind of the finding (default "error").
        """
        at = np.flatnonzero(np.asarray(bad, bool))
        if len(at):
            row = int(cells.index[at[0]])
            self.add(cells.name, cells.iloc[at[0]], message, kind, row, len(at))

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of one kind, in order.

        Args:
            kind: "error", "dropped", "changed" or "note".
        """
        return [finding for finding in self.found if finding.kind == kind]

    def raise_errors(self) -> None:
        """Raise the first error and say how many more there are.

        Raises:
            DataError: There is an error.
        """
        errors = self.of("error")
        if not errors:
            return
        message = errors[0].message
        if len(errors) > 1:
            message += f" ({count(len(errors) - 1, 'more error')}: `qanchor check` lists all)"
        raise replace(errors[0], message=message).error()


def shown(value) -> object:
    """Shorten a value to fit on one line, and make it JSON serializable.

    Args:
        value: Any cell, or a list of names.

    Example:
        >>> shown(np.float64("nan")), shown(["a"] * 3), len(shown("x" * 500))
        (None, ['a', 'a', 'a'], 80)
    """
    if isinstance(value, list):
        names = [shown(name) for name in value[:MAX_NAMES]]
        return names + ["..."] * (len(value) > MAX_NAMES)
    if isinstance(value, np.generic):
        value = value.item()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    text = replace_surrogates(str(value))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


@dataclass
class Report:
    """How `read_events` read a table: the role of each column, and what it changed or left out.

    Args:
        source: Name of the events table.
        columns: Columns of each role (user, time, text, modality, numbers, attributes, left out).
        rows: Rows of the events table.
        kept: Rows that became events.
        sums: One row per number column, with its sums: `source`, which is `kept` plus `dropped`.
        findings: All findings.

    Example:
        >>> print(Report("events.csv", {"user": ["id"]}, 3, 3, pd.DataFrame(), []))
        events.csv: 3 of 3 rows are events.
          user: id
    """

    source: str
    columns: dict[str, list[str]]
    rows: int
    kept: int
    sums: pd.DataFrame
    findings: list[Finding]

    @property
    def dropped(self) -> int:
        """Number of rows that did not become events; findings of the kind "dropped" say why."""
        return self.rows - self.kept

    def to_dict(self) -> dict:
        """Return the report as plain data, for JSON."""
        sums = self.sums.to_dict("index")
        return asdict(self) | {"dropped": self.dropped, "sums": sums}

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kept:,} of {count(self.rows, 'row')} are events."]
        lines += [f"{role}: {', '.join(names)}" for role, names in self.columns.items() if names]
        lines += [f"{finding.kind}: {finding}" for finding in self.findings]
        for sums in self.sums.itertuples():
            if sums.dropped:
                lines.append(f"sum of {sums.Index}: {sums.kept:,.2f} of {sums.source:,.2f} is kept")
        return "\n  ".join(lines)


def has_surrogate(cells: pd.Series) -> pd.Series:
    """Return a mask of texts with a lone surrogate, which UTF-8 cannot encode.

    Only columns of dtype object can hold one.

    Args:
        cells: The column.
    """
    if cells.dtype != object:
        return pd.Series(False, index=cells.index)
    return cells.map(lambda text: isinstance(text, str) and replace_surrogates(text) != text)


LIKE_A_LABEL = "named like a label, which must never be an input. Drop the column, or rename one."
NO_EVENTS = "the table is empty. Give at least one event."
NO_ID = "a user needs an id. Fill it or drop the row."
EMPTY = "empty. Fill it or drop the row."
HALF_CHARACTER = "half a character (a lone surrogate). Remove it."
MISSING_COLUMN = f"missing. The columns {', '.join(REQUIRED)} are required."
NOT_A_NUMBER = "not a number. Encode it as numbers, or drop the column."
UNREADABLE = "cannot be read. Write it again as parquet or csv."
NOT_A_TIME = "not a time. Write it as 2025-01-31 18:00:00."
OUT_OF_RANGE = f"not from {MIN_TIME.year} to {MAX_TIME.year - 1}. Check the year."
TOO_LONG = f"over {MAX_TEXT:,} characters. Shorten it."
NULL_BYTE = "a null byte. Remove it."
NOT_FINITE = "not finite. Leave the cell empty."
TOO_LARGE = f"beyond {MAX_NUMBER:.0e}. Check the amount."
NO_LABEL = "a label is 0, 1 or empty. Write one of them."


def check_years(findings: Findings, time: pd.Series, cells: pd.Series) -> None:
    """Report times outside the years 1900 to 2199.

    Args:
        findings: Collects these times.
        time: The times.
        cells: The column as it was in the table, for messages.
    """
    findings.rows(cells, (time < MIN_TIME) | (time >= MAX_TIME), OUT_OF_RANGE)


def check_numbers(findings: Findings, values: pd.Series, role: str, cells: pd.Series) -> pd.Series:
    """Check numbers by the rules of their role, and replace infinite ones by NaN.

    Args:
        findings: Collects what is found.
        values: Floats.
        role: "number" (at most 1e15), "fact" (any finite number) or "label" (0 or 1).
        cells: The column as it was in the table, for messages.

    Returns:
        The numbers, NaN where one was infinite.

    Raises:
        DataError: The findings are strict, and a cell breaks a rule.
    """
    infinite = np.isinf(values)
    findings.rows(cells, infinite, NOT_FINITE, "error" if findings.strict else "changed")
    values = values.mask(infinite)
    if role == "number":
        findings.rows(cells, values.abs() > MAX_NUMBER, TOO_LARGE)
    if role == "label":
        findings.rows(cells, values.notna() & ~values.isin([0, 1]), NO_LABEL)
    return values


def cut_texts(texts: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Truncate texts to 2,000 characters.

    Args:
        texts: The texts.

    Returns:
        The texts, and a mask of those that were truncated.
    """
    too_long = texts.str.len() > MAX_TEXT
    return texts.mask(too_long, texts.str.slice(stop=MAX_TEXT - 1) + "…"), too_long


def validated_events(events: pd.DataFrame, source: str = "events") -> pd.DataFrame:
    """Return an events table with clean types, or raise.

    Args:
        events: Columns `user, time, modality, text` and any number columns. Errors give the row by
            its index.
        source: Name of the table in errors (default "events").

    Returns:
        `user` (str), `time` (datetime64[us], UTC without a zone), `modality` and `text` (str), then
        the number columns (float), in the order of the rows.

    Raises:
        DataError: A column is missing or a value is invalid. The message names row and value.

    Example:
        >>> events = pd.DataFrame([[7, "2025-01-01", "bill", "tea"]], columns=REQUIRED)
        >>> validated_events(events)["user"].tolist()
        ['7']
    """
    findings = Findings(source, strict=True)
    for column in REQUIRED:
        if column not in events:
            findings.add(column, list(events.columns), MISSING_COLUMN)
    if not len(events):
        findings.add("user", "no rows", NO_EVENTS)
    result = pd.DataFrame(index=events.index)
    result["user"] = _plain_words(findings, events["user"], NO_ID)
    result["time"] = _iso_times(findings, events["time"])
    result["modality"] = _plain_words(findings, events["modality"], EMPTY)
    texts = _plain_words(findings, events["text"], EMPTY)
    findings.rows(texts, texts.str.len() > MAX_TEXT, TOO_LONG)
    findings.rows(texts, texts.str.contains("\x00", regex=False), NULL_BYTE)
    result["text"] = texts
    for column in events.columns.difference(REQUIRED, sort=False):
        result[column] = plain_numbers(findings, events[column], "number")
    return result


def _plain_words(findings: Findings, cells: pd.Series, if_empty: str) -> pd.Series:
    """Return the cells as text; report broken characters, and empty cells with a message."""
    findings.rows(cells, has_surrogate(cells), HALF_CHARACTER)
    words = cells.astype(str)
    findings.rows(words, words.isna() | (words.str.strip() == ""), if_empty)
    return words


def validated_facts(frame: pd.DataFrame | None, source: str, binary: bool = False) -> pd.DataFrame:
    """Return a facts or labels table with text ids and float columns, or raise.

    Args:
        frame: Index `user`, number columns; None for an empty table. Errors name the file in
            `frame.attrs["source"]`, if any.
        source: Name of the table in errors otherwise.
        binary: Whether only 0, 1 and NaN are allowed (default False).

    Returns:
        The table: index `user` of str, unique; float columns, NaN for unknown.

    Raises:
        DataError: An id is missing or repeated, or a value is not a finite number.

    Example:
        >>> validated_facts(pd.DataFrame({"rooms": [3]}, index=[7]), "users").index.tolist()
        ['7']
    """
    if frame is None:
        return pd.DataFrame(index=pd.Index([], dtype=str, name="user"))
    findings = Findings(frame.attrs.get("source", source), strict=True)
    ids = pd.Series(frame.index, name="user")
    findings.rows(ids, ids.isna(), NO_ID)
    findings.rows(ids, has_surrogate(ids), HALF_CHARACTER)
    ids = ids.astype(str)
    findings.rows(ids, ids.duplicated(), "given twice. Keep one row per user.")
    role = "label" if binary else "fact"
    result = frame.reset_index(drop=True)
    result.attrs = {}
    for column in result:
        result[column] = plain_numbers(findings, result[column], role)
    return result.set_index(pd.Index(ids, name="user"))


def _iso_times(findings: Findings, cells: pd.Series) -> pd.Series:
    """Parse ISO 8601 only: 03/04/2025 is ambiguous, and a bare number has no unit."""
    texts = cells.astype(str) if is_numeric_dtype(cells) else cells
    time = parse_times(texts)
    findings.rows(cells, time.isna(), NOT_A_TIME)
    check_years(findings, time, cells)
    return time


def plain_numbers(findings: Findings, cells: pd.Series, role: str) -> pd.Series:
    """Parse a column of plain numbers and check it.

    Args:
        findings: Collects what is found.
        cells: The column.
        role: "number", "fact" or "label".

    Returns:
        Floats, NaN where a cell is empty.
    """
    if cells.dtype.kind in "mM":
        message = "a time, not a number. Write a number, or drop the column."
        findings.add(cells.name, str(cells.dtype), message)
        return pd.Series(np.nan, cells.index, name=cells.name)
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    findings.rows(cells, values.isna() & cells.notna(), NOT_A_NUMBER)
    return check_numbers(findings, values, role, cells)


def check_modalities(findings: Findings, modality: pd.Series, known: tuple[str, ...]) -> None:
    """Report modalities that are not allowed.

    Args:
        findings: Collects these modalities.
        modality: The modality of each event.
        known: The modalities that are allowed.
    """
    for name in sorted(set(modality.dropna().unique()) - set(known)):
        message = (
            f"not one of {', '.join(known)}{did_you_mean(name, known)}."
            " Add it to about.json's modalities."
        )
        findings.rows(modality, modality == name, message)


def did_you_mean(name, known: Iterable[str]) -> str:
    """Return a hint such as " (is it 'app'?)", or "" if no known name is similar.

    Args:
        name: An unknown name.
        known: The known names.
    """
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (is it {near[0]!r}?)" if near else ""


def parse_cutoff(cutoff, source: str) -> pd.Timestamp:
    """Return a cut-off as a time without a zone.

    Args:
        cutoff: Anything that `pd.Timestamp` reads.
        source: Name of the table in errors.

    Returns:
        The time.

    Raises:
        DataError: It is not a time, or it has a time zone.

    Example:
        >>> parse_cutoff("2025-01-31", "events")
        Timestamp('2025-01-31 00:00:00')
    """
    try:
        time = pd.Timestamp(cutoff)
    except (ValueError, TypeError):
        time = pd.NaT
    if pd.isna(time) or time.tzinfo:
        hint = "not a time without a time zone. Write it as 2025-01-31."
        raise DataError(source, None, "cutoff", cutoff, hint)
    return time
