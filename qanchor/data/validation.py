"""Validate an events table, a facts table and labels once, when they are read."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qanchor.errors import DataError
from qanchor.utils.io import replace_surrogates

COLUMN_MEANINGS = {  # the columns of events, and what each says
    "user": "the id of who did it, or of whom a row is about",
    "time": "when it happened",
    "modality": "the kind of source a row comes from, such as payment, search or visit",
    "text": "what happened, in words, such as 'yoga class'",
}
REQUIRED = tuple(COLUMN_MEANINGS)
TEXT_COLUMNS = ("user", "modality", "text")  # read as text from any file: 007 stays 007
MAX_TEXT = 2_000  # characters; the text encoder reads only about 256 tokens
MIN_TIME = pd.Timestamp("1900-01-01")
MAX_TIME = pd.Timestamp("2200-01-01")  # exclusive
LONE_SURROGATE = "half a character (a lone surrogate): remove it"
MAX_NUMBER = 1e15  # beyond it, sums of float64 amounts lose their cents


def validated_facts(frame: pd.DataFrame | None, source: str, binary: bool = False) -> pd.DataFrame:
    """Return a facts or labels table with text ids and float columns, or raise.

    Args:
        frame: Index `user`, number columns; None for an empty table. `frame.attrs["source"]` is the
            name of the file it was read from.
        source: Name of the table in errors, if it was not read from a file.
        binary: Allow only 0, 1 and NaN (default False).

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
    source = frame.attrs.get("source", source)
    ids = pd.Series(frame.index)
    reject_rows(source, "user", ids, ids.isna(), "a user needs an id")
    reject_rows(source, "user", ids, _has_surrogate(ids), LONE_SURROGATE)
    ids = ids.astype(str)
    reject_rows(source, "user", ids, ids.duplicated(), "twice: one row a user")
    result = pd.DataFrame(index=pd.Index(ids, name="user"))
    for column in frame.columns:
        cells = frame[column].reset_index(drop=True)
        values = pd.to_numeric(cells, errors="coerce").astype(float)
        hint = "not a number: encode it as numbers, or leave the column out"
        reject_rows(source, column, cells, values.isna() & cells.notna(), hint)
        reject_rows(source, column, cells, np.isinf(values), "not finite: leave the cell empty")
        if binary:
            invalid = values.notna() & ~values.isin([0, 1])
            reject_rows(source, column, cells, invalid, "a label is 0, 1 or empty")
        result[column] = values.to_numpy()
    return result


def validated_events(events: pd.DataFrame, source: str = "events") -> pd.DataFrame:
    """Return an events table with clean types, or raise.

    Args:
        events: Columns `user, time, modality, text` and any number columns.
        source: Name of the table in errors (default "events").

    Returns:
        `user` (str), `time` (datetime64[us], UTC without a zone), `modality` and `text` (str), then
        the number columns (float), in the order of the rows.

    Raises:
        DataError: A column is missing or a value cannot be used; names row, value and hint.

    Example:
        >>> events = pd.DataFrame([[7, "2025-01-01", "bill", "tea"]], columns=REQUIRED)
        >>> validated_events(events)["user"].tolist()
        ['7']
    """
    for column in REQUIRED:
        if column not in events:
            hint = f"missing: needed are {', '.join(REQUIRED)}"
            raise DataError(source, None, column, list(events.columns), hint)
    if not len(events):
        hint = "the table is empty: give at least one event"
        raise DataError(source, None, "user", "no rows", hint)
    result = pd.DataFrame(index=events.index)
    for column in TEXT_COLUMNS:
        cells = events[column]
        reject_rows(source, column, cells, cells.isna(), "empty: fill it or drop the row")
        reject_rows(source, column, cells, _has_surrogate(cells), LONE_SURROGATE)
        result[column] = cells.astype(str)
    user = result["user"]
    reject_rows(source, "user", user, user.str.strip() == "", "a user needs an id")
    text = result["text"]
    too_long = text.str.len() > MAX_TEXT
    null_byte = text.str.contains("\x00", regex=False)
    reject_rows(source, "text", text, text.str.strip() == "", "empty: fill it or drop the row")
    reject_rows(source, "text", text, too_long, f"over {MAX_TEXT:,} characters: shorten it")
    reject_rows(source, "text", text, null_byte, "a null byte: remove it")
    result.insert(1, "time", _parse_times(events["time"], source))
    for column in events.columns.difference(REQUIRED, sort=False):
        result[column] = _parse_numbers(events[column], column, source)
    return result.reset_index(drop=True)


def _parse_times(cells: pd.Series, source: str) -> pd.Series:
    """Parse ISO 8601 only: 03/04/2025 is March or April, and a bare number has no unit."""
    texts = cells.astype(str) if pd.api.types.is_numeric_dtype(cells) else cells
    time = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601").dt.tz_localize(None)
    relative = False
    if texts.dtype in (object, "str"):
        relative = texts.isin(("now", "today"))  # pandas would replace them by the current time
    hint = "not a time: write it as 2025-01-31 18:00:00"
    reject_rows(source, "time", cells, time.isna() | relative, hint)
    out_of_range = (time < MIN_TIME) | (time >= MAX_TIME)
    hint = f"not from {MIN_TIME.year} to {MAX_TIME.year - 1}: is the year right?"
    reject_rows(source, "time", cells, out_of_range, hint)
    return time.astype("datetime64[us]")


def _parse_numbers(cells: pd.Series, column: str, source: str) -> pd.Series:
    if cells.dtype.kind in "mM":
        hint = "a time, not a number: write one, or drop it"
        raise DataError(source, None, column, str(cells.dtype), hint)
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    not_number = values.isna() & cells.notna()
    reject_rows(source, column, cells, not_number, "not a number: encode it, or drop the column")
    reject_rows(source, column, cells, np.isinf(values), "not finite: leave the cell empty")
    hint = f"beyond {MAX_NUMBER:.0e}: is that meant?"
    reject_rows(source, column, cells, values.abs() > MAX_NUMBER, hint)
    return values


def parse_cutoff(cutoff, source: str) -> pd.Timestamp:
    """Return a cut-off as a time without a zone.

    Args:
        cutoff: Anything that `pd.Timestamp` reads.
        source: Name of the table in errors.

    Returns:
        The time.

    Raises:
        DataError: It is no time, or has a time zone.

    Example:
        >>> parse_cutoff("2025-01-31", "events")
        Timestamp('2025-01-31 00:00:00')
    """
    try:
        time = pd.Timestamp(cutoff)
    except (ValueError, TypeError) as error:
        hint = "not a time: write it as 2025-01-31"
        raise DataError(source, None, "cutoff", cutoff, hint) from error
    if pd.isna(time) or time.tzinfo:
        hint = "not a plain time without an offset: write it as 2025-01-31"
        raise DataError(source, None, "cutoff", cutoff, hint)
    return time


def _has_surrogate(values: pd.Series) -> pd.Series:
    """Find texts with a lone surrogate, which no file can hold; only object columns can."""
    if values.dtype != object:
        return pd.Series(False, index=values.index)
    return values.map(
        lambda text: (
            isinstance(text, str) and not text.isascii() and replace_surrogates(text) != text
        )
    )


def reject_rows(source: str, column: str, values: pd.Series, bad: pd.Series, hint: str) -> None:
    """Raise an error that names the first bad row, if there is one.

    Args:
        source: Name of the table.
        column: Name of the column.
        values: The column, for the value in the message.
        bad: True for rows that cannot be used.
        hint: What is wrong and what to do.

    Raises:
        DataError: A row is bad.

    Example:
        >>> reject_rows("events", "user", pd.Series(["a"]), pd.Series([False]), "fill it")
    """
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise DataError(source, row, column, values.iloc[row], hint)
