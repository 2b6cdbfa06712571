"""Read a column of times with strict formats for the whole column, never by guessing row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

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
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# Words for a zone that mean one offset only; EST, IST and others mean several.
ZONES = {"Z": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3}
EPOCHS = {  # units since 1970, by the range that holds 1973 to 2100
    "seconds": ("s", 1e8, 4.2e9),
    "milliseconds": ("ms", 1e11, 4.2e12),
    "microseconds": ("us", 1e14, 4.2e15),
    "nanoseconds": ("ns", 1e17, 4.2e18),
}
SERIAL_DAYS = (25_569, 73_051)  # day numbers of spreadsheets, 1970 to 2099
SERIAL_START = pd.Timestamp("1899-12-30")
ISO_HINT = "write it as 2025-01-31 18:00:00"


@dataclass
class Times:
    """The times of a column, and how they were read.

    Args:
        time: UTC without a zone, datetime64[us]; NaT where the cell is no time of the format.
        how: What was assumed, for the report; empty for ISO 8601 in UTC.
        unclear: Why the column cannot be read without a guess; empty if it can.
        guess: Whether `how` is only the likely meaning (default False).
    """

    time: pd.Series
    how: str = ""
    unclear: str = ""
    guess: bool = False


@dataclass
class _Parts:
    """The parts of the unique texts of a column, read by one pattern."""

    time: pd.Series
    how: list[str] = field(default_factory=list)
    unclear: str = ""


def read_times(cells: pd.Series, timezone: str | None = None) -> Times:
    """Read a column of times.

    Args:
        cells: Datetimes, numbers or texts.
        timezone: Zone of times that name none, such as "Europe/Berlin" (default: UTC).

    Returns:
        The times and how they were read.

    Example:
        >>> read = read_times(pd.Series(["31/01/2025 18:00", "01/02/2025 9:30"]))
        >>> read.time.astype(str).tolist(), read.how
        (['2025-01-31 18:00:00', '2025-02-01 09:30:00'], 'the day stands first')
    """
    if pd.api.types.is_datetime64_any_dtype(cells):
        return _read_datetimes(cells, timezone)
    if pd.api.types.is_bool_dtype(cells):
        return Times(_no_times(cells.index), unclear="yes and no are not times")
    if pd.api.types.is_numeric_dtype(cells):
        return _read_numbers(cells.astype(float))
    codes, unique = pd.factorize(cells)
    texts = pd.Series(unique).astype(str).str.strip()
    texts = texts.where(texts.str.len() <= MAX_CHARS, "")
    known = texts[texts != ""]
    if len(known) and known.str.fullmatch(r"\d+(\.\d+)?").all():
        values = pd.to_numeric(texts, errors="coerce").astype(float)
        six_digits = known.str.fullmatch(r"\d{6}").all()
        read = _read_six_digits(values) if six_digits else _read_numbers(values)
    else:
        read = _read_texts(texts, timezone)
    values = np.append(read.time.to_numpy(), np.datetime64("NaT", "us"))
    read.time = pd.Series(values[codes], index=cells.index)
    return read


def looks_like_times(texts: pd.Series) -> bool:
    """Return whether most texts name a day: a number alone does not.

    Args:
        texts: Some cells of a column, none empty.
    """
    short = texts.where(texts.str.len() <= MAX_CHARS, "")
    share = [short.str.match(pattern).mean() for pattern in PATTERNS.values()]
    digits_only = short.str.fullmatch(r"\s*\d+\s*").mean()
    return bool(max(share) > 0.5 and digits_only < 0.5)


def looks_like_clock(texts: pd.Series) -> bool:
    """Return whether nearly all texts are a time of day without a date.

    Args:
        texts: Some cells of a column, none empty.
    """
    return bool(texts.str.strip().str.fullmatch(CLOCK_ONLY).mean() > 0.9)


def _no_times(index: pd.Index) -> pd.Series:
    return pd.Series(pd.NaT, index=index, dtype="datetime64[us]")


def _read_datetimes(cells: pd.Series, timezone: str | None) -> Times:
    zone = cells.dt.tz
    how = ""
    if zone is None and timezone:
        zone = timezone
        cells = _localize(cells, timezone)
    if zone is not None and str(zone) != "UTC":
        how = f"times of {zone} are converted to UTC"
    time = pd.to_datetime(cells, utc=True).dt.tz_localize(None)
    return Times(time.astype("datetime64[us]"), how)


def _localize(time: pd.Series, timezone: str) -> pd.Series:
    winter = np.zeros(len(time), bool)  # of the hour that a clock shows twice, take the second
    return time.dt.tz_localize(timezone, ambiguous=winter, nonexistent="shift_forward")


def _read_numbers(values: pd.Series) -> Times:
    """Read numbers by the range of the whole column."""
    known = values.dropna()
    whole = bool((known % 1 == 0).all())
    if known.empty:
        return Times(_no_times(values.index))
    if whole and known.between(19_000_101, 22_001_231).all():
        return _read_digits(values, "%Y%m%d")
    if whole and known.between(19_000_101_000_000, 22_001_231_235_959).all():
        return _read_digits(values, "%Y%m%d%H%M%S")
    for name, (unit, low, high) in EPOCHS.items():
        if known.between(low, high).all():
            time = pd.to_datetime(values, unit=unit, errors="coerce").astype("datetime64[us]")
            return Times(time, f"{name} since 1970")
    if whole and known.between(10_000, 999_999).all() and (known > 99_999).any():
        return _read_six_digits(values)
    if known.between(*SERIAL_DAYS).all():
        how = "day numbers of a spreadsheet (1 is 1900-01-01)"
        return Times(_days_after(SERIAL_START, values), how, guess=True)
    if known.between(0, SERIAL_DAYS[0]).all():
        how = "days since a start that the table does not name: day 0 is written as 1970-01-01"
        return Times(_days_after(pd.Timestamp("1970-01-01"), values), how, guess=True)
    unclear = (
        "the numbers are not of one kind: neither dates such as 20250131 nor seconds since 1970"
    )
    return Times(_no_times(values.index), unclear=unclear)


def _days_after(start: pd.Timestamp, days: pd.Series) -> pd.Series:
    seconds = (days * 86_400).round()
    return (start + pd.to_timedelta(seconds, unit="s")).astype("datetime64[us]")


def _read_digits(values: pd.Series, form: str) -> Times:
    texts = values.map("{:.0f}".format, na_action="ignore")
    time = pd.to_datetime(texts, format=form, errors="coerce").astype("datetime64[us]")
    return Times(time)


def _read_six_digits(values: pd.Series) -> Times:
    """Read yymmdd, ddmmyy or mmddyy, when only one fits or the years are fewer than the days."""
    texts = values.map("{:06.0f}".format, na_action="ignore")
    known = texts.dropna()
    fitting = {}
    for form in ("%y%m%d", "%d%m%y", "%m%d%y"):
        time = pd.to_datetime(texts, format=form, errors="coerce")
        if time.notna().sum() == len(known):
            fitting[form] = time
    starts = known.str[:2].nunique()
    ends = known.str[4:].nunique()
    if len(fitting) > 1 and 2 * starts < ends:
        fitting = {form: time for form, time in fitting.items() if form == "%y%m%d"}
    if len(fitting) > 1 and 2 * ends < starts:
        fitting.pop("%y%m%d", None)
    if len(fitting) == 1:
        [(form, time)] = fitting.items()
        how = f"six digits are {form.replace('%', '').translate({121: 'yy', 109: 'mm', 100: 'dd'})}"
        return Times(time.astype("datetime64[us]"), how, guess=True)
    unclear = "six digits could be year, month, day or day, month, year"
    return Times(_no_times(values.index), unclear=unclear)


def _read_texts(texts: pd.Series, timezone: str | None) -> Times:
    """Read unique texts: ISO 8601 first, what is left by the one pattern that fits most of it."""
    plain = texts.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
    plain = plain.mask(plain.isin(("now", "today")), "")  # pandas would read the clock
    time = pd.to_datetime(plain, errors="coerce", utc=True, format="ISO8601")
    time = time.dt.tz_localize(None).astype("datetime64[us]")
    offset = plain.str.extract(f"({OFFSET})", expand=False).where(plain.str.contains(":"))
    how = []
    if timezone:
        local = time.notna() & offset.isna()
        moved = _localize(time[local], timezone).dt.tz_convert("UTC").dt.tz_localize(None)
        time = time.where(~local, moved.reindex(time.index).astype("datetime64[us]"))
        how.append(f"times of {timezone} are converted to UTC")
    elif not offset[time.notna()].dropna().isin(("Z", "+00:00", "+00", "+0000")).all():
        how.append("times with an offset are converted to UTC")
    rest = texts[time.isna() & (texts != "")]
    unclear = ""
    if len(rest):
        parts = _read_pattern(rest, timezone)
        time = time.fillna(parts.time.reindex(time.index))
        how += parts.how
        unclear = parts.unclear
    return Times(time, ", ".join(how), unclear)


def _read_pattern(texts: pd.Series, timezone: str | None) -> _Parts:
    fits = {name: texts.str.match(pattern).sum() for name, pattern in PATTERNS.items()}
    name = max(fits, key=fits.get)
    if not fits[name]:
        return _Parts(_no_times(texts.index))
    parts = texts.str.extract(PATTERNS[name])
    how = []
    if name == "two numbers":
        order, unclear = _day_order(parts)
        if unclear:
            return _Parts(_no_times(texts.index), unclear=unclear)
        parts["day"] = parts["one"] if order == "day" else parts["two"]
        parts["month"] = parts["two"] if order == "day" else parts["one"]
        how.append(f"the {order} stands first")
    if "word" in parts:
        month = parts["word"].str[:3].str.lower().map({m: i + 1 for i, m in enumerate(MONTHS)})
        parts["month"] = month.astype("Int64").astype("string")
    time = _join_parts(parts)
    return _shift_zone(_Parts(time, how), parts["zone"], timezone)


def _day_order(parts: pd.DataFrame) -> tuple[str, str]:
    """Tell whether the day or the month stands first, by the whole column."""
    one = parts["one"].astype(float)
    two = parts["two"].astype(float)
    one_is_day = (one > 12).any()
    two_is_day = (two > 12).any()
    if one_is_day and two_is_day:
        return "", "in some rows the day stands first, in others the month"
    if one_is_day or (parts["mark"].eq(".").any() and not two_is_day):
        return "day", ""
    if two_is_day:
        return "month", ""
    return "", "not clear which number is the day and which is the month"


def _join_parts(parts: pd.DataFrame) -> pd.Series:
    """Write the parts as ISO 8601 and read that."""
    year = parts["year"].where(parts["year"].str.len() != 2, "20" + parts["year"])
    hour = parts["hour"].fillna("0").astype(float)
    half = parts["half"].str.lower()
    hour = hour.mask(half.eq("p") & (hour < 12), hour + 12).mask(half.eq("a") & (hour == 12), 0)
    texts = year + "-" + parts["month"].str.zfill(2) + "-" + parts["day"].str.zfill(2)
    texts = texts + "T" + hour.astype(int).astype(str).str.zfill(2)
    texts = texts + ":" + parts["minute"].fillna("00") + ":" + parts["second"].fillna("00")
    texts = texts + "." + parts["fraction"].fillna("0")
    time = pd.to_datetime(texts, errors="coerce", format="ISO8601")
    return time.astype("datetime64[us]")


def _shift_zone(parts: _Parts, zone: pd.Series, timezone: str | None) -> _Parts:
    """Convert to UTC by the offsets or zone words of the texts, or by the zone that was given."""
    words = zone.dropna().str.extract(r"([A-Z]+)", expand=False).dropna()
    unknown = sorted(set(words) - ZONES.keys())
    if unknown and not timezone:
        parts.time = _no_times(parts.time.index)
        parts.unclear = (
            f"the zone {unknown[0]!r} has several meanings: give it as timezone=, such as"
            ' timezone="America/New_York"'
        )
        return parts
    hours = zone.map(_offset_hours).astype(float)
    if timezone:
        local = _localize(parts.time, timezone).dt.tz_convert("UTC").dt.tz_localize(None)
        parts.time = parts.time.where(hours.notna(), local.astype("datetime64[us]"))
        parts.how.append(f"times of {timezone} are converted to UTC")
    if hours.fillna(0).any():
        parts.how.append("times with a zone are converted to UTC")
    offset = pd.to_timedelta(hours.fillna(0), unit="h")
    parts.time = (parts.time - offset).astype("datetime64[us]")
    return parts


def _offset_hours(zone) -> float:
    if not isinstance(zone, str):
        return np.nan
    if zone[0] not in "+-":
        return ZONES.get(zone, np.nan)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours = int(digits[:2]) + int(digits[2:]) / 60
    return hours if zone[0] == "+" else -hours
