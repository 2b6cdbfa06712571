"""Write a group of users to a file."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.utils.io import atomic_write
from qanchor.utils.text import plural
from qanchor.utils.types import UserMask

MIN_GROUP_SIZE = 10  # users: a smaller group is not written to a file, for it points at persons


def export_group(
    users: Users,
    ids: Iterable[str],
    path,
    *,
    beside: pd.DataFrame | None = None,
    least: int = MIN_GROUP_SIZE,
    salt: str | None = None,
) -> Path:
    """Write a group of users to a CSV or Parquet file, one row a user as in `users.frame()`.

    A text in a CSV that a spreadsheet would run (it begins with = + - @) gets an apostrophe in
    front. The file is written atomically.

    Args:
        users: The users.
        ids: Ids of the group.
        path: Where to write; the ending .csv or .parquet sets the format.
        beside: Further columns, one row a user with a column `user`, such as `lens.ranking`. The
            file has its order (with a salt, the order of the hashes); users that are not in it
            come last. Default: no further columns.
        least: Smallest group that is written, because few users are persons. Default: 10.
        salt: A secret: ids become their HMAC-SHA256 under it, and rows are sorted by that; recent
            texts stay. Default: ids as they are.

    Returns:
        The path.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If there are no ids, fewer than `least`, an empty salt, another ending, or
            `beside` has none of these users.

    Example:
        >>> import tempfile
        >>> users = qa.make_sample_users(40)
        >>> path = export_group(users, users.ids[:12], tempfile.mkdtemp() + "/some.csv", salt="a secret")
        >>> len(pd.read_csv(path)), len(pd.read_csv(path).user[0])
        (12, 64)
        >>> order = pd.DataFrame({"user": users.ids[::-1], "score": np.arange(40)})
        >>> pd.read_csv(export_group(users, users.ids[:12], path, beside=order)).score[:3].tolist()
        [28, 29, 30]
    """
    path, ids = Path(path), list(ids)
    if not ids:
        raise ValueError(
            f"No {plural(users.unit)} selected. Select some in the lens and run this cell again."
        )
    inside = membership_mask(users.ids, ids)
    if inside.sum() < least:
        raise ValueError(
            f"{inside.sum()} {users.unit}(s) in the group, at least {least} are "
            "needed for a file: choose more"
        )
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(
            f"{path.name} ends with {path.suffix or 'nothing'}: name it .csv or .parquet"
        )
    frame = users.frame()[inside].reset_index(drop=True)
    frame = frame if beside is None else _join_columns(frame, beside)
    if salt is not None:
        if not salt:
            raise ValueError(
                "the salt is empty, so anybody could find the ids by trying: give a secret of yours"
            )
        frame["user"] = [
            hmac.new(salt.encode(), user.encode(), hashlib.sha256).hexdigest()
            for user in frame["user"]
        ]
        frame = frame.sort_values("user", ignore_index=True)
    if path.suffix == ".parquet":
        frame = frame.assign(recent=[list(texts) for texts in frame["recent"]])
        return atomic_write(path, lambda part: frame.to_parquet(part, index=False))
    frame = _as_csv_cells(frame)
    # Quote all texts: otherwise a carriage return starts a row, with a cell that was not escaped.
    options = {"index": False, "quoting": csv.QUOTE_NONNUMERIC}
    return atomic_write(path, lambda part: frame.to_csv(part, **options))


def _as_csv_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Join the recent texts into one cell, and escape what a spreadsheet would run."""
    cells = frame.assign(recent=[" · ".join(texts) for texts in frame["recent"]])
    for column in cells:
        if cells[column].dtype.kind not in "biufM":
            cells[column] = cells[column].map(escape_formula)
    return cells.rename(columns=escape_formula)


def _join_columns(frame: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """Set further columns beside a frame of users, and bring its rows into their order."""
    twice = int(beside["user"].duplicated().sum()) if "user" in beside else 0
    taken = [name for name in beside if name in frame and name != "user"]
    if "user" not in beside or twice or taken:
        told = (
            "no column 'user'"
            if "user" not in beside
            else f"{twice} users twice"
            if twice
            else (f"columns {taken} again")
        )
        raise ValueError(
            f"`beside` has {told}: give one row a user and new columns, as lens.order has"
        )
    more = beside.assign(user=beside["user"].astype(str)).set_index("user")
    place = more.index.get_indexer(frame["user"])
    if (place < 0).all():
        raise ValueError(
            f"`beside` has none of the {len(frame)} users: wait until the lens has "
            "found who is nearest to a yes"
        )
    order = np.argsort(np.where(place < 0, len(more), place), kind="stable")
    return frame.join(more, on="user").iloc[order].reset_index(drop=True)


def escape_formula(cell):
    """Give a text back so that no spreadsheet takes it for a formula; other values stay.

    Example:
        >>> escape_formula("=HYPERLINK(1)"), escape_formula("tea = 3"), escape_formula(-2)
        ("'=HYPERLINK(1)", 'tea = 3', -2)
    """
    return (
        f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in tuple("=+-@＝＋－＠") else cell
    )


def membership_mask(everyone: Sequence[str], ids: Iterable[str]) -> UserMask:
    """Say who of everyone is in the group; refuse strangers, nobody and everybody.

    Example:
        >>> membership_mask(("a", "b", "c"), ["c"])
        array([False, False,  True])
    """
    index, ids = pd.Index(everyone), [str(user) for user in ids]
    rows = index.get_indexer(pd.Index(ids, dtype=index.dtype))
    if (rows < 0).any():
        raise KeyError(
            f"user {ids[int(np.argmin(rows))]!r} is not among the {len(index):,}: choose from these"
        )
    inside = np.zeros(len(index), dtype=bool)
    inside[rows] = True
    if inside.all() or not inside.any():
        raise ValueError(
            f"the group holds {inside.sum():,} of {len(index):,} users, so there is nothing to "
            "compare: choose some"
        )
    return inside
