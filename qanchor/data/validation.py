"""Check an events table, a facts table and labels once, where they enter."""

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
MAX_TEXT = 2_000  # characters; the text encoder reads about 256 tokens, so more is a mistake upstream
MIN_TIME, MAX_TIME = pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01")  # no behaviour is older, and none is known from then on
LONE_SURROGATE = "half a character (a lone surrogate): remove it"
MAX_NUMBER = 1e15  # of a number: beyond it sums lose their cents, and at last overflow


def _checked_table(frame: pd.DataFrame | None, source: str, binary: bool = False) -> pd.DataFrame:
    """Check a facts or labels table (index user): ids once, finite numbers, labels 0 or 1."""
    if frame is None:
        return pd.DataFrame(index=pd.Index([], dtype=str, name="user"))
    source = frame.attrs.get("source", source)  # the file's name, when it came from one
    ids = pd.Series(frame.index)
    _reject(source, "user", ids, ids.isna(), "a user needs an id")
    _reject(source, "user", ids, _halved(ids), LONE_SURROGATE)
    ids = ids.astype(str)
    _reject(source, "user", ids, ids.duplicated(), "twice: one row a user")
    out = pd.DataFrame(index=pd.Index(ids, name="user"))
    for column in frame.columns:
        given = frame[column].reset_index(drop=True)
        values = pd.to_numeric(given, errors="coerce").astype(float)
        cure = "not a number: encode it as numbers, or leave the column out"
        _reject(source, column, given, values.isna() & given.notna(), cure)
        _reject(source, column, given, np.isinf(values), "not finite: leave the cell empty")
        if binary:
            _reject(source, column, given, values.notna() & ~values.isin([0, 1]), "a label is 0, 1 or empty")
        out[column] = values.to_numpy()
    return out


def checked_events(events: pd.DataFrame, source="events") -> pd.DataFrame:
    """Check an events table once, where it enters, and give it clean types: str, datetime64, str, str, float ..."""
    for column in REQUIRED:
        if column not in events:
            raise DataError(source, None, column, list(events.columns), f"missing: needed are {', '.join(REQUIRED)}")
    if not len(events):
        raise DataError(source, None, "user", "no rows", "the table is empty: give at least one event")
    out = pd.DataFrame(index=events.index)
    for column in ("user", "modality", "text"):
        _reject(source, column, events[column], events[column].isna(), "empty: fill it or drop the row")
        _reject(source, column, events[column], _halved(events[column]), LONE_SURROGATE)
        out[column] = events[column].astype(str)
    _reject(source, "user", out["user"], out["user"].str.strip() == "", "a user needs an id")
    _reject(source, "text", out["text"], out["text"].str.strip() == "", "empty: fill it or drop the row")
    _reject(source, "text", out["text"], out["text"].str.len() > MAX_TEXT, f"over {MAX_TEXT:,} characters: shorten it")
    _reject(source, "text", out["text"], out["text"].str.contains("\x00", regex=False), "a null byte: remove it")
    # ISO only: 03/04/2025 is March or April, and a bare number would silently be read as nanoseconds since 1970
    given = events["time"].astype(str) if pd.api.types.is_numeric_dtype(events["time"]) else events["time"]
    time = pd.to_datetime(given, errors="coerce", utc=True, format="ISO8601").dt.tz_localize(None)
    clock = given.isin(("now", "today")) if given.dtype in (object, "str") else False  # pandas would look at the clock
    _reject(source, "time", events["time"], time.isna() | clock, "not a time: write it as 2025-01-31 18:00:00")
    odd = (time < MIN_TIME) | (time >= MAX_TIME)
    _reject(source, "time", events["time"], odd, f"not from {MIN_TIME.year} to {MAX_TIME.year - 1}: is the year right?")
    out.insert(1, "time", time.astype("datetime64[us]"))
    for column in events.columns.difference(REQUIRED, sort=False):
        if events[column].dtype.kind in "mM":
            raise DataError(source, None, column, str(events[column].dtype), "a time, not a number: write one, or drop it")
        values = pd.to_numeric(events[column], errors="coerce").astype(float)
        words = values.isna() & events[column].notna()
        _reject(source, column, events[column], words, "not a number: encode it, or drop the column")
        _reject(source, column, events[column], np.isinf(values), "not finite: leave the cell empty")
        _reject(source, column, events[column], values.abs() > MAX_NUMBER, f"beyond {MAX_NUMBER:.0e}: is that meant?")
        out[column] = values
    return out.reset_index(drop=True)


def _moment(cutoff, source: str) -> pd.Timestamp:
    try:
        found = pd.Timestamp(cutoff)
    except (ValueError, TypeError) as error:
        raise DataError(source, None, "cutoff", cutoff, "not a time: write it as 2025-01-31") from error
    if pd.isna(found) or found.tzinfo:
        raise DataError(source, None, "cutoff", cutoff, "not a plain time without an offset: write it as 2025-01-31")
    return found


def _halved(values: pd.Series) -> pd.Series:
    """Find texts with half a character in them, which no file takes; only loose objects can hold one."""
    if values.dtype != object:
        return pd.Series(False, index=values.index)
    return values.map(lambda text: isinstance(text, str) and not text.isascii() and replace_surrogates(text) != text)


def _reject(source, column: str, values: pd.Series, bad: pd.Series, cure: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise DataError(source, row, column, values.iloc[row], cure)
