"""Columns of the users: what the map is colored by, and what users are found by."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from qanchor.widgets.packing import float_bytes, int_bytes

NO_COLUMNS = ["user", "first", "last", "recent"]  # of a frame of users: they say who a user is
MAX_CATEGORIES = 7  # that have a color of their own; the others share one
MAX_FEW_NUMBERS = 7  # so few different numbers are categories
OTHERS = "all others"
NUMBER_ENDS = (0.02, 0.98)  # quantiles at the ends of the scale of colors
COMPARISONS = {
    ">=": operator.ge,
    "≥": operator.ge,
    "<=": operator.le,
    "≤": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
SIGN = "|".join(COMPARISONS)
EQUALITIES = ("=", "==", "!=")
TRUTH = {"true": 1, "yes": 1, "false": 0, "no": 0}
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
        frame = frame.drop(columns=NO_COLUMNS, errors="ignore")
        columns = {}
        for name in frame:
            values = plain_values(frame[name])
            if values is None:
                continue
            if values.nunique(dropna=False) > 1:
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
        is_number = is_day(values) or pd.api.types.is_numeric_dtype(values)
        if is_number and values.nunique() > MAX_FEW_NUMBERS:
            packed = pack_numbers(values)
        else:
            packed = pack_categories(texts(values))
        packed["name"] = name
        return packed

    def find(self, text: str) -> np.ndarray | None:
        """Find users by a condition on a column, or several with "and" between.

        Args:
            text: Such as `age >= 40 and city = Oslo`; case does not matter.

        Returns:
            Row numbers; None if the text is no condition on a column.

        Raises:
            ValueError: Something is compared with < or > that is neither a number nor a day.
        """
        longest_first = sorted(self.names, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first))
        begin = rf"\s*({names})\s*({SIGN})"
        end = rf"\s*(?:$|\band\b(?={begin}))"
        condition = re.compile(rf"{begin}\s*(.+?){end}", re.IGNORECASE)
        found = np.ones(len(self.frame), bool)
        text = text.rstrip()
        place = 0
        while place < len(text):
            match = condition.match(text, place)
            if match is None:
                return None
            name, sign, value, *_ = match.groups()
            found &= self._meets(name, sign, value)
            place = match.end()
        return np.flatnonzero(found) if place else None

    def _meets(self, name: str, sign: str, value: str) -> np.ndarray:
        """Return which users meet one condition."""
        if name not in self.frame:  # written in another case
            same = [other for other in self.names if other.casefold() == name.casefold()]
            name = same[0]
        values = self.frame[name]
        value = value.strip("'\"")
        if is_day(values):
            wanted = pd.to_datetime(value, errors="coerce")
            values = values.dt.tz_localize(None).dt.floor("D")  # a day is all of it
        elif pd.api.types.is_numeric_dtype(values):
            number = TRUTH.get(value.casefold(), value)
            wanted = pd.to_numeric(number, errors="coerce")
        else:
            wanted = None
        if pd.isna(wanted):
            if sign not in EQUALITIES:
                raise ValueError(f"{name} {sign} {value}: only numbers and days can be compared so")
            values = texts(values).str.casefold()
            wanted = value.casefold()
        compare = COMPARISONS[sign]
        meets = compare(values, wanted) & values.notna()
        return meets.to_numpy(bool)


def pack_numbers(values: pd.Series) -> dict:
    """Pack numbers or days: `values` from 0 to 1, and `low` and `high` in words."""
    low, high = values.quantile(list(NUMBER_ENDS))
    above = values - low
    width = high - low
    if is_day(values):
        above = above / DAY
        width = width / DAY
        written = "{:%Y-%m-%d}"
    else:
        written = "{:,.3g}"
    scaled = above / max(width, 1e-12)
    return {
        "values": float_bytes(scaled.clip(0, 1)),
        "low": written.format(low),
        "high": written.format(high),
    }


def pack_categories(values: pd.Series) -> dict:
    """Pack texts: `codes`, and `names` and `counts` of the categories, the most frequent first."""
    frequent = values.value_counts().index
    names = list(frequent)
    if len(names) > MAX_CATEGORIES:
        names = [*names[: MAX_CATEGORIES - 1], OTHERS]
    ranks = frequent.get_indexer(values)  # -1 if unknown
    codes = np.minimum(ranks, len(names) - 1)
    known = codes[codes >= 0]
    counts = np.bincount(known, minlength=len(names))
    return {
        "codes": int_bytes(codes),
        "names": names,
        "counts": counts.tolist(),
    }


def with_columns(
    frame: pd.DataFrame, ids: Sequence[str], columns: pd.DataFrame | None
) -> pd.DataFrame:
    """Return the frame of the users with further columns, matched by id.

    Args:
        frame: One row per user.
        ids: The ids, in the order of the frame.
        columns: One row per user, index the ids; a name that is taken is followed by "(2)".
    """
    if columns is None:
        return frame
    columns = columns.rename(index=str).reindex(ids)
    for name in columns.columns.intersection(frame.columns):
        columns = columns.rename(columns={name: f"{name} (2)"})
    return pd.concat([frame, columns.set_axis(frame.index)], axis=1)


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
    is_found = names == wanted
    if not is_found.any():
        is_found = names.str.startswith(wanted)
    return np.flatnonzero(is_found)


def plain_values(values: pd.Series) -> pd.Series | None:
    """Return a column as numbers where all of it are numbers, durations as days; None if a cell
    holds several values.

    Args:
        values: The column.
    """
    if values.map(pd.api.types.is_list_like).any():
        return None
    if pd.api.types.is_bool_dtype(values):
        return values.astype(float)
    if pd.api.types.is_timedelta64_dtype(values):
        values = values / DAY
    elif values.dtype == object:
        numbers = pd.to_numeric(values, errors="coerce")
        is_number = numbers.notna()
        if is_number.equals(values.notna()):
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
    groups = defaultdict(list)
    for indicator, values in frame.select_dtypes("number").items():
        if "." in indicator and values.isin([0, 1]).all():
            name, _, _ = indicator.partition(".")
            groups[name].append(indicator)
    for name, group in groups.items():
        parts = frame[group]
        n_true = parts.sum(axis=1)
        if len(group) < 2 or name in frame or n_true.max() > 1:
            continue
        true_names = parts.idxmax(axis=1)
        values = true_names.str.removeprefix(f"{name}.")
        frame = frame.drop(columns=group)
        frame[name] = values.where(n_true == 1, None)
    return frame


def is_day(values: pd.Series) -> bool:
    """Whether a column holds days or times."""
    return pd.api.types.is_datetime64_any_dtype(values)


def texts(values: pd.Series) -> pd.Series:
    """Return values as people write them, None if unknown."""
    if pd.api.types.is_float_dtype(values):
        is_whole = values.dropna() % 1 == 0
        if is_whole.all():
            values = values.astype("Int64")
    if is_day(values):
        values = values.dt.strftime("%Y-%m-%d")
    cells = values.astype(object)
    known = cells.where(values.notna(), None)
    return known.map(str, na_action="ignore")
