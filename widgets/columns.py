"""Columns of the users: what the map is colored by, and what users are found by."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from widgets.packing import float_bytes, int_bytes

NO_COLUMNS = ("user", "first", "last", "recent")  # of a frame of users: they say who a user is
MAX_CATEGORIES = 7  # that have a color of their own; the others share one
MAX_FEW_NUMBERS = 7  # so few different numbers are categories
OTHERS = "others"
NUMBER_ENDS = (0.02, 0.98)  # quantiles at the ends of the scale of colors
COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
CONDITION = re.compile(r"^\s*(?P<name>.+?)\s*(?P<sign>>=|<=|!=|=|>|<)\s*(?P<value>.+?)\s*$")


class UserColumns:
    """Columns of the users of a view.

    Args:
        frame: One row per user, in the order of the view. What says who a user is (`user, first,
            last, recent`) is no such column, nor is one whose values all are the same.

    Example:
        >>> columns = UserColumns(pd.DataFrame({"user": ["a", "b"], "age": [30, 50]}))
        >>> columns.names, columns.find("age > 40").tolist()
        (['age'], [1])
    """

    def __init__(self, frame: pd.DataFrame):
        frame = frame.rename(columns=str)
        told = [name for name in frame if name not in NO_COLUMNS and _differs(frame[name])]
        self.frame = frame[told].reset_index(drop=True)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.frame)

    def pack(self, name: str) -> dict:
        """Pack one column for the browser, as colors take it.

        Args:
            name: Name of the column.

        Returns:
            `name` and, for numbers, `values` (float32, from 0 to 1, NaN if unknown), `low` and
            `high`; for categories `codes` (int32, -1 if unknown), `names` and `counts`, the most
            frequent first.
        """
        values = self.frame[name]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > MAX_FEW_NUMBERS:
            values = values.astype(float)
            low, high = values.quantile(NUMBER_ENDS)
            scaled = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
            return {"name": name, "values": float_bytes(scaled), "low": low, "high": high}
        texts = _texts(values)
        counts = texts.value_counts()
        shown = list(counts.index[:MAX_CATEGORIES])
        if len(counts) > len(shown):
            shown[-1:] = [OTHERS]
            texts = texts.where(texts.isin(shown) | texts.isna(), OTHERS)
        codes = pd.Categorical(texts, shown).codes
        sizes = [int((codes == code).sum()) for code in range(len(shown))]
        return {"name": name, "codes": int_bytes(codes), "names": shown, "counts": sizes}

    def find(self, text: str) -> np.ndarray | None:
        """Find users by a condition on a column, or several with "and" between.

        Args:
            text: Such as `age >= 40 and city = Oslo`; case does not matter.

        Returns:
            Row numbers; None if the text is no condition on a column.
        """
        found = np.ones(len(self.frame), bool)
        for part in re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE):
            meets = self._meets(part)
            if meets is None:
                return None
            found &= meets
        return np.flatnonzero(found)

    def _meets(self, text: str) -> np.ndarray | None:
        """Return which users meet one condition; None if it is no condition on a column."""
        condition = CONDITION.match(text)
        by_name = {name.casefold(): name for name in self.names}
        if condition is None or condition["name"].casefold() not in by_name:
            return None
        values = self.frame[by_name[condition["name"].casefold()]]
        compare = COMPARISONS[condition["sign"]]
        value = condition["value"].strip("'\"")
        number = pd.to_numeric(value, errors="coerce")
        if pd.api.types.is_numeric_dtype(values) and not pd.isna(number):
            meets = compare(values.astype(float), number)
        else:
            meets = compare(_texts(values).str.casefold(), value.casefold())
        return (meets & values.notna()).to_numpy(bool)


def with_columns(
    frame: pd.DataFrame, ids: Sequence[str], columns: pd.DataFrame | None
) -> pd.DataFrame:
    """Return the frame of the users with further columns, matched by id.

    Args:
        frame: One row per user.
        ids: The ids, in the order of the frame.
        columns: One row per user, index the ids; a name that is taken is called "(label)".
    """
    frame = frame.reset_index(drop=True)
    if columns is None:
        return frame
    columns = columns.set_axis(columns.index.map(str)).reindex(ids).reset_index(drop=True)
    taken = {name: f"{name} (label)" for name in columns if name in frame}
    return frame.join(columns.rename(columns=taken))


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


def _differs(values: pd.Series) -> bool:
    """Return whether a column holds plain values that are not all the same."""
    if values.map(lambda value: isinstance(value, list | tuple | np.ndarray)).any():
        return False
    return values.nunique(dropna=False) > 1


def _texts(values: pd.Series) -> pd.Series:
    """Return values as people write them, None if unknown."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    return values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
