"""Columns of the users: what the map is colored by, and what users are found by."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from qanchor.widgets.packing import float_bytes, int_bytes

NO_COLUMNS = ("user", "first", "last", "recent")  # of a frame of users: they say who a user is
MAX_CATEGORIES = 7  # that have a color of their own; the others share one
MAX_FEW_NUMBERS = 7  # so few different numbers are categories
OTHERS = "all others"
NUMBER_ENDS = (0.02, 0.98)  # quantiles at the ends of the scale of colors
COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
SIGNS = {"≥": ">=", "≤": "<=", "==": "="}  # other ways to write them
SIGN = "|".join([*COMPARISONS, *SIGNS])
TRUTH = {"true": "1", "yes": "1", "false": "0", "no": "0"}
DAY = pd.Timedelta(days=1)


class UserColumns:
    """Columns of the users of a view.

    Args:
        frame: One row per user, in the order of the view. What says who a user is (`user, first,
            last, recent`) is no such column, nor is one whose values all are the same or are no
            plain values. Columns `name.value` of 0 and 1, one for each value, become one column.
            Of two columns of one name the first counts.

    Example:
        >>> columns = UserColumns(pd.DataFrame({"user": ["a", "b"], "age": [30, 50]}))
        >>> columns.names, columns.find("age > 40").tolist()
        (['age'], [1])
    """

    def __init__(self, frame: pd.DataFrame):
        frame = frame.rename(columns=str).reset_index(drop=True)
        frame = frame.loc[:, ~frame.columns.duplicated()]
        columns = {}
        for name in frame:
            values = None if name in NO_COLUMNS else plain_values(frame[name])
            if values is not None and values.nunique(dropna=False) > 1:
                columns[name] = values
        self.frame = fold_indicators(pd.DataFrame(columns, index=frame.index))

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.frame)

    def pack(self, name: str) -> dict:
        """Pack one column for the browser, as colors take it.

        Args:
            name: Name of the column.

        Returns:
            `name` and, for numbers and days, `values` (float32, from 0 to 1, NaN if unknown), `low`
            and `high` in words; for categories `codes` (int32, -1 if unknown), `names` and
            `counts`, the most frequent first.
        """
        values = self.frame[name]
        is_day = pd.api.types.is_datetime64_any_dtype(values)
        is_number = is_day or pd.api.types.is_numeric_dtype(values)
        if is_number and values.nunique() > MAX_FEW_NUMBERS:
            ends = values.quantile(list(NUMBER_ENDS))
            low, high = ends if is_day else ends.astype(float)
            shown = [f"{end:%Y-%m-%d}" if is_day else f"{end:,.3g}" for end in (low, high)]
            width = (high - low) / DAY if is_day else high - low
            above = (values - low) / DAY if is_day else values - low
            scaled = (above / max(width, 1e-12)).clip(0, 1)
            return {
                "name": name,
                "values": float_bytes(scaled),
                "low": shown[0],
                "high": shown[1],
            }
        texts = _texts(values)
        frequent = list(texts.value_counts().index)
        shown = frequent[:MAX_CATEGORIES]
        if len(frequent) > MAX_CATEGORIES:
            shown = [*frequent[: MAX_CATEGORIES - 1], OTHERS]
        code_of = {text: min(code, len(shown) - 1) for code, text in enumerate(frequent)}
        codes = texts.map(code_of).fillna(-1).astype(int)
        sizes = [int((codes == code).sum()) for code in range(len(shown))]
        return {"name": name, "codes": int_bytes(codes), "names": shown, "counts": sizes}

    def find(self, text: str) -> np.ndarray | None:
        """Find users by a condition on a column, or several with "and" between.

        Args:
            text: Such as `age >= 40 and city = Oslo`; case does not matter.

        Returns:
            Row numbers; None if the text is no condition on a column.

        Raises:
            ValueError: Something is compared with < or > that is neither a number nor a day.
        """
        names = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        if not names:
            return None
        begin = rf"(?:{names})\s*(?:{SIGN})"
        condition = re.compile(
            rf"\s*(?P<name>{names})\s*(?P<sign>{SIGN})\s*(?P<value>.+?)\s*"
            rf"(?:$|\band\b(?=\s*{begin}))",
            re.IGNORECASE,
        )
        found = np.ones(len(self.frame), bool)
        place = 0
        while place < len(text.rstrip()):
            match = condition.match(text, place)
            if match is None:
                return None
            found &= self._meets(match["name"], match["sign"], match["value"])
            place = match.end()
        return np.flatnonzero(found) if place else None

    def _meets(self, name: str, sign: str, value: str) -> np.ndarray:
        """Return which users meet one condition."""
        if name not in self.frame:  # written in another case
            name = next(other for other in self.names if other.casefold() == name.casefold())
        values = self.frame[name]
        sign = SIGNS.get(sign, sign)
        value = value.strip("'\"")
        if pd.api.types.is_datetime64_any_dtype(values):
            wanted = pd.to_datetime(value, errors="coerce")
            values = values.dt.tz_localize(None).dt.floor("D")  # a day is all of it
        elif pd.api.types.is_numeric_dtype(values):
            wanted = pd.to_numeric(TRUTH.get(value.casefold(), value), errors="coerce")
        else:
            wanted = None
        if wanted is None or pd.isna(wanted):
            if sign not in ("=", "!="):
                raise ValueError(f"{name} {sign} {value}: only numbers and days can be compared so")
            values = _texts(values).str.casefold()
            wanted = value.casefold()
        meets = COMPARISONS[sign](values, wanted)
        return (meets & values.notna()).to_numpy(bool)


def with_columns(
    frame: pd.DataFrame, ids: Sequence[str], columns: pd.DataFrame | None
) -> pd.DataFrame:
    """Return the frame of the users with further columns, matched by id.

    Args:
        frame: One row per user.
        ids: The ids, in the order of the frame.
        columns: One row per user, index the ids; a name that is taken is followed by "(2)".

    Raises:
        ValueError: A user has several rows in `columns`.
    """
    frame = frame.reset_index(drop=True)
    if columns is None:
        return frame
    columns = columns.set_axis(columns.index.map(str))
    if columns.index.has_duplicates:
        twice = columns.index[columns.index.duplicated()][0]
        raise ValueError(f"the columns have user {twice!r} twice: give one row a user")
    columns = columns.reindex(ids).reset_index(drop=True)
    taken = {name: f"{name} (2)" for name in columns if name in frame}
    return pd.concat([frame, columns.rename(columns=taken)], axis=1)


def find_ids(ids: Sequence[str], text: str) -> np.ndarray:
    """Return the rows of the user who is called so; if there is none, of those whose ids begin so.

    Args:
        ids: Ids of the users.
        text: An id, or the beginning of some.

    Example:
        >>> find_ids(["u1", "u10", "v1"], "U1").tolist(), find_ids(["u1", "u10"], "u").tolist()
        ([0], [0, 1])
    """
    names = pd.Series(ids, dtype=str).str.casefold()
    wanted = text.strip().casefold()
    if not wanted:
        return np.empty(0, int)
    is_called = names == wanted
    return np.flatnonzero(is_called if is_called.any() else names.str.startswith(wanted))


def plain_values(values: pd.Series) -> pd.Series | None:
    """Return a column as numbers where all of it are numbers, durations as days; None if a cell
    holds several values.

    Args:
        values: The column.
    """
    if values.map(lambda value: isinstance(value, list | tuple | set | dict | np.ndarray)).any():
        return None
    if pd.api.types.is_bool_dtype(values):
        return values.astype(float)
    if pd.api.types.is_timedelta64_dtype(values):
        values = values / DAY
    elif values.dtype == object:
        numbers = pd.to_numeric(values, errors="coerce")
        if (numbers.notna() == values.notna()).all():
            values = numbers
    if pd.api.types.is_float_dtype(values):
        values = values.replace([np.inf, -np.inf], np.nan)
    return values


def fold_indicators(frame: pd.DataFrame) -> pd.DataFrame:
    """Return columns in which several `name.value` of 0 and 1, of which at most one is 1, are one.

    Args:
        frame: The columns.

    Example:
        >>> frame = pd.DataFrame({"city.Rome": [1, 0], "city.Oslo": [0, 1]})
        >>> fold_indicators(frame)["city"].tolist()
        ['Rome', 'Oslo']
    """
    numbers = frame.select_dtypes("number")
    indicators = [name for name in numbers if "." in name and numbers[name].isin([0, 1]).all()]
    groups: dict[str, list[str]] = {}
    for indicator in indicators:
        groups.setdefault(indicator.partition(".")[0], []).append(indicator)
    for name, group in groups.items():
        parts = frame[group]
        if len(group) < 2 or name in frame or (parts.sum(axis=1) > 1).any():
            continue
        values = parts.idxmax(axis=1).str.slice(len(name) + 1)
        frame = frame.drop(columns=group)
        frame[name] = values.where(parts.sum(axis=1) == 1, None)
    return frame


def _texts(values: pd.Series) -> pd.Series:
    """Return values as people write them, None if unknown."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    if pd.api.types.is_datetime64_any_dtype(values):
        values = values.dt.strftime("%Y-%m-%d")
    return values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
