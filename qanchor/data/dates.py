"""Parse a column of times with strict formats for the whole column; no row is guessed by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype

MAX_CHARS = 60  # a longer cell is not a time
CLOCK = (
    r"(?P<hour>\d{1,2})[:.h]?(?P<minute>\d\d)"
    r"(?:[:.]?(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?:\s*(?P<half>[AaPp])\.?[Mm]\.?)?"
)
ZONE = r"(?:\s*(?P<zone>[+-]\d\d(?::?\d\d)?|[A-Z]{1,5}))?"
TAIL = rf"(?:(?:T|[ ,:]+){CLOCK}{ZONE})?"
WEEKDAY = r"(?:[A-Za-z]{3,9}\.?,?\s+)?"
PATTERNS = {
    "year-month-day": (
        r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})"
    ),
    "digits": r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)",
    "two numbers": r"(?P<one>\d{1,2})(?P<mark>[-/.])(?P<two>\d{1,2})(?P=mark)(?P<year>\d{4}|\d\d)",
    "day and month name": (
        WEEKDAY + r"(?P<day>\d{1,2})[ /.-]+(?P<word>[A-Za-z]{3,9})\.?[ /,.-]+(?P<year>\d{4})"
    ),
    "month name and day": (
        WEEKDAY + r"(?P<word>[A-Za-z]{3,9})\.? +(?P<day>\d{1,2}),? +(?P<year>\d{4})"
    ),
}
PATTERNS = {name: rf"^\s*{pattern}{TAIL}\s*$" for name, pattern in PATTERNS.items()}
CLOCK_ONLY = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?:\s*[AaPp]\.?[Mm]\.?)?"
OFFSET = r"(?:Z|[+-]\d\d(?::?\d\d)?)$"
NO_OFFSET = ("Z", "+00:00", "+00", "+0000")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTHS = {name: str(number) for number, name in enumerate(MONTHS, 1)}
# Zone abbreviations with a single meaning; EST, IST and others are ambiguous.
ZONES = dict.fromkeys(("Z", "UTC", "GMT", "WET"), "Z") | dict.fromkeys(("WEST", "CET"), "+01")
ZONES |= dict.fromkeys(("CEST", "EET"), "+02") | {"EEST": "+03"}
DIGITS = {
    "%Y%m%d": (19_000_101, 22_001_231),
    "%Y%m%d%H%M%S": (19_000_101_000_000, 22_001_231_235_959),
}
SIX_DIGITS = {"%y%m%d": "yymmdd", "%d%m%y": "ddmmyy", "%m%d%y": "mmddyy"}
EPOCHS = {  # units since 1970, told apart by the numbers of the years 1973 to 2100
    "seconds": ("s", 1e8, 4.2e9),
    "milliseconds": ("ms", 1e11, 4.2e12),
    "microseconds": ("us", 1e14, 4.2e15),
    "nanoseconds": ("ns", 1e17, 4.2e18),
}
SERIAL_DAYS = (25_569, 73_051)  # day numbers in spreadsheets, 1970 to 2099


@dataclass
class Times:
    """The times of a column, and how they were read.

    Args:
        time: UTC without a zone, datetime64[us]; NaT where the cell is no time of the format.
        how: What was assumed, for the report; empty for ISO 8601 in UTC.
        unclear: Why the column cannot be read without a guess; empty if it can.
        guess: Whether `how` is likely but not certain (default False).
    """

    time: pd.Series
    how: str = ""
    unclear: str = ""
    guess: bool = False


def read_times(cells: pd.Series, timezone: str | None = None) -> Times:
    """Parse a column of times.

    Args:
        cells: Datetimes, numbers or texts.
        timezone: Time zone of times without one, such as "Europe/Berlin" (default: UTC).

    Returns:
        The times and how they were read.

    Example:
        >>> read = read_times(pd.Series(["31/01/2025 18:00", "01/02/2025 9:30"]))
        >>> read.time.astype(str).tolist(), read.how
        (['2025-01-31 18:00:00', '2025-02-01 09:30:00'], 'the day comes first')
    """
    if is_datetime64_any_dtype(cells):
        return _read_datetimes(cells, timezone)
    if is_bool_dtype(cells):
        return _no_times(cells, "true and false are not times")
    if is_numeric_dtype(cells):
        return _read_numbers(cells.astype(float))
    codes, unique = pd.factorize(cells)
    texts = pd.Series(unique).astype(str).str.strip()
    texts = texts.where(texts.str.len() <= MAX_CHARS, "")
    known = texts[texts != ""]
    if known.empty or not known.str.fullmatch(r"\d+(\.\d+)?").all():
        read = _read_texts(texts, timezone)
    elif known.str.fullmatch(r"\d{6}").all():
        read = _read_six_digits(pd.to_numeric(texts, errors="coerce"))
    else:
        read = _read_numbers(pd.to_numeric(texts, errors="coerce"))
    read.time = read.time.reindex(codes).set_axis(cells.index)  # code -1 of an empty cell: NaT
    return read


def looks_like_times(texts: pd.Series) -> bool:
    """Return whether most texts contain a date; plain numbers do not count as dates.

    Args:
        texts: Non-empty cells of a column.
    """
    short = texts.where(texts.str.len() <= MAX_CHARS, "").str
    if short.fullmatch(r"\s*\d+\s*").mean() >= 0.5:
        return False
    return any(short.match(pattern).mean() > 0.5 for pattern in PATTERNS.values())


def looks_like_clock(texts: pd.Series) -> bool:
    """Return whether more than 90 % of the texts are a time of day without a date.

    Args:
        texts: Non-empty cells of a column.
    """
    return bool(texts.str.strip().str.fullmatch(CLOCK_ONLY).mean() > 0.9)


def _no_times(cells: pd.Series, unclear: str = "") -> Times:
    return Times(pd.Series(pd.NaT, cells.index, dtype="datetime64[us]"), unclear=unclear)


def _read_datetimes(cells: pd.Series, timezone: str | None) -> Times:
    zone = str(cells.dt.tz or timezone or "UTC")
    if cells.dt.tz is None:
        time = _to_utc(cells, zone)
    else:
        time = cells.dt.tz_convert(None)
    how = "" if zone == "UTC" else f"times of {zone} are converted to UTC"
    return Times(time.astype("datetime64[us]"), how)


def _to_utc(time: pd.Series, timezone: str) -> pd.Series:
    """Convert local times to UTC; of an hour that occurs twice, the second one is assumed."""
    is_summer = np.zeros(len(time), bool)
    local = time.dt.tz_localize(timezone, ambiguous=is_summer, nonexistent="shift_forward")
    return local.dt.tz_convert(None)


def _read_numbers(values: pd.Series) -> Times:
    """Parse numbers; the range of the whole column decides their unit."""
    low = values.min()
    high = values.max()
    if np.isnan(low):
        return _no_times(values)
    whole = (values.dropna() % 1 == 0).all()
    for form, (first, last) in DIGITS.items():
        if whole and first <= low and high <= last:
            return Times(parse_times(values.map("{:.0f}".format, na_action="ignore"), form))
    for name, (unit, first, last) in EPOCHS.items():
        if first <= low and high <= last:
            time = pd.to_datetime(values, unit=unit, errors="coerce").astype("datetime64[us]")
            return Times(time, f"{name} since 1970")
    if whole and low >= 10_000 and 99_999 < high <= 999_999:
        return _read_six_digits(values)
    first, last = SERIAL_DAYS
    if first <= low and high <= last:
        how = "spreadsheet day numbers (1 is 1900-01-01)"
        return Times(_days_after("1899-12-30", values), how, guess=True)
    if low >= 0 and high <= first:
        how = "days since an unknown start: day 0 is read as 1970-01-01"
        return Times(_days_after("1970-01-01", values), how, guess=True)
    return _no_times(
        values,
        "the numbers are not of one kind, neither dates such as 20250131 nor seconds since 1970",
    )


def _days_after(start: str, days: pd.Series) -> pd.Series:
    seconds = (days * 86_400).round()
    return pd.to_datetime(seconds, unit="s", origin=start).astype("datetime64[us]")


def parse_times(texts: pd.Series, form: str = "ISO8601") -> pd.Series:
    """Parse texts of one format.

    Args:
        texts: The texts, or datetimes.
        form: A `strptime` format (default: ISO 8601).

    Returns:
        UTC without a zone, datetime64[us]; NaT where a text is not of this format.
    """
    if texts.dtype.kind != "M":
        texts = texts.mask(texts.isin(["now", "today"]))  # pandas would return the current time
    time = pd.to_datetime(texts, errors="coerce", utc=True, format=form)
    return time.dt.tz_convert(None).astype("datetime64[us]")


def _read_six_digits(values: pd.Series) -> Times:
    """Parse yymmdd, ddmmyy or mmddyy if only one fits, or if years vary far less than days."""
    texts = values.map("{:06.0f}".format, na_action="ignore")
    known = texts.dropna()
    fitting = [form for form in SIX_DIGITS if parse_times(known, form).notna().all()]
    if len(fitting) > 1:
        starts = known.str[:2].nunique()
        ends = known.str[4:].nunique()
        if 2 * starts < ends or 2 * ends < starts:
            year_first = 2 * starts < ends
            fitting = [form for form in fitting if year_first == form.startswith("%y")]
    if len(fitting) != 1:
        return _no_times(values, "six digits could be year, month, day or day, month, year")
    [form] = fitting
    return Times(parse_times(texts, form), f"six digits are {SIX_DIGITS[form]}", guess=True)


def _read_texts(texts: pd.Series, timezone: str | None) -> Times:
    """Parse unique texts: first ISO 8601, then the rest with the pattern that fits most of it."""
    plain = texts.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
    time = parse_times(plain)
    how = []
    unclear = ""
    rest = texts[time.isna() & (texts != "")]
    if len(rest):
        try:
            parts, how = _read_parts(rest, timezone)
            plain.update(_write_iso(parts))
            time = parse_times(plain)
        except _Unclear as reason:
            unclear = str(reason)
    offset = plain.str.extract(f"({OFFSET})", expand=False).where(plain.str.contains(":"))
    if timezone:
        time = time.where(offset.notna(), _to_utc(time, timezone))
        how.append(f"times of {timezone} are converted to UTC")
    elif not offset[time.notna()].dropna().isin(NO_OFFSET).all():
        how.append("times with an offset are converted to UTC")
    return Times(time, ", ".join(how), unclear)


class _Unclear(Exception):
    """Texts cannot be parsed without a guess; the message says why."""


def _read_parts(texts: pd.Series, timezone: str | None) -> tuple[pd.DataFrame, list[str]]:
    """Split texts with the pattern that fits most of them, and say what was assumed."""
    fits = {name: texts.str.match(pattern).sum() for name, pattern in PATTERNS.items()}
    name = max(fits, key=fits.get)
    parts = texts.str.extract(PATTERNS[name])
    how = []
    if name == "two numbers" and fits[name]:
        first = _first_of_date(parts)
        how.append(f"the {first} comes first")
        second = "month" if first == "day" else "day"
        parts = parts.rename(columns={"one": first, "two": second})
    if "word" in parts:
        parts["month"] = parts["word"].str[:3].str.lower().map(MONTHS)
    zones = parts["zone"]
    unknown = sorted(zones[zones.str.isalpha() & ~zones.isin(ZONES)])
    if unknown and not timezone:
        raise _Unclear(
            f"the zone {unknown[0]!r} has several meanings: pass it as timezone=, such as"
            ' timezone="America/New_York"'
        )
    parts["zone"] = zones.replace(ZONES).mask(zones.isin(unknown)).fillna("")
    return parts, how


def _first_of_date(parts: pd.DataFrame) -> str:
    """Return whether the day or the month comes first, judged by the whole column."""
    one_is_day, two_is_day = (parts[["one", "two"]].astype(float) > 12).any()
    if one_is_day and two_is_day:
        raise _Unclear("in some rows the day comes first, in others the month")
    if two_is_day:
        return "month"
    if one_is_day or parts["mark"].eq(".").any():
        return "day"
    raise _Unclear("not clear which number is the day and which is the month")


def _write_iso(parts: pd.DataFrame) -> pd.Series:
    """Write the parts of a time as ISO 8601; NaN where the pattern did not fit."""
    parts = parts.fillna({"hour": "0", "minute": "00", "second": "00", "fraction": "0"})
    year = parts["year"]
    year = year.mask(year.str.len() == 2, "20" + year)
    hour = parts["hour"].astype(int)
    half = parts["half"].str.lower()
    hour += 12 * (half.eq("p") & (hour < 12))
    hour -= 12 * (half.eq("a") & (hour == 12))
    day = parts[["month", "day"]].apply(lambda numbers: numbers.str.zfill(2))
    date = year.str.cat(day, sep="-")
    clock = hour.astype(str).str.zfill(2).str.cat(parts[["minute", "second"]], sep=":")
    return date + "T" + clock + "." + parts["fraction"] + parts["zone"]
