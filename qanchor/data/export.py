"""Write a group of users to a file."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from qanchor.data.users import Users
from qanchor.utils.io import atomic_write
from qanchor.utils.text import count, plural
from qanchor.utils.types import UserMask

FORMULA_STARTS = tuple("=+-@＝＋－＠")
MIN_GROUP_SIZE = 10  # users; a smaller group is not exported, because it could identify people


def export_group(
    users: Users,
    ids: Iterable[str],
    path: str | Path,
    *,
    least: int = MIN_GROUP_SIZE,
    salt: str | None = None,
) -> Path:
    """Write a group of users to a CSV or Parquet file, one row a user as in `users.frame()`.

    In a CSV, a text that a spreadsheet would evaluate (it begins with = + - @) gets a leading
    apostrophe. The file is written atomically.

    Args:
        users: The users.
        ids: Ids of the group.
        path: The file to write; its ending, .csv or .parquet, sets the format.
        least: Smallest size of a group, because small groups identify people. Default: 10.
        salt: Secret key that pseudonymizes ids: each is replaced by its HMAC-SHA256, and rows are
            sorted by it. Recent texts are still written. Default: ids are written as they are.

    Returns:
        The path.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If there are no ids or fewer than `least`, if all users are selected, if the
            salt is empty, or if the file has another ending.

    Example:
        >>> import tempfile
        >>> users = qa.make_sample_users(60)
        >>> path = Path(tempfile.mkdtemp()) / "some.csv"
        >>> path = export_group(users, users.ids[:12], path, salt="a secret")
        >>> len(pd.read_csv(path)), len(pd.read_csv(path).user[0])
        (12, 64)
    """
    path = Path(path)
    ids = list(ids)
    if not ids:
        raise ValueError(
            f"No {plural(users.unit)} selected. Select some in the lens and run this cell again."
        )
    inside = membership_mask(users.ids, ids)
    if inside.sum() < least:
        raise ValueError(
            f"Found {count(int(inside.sum()), users.unit)} in the group; at least {least} are"
            " needed to export it. Select more."
        )
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path.name} is not a .csv or .parquet file. Use one of these endings.")
    frame = users.frame()[inside].reset_index(drop=True)
    if salt is not None:
        frame["user"] = [_hash(user, salt) for user in frame["user"]]
        frame = frame.sort_values("user", ignore_index=True)
    if path.suffix == ".parquet":
        frame["recent"] = frame["recent"].map(list)
        return atomic_write(path, partial(frame.to_parquet, index=False))
    frame["recent"] = frame["recent"].map(" · ".join)
    frame = frame.map(escape_formula).rename(columns=escape_formula)

    def write(part: Path) -> None:
        # quote all texts: else a carriage return would start a new row with an unescaped cell
        frame.to_csv(part, index=False, quoting=csv.QUOTE_NONNUMERIC)

    return atomic_write(path, write)


def _hash(user: str, salt: str) -> str:
    if not salt:
        raise ValueError("The salt is empty, so ids could be guessed. Pass a secret text.")
    return hmac.new(salt.encode(), user.encode(), hashlib.sha256).hexdigest()


def escape_formula(cell):
    """Put an apostrophe before a text that a spreadsheet would evaluate as a formula.

    Args:
        cell: Any value. All but such texts are returned unchanged.

    Example:
        >>> escape_formula("=HYPERLINK(1)"), escape_formula("tea = 3"), escape_formula(-2)
        ("'=HYPERLINK(1)", 'tea = 3', -2)
    """
    is_formula = isinstance(cell, str) and cell.lstrip().startswith(FORMULA_STARTS)
    return f"'{cell}" if is_formula else cell


def membership_mask(everyone: Sequence[str], ids: Iterable[str]) -> UserMask:
    """Return a mask of the users that are in a group.

    Args:
        everyone: Ids of all users.
        ids: Ids of the group; order and repeats do not matter.

    Raises:
        KeyError: An id is unknown.
        ValueError: The group is empty or holds all users.

    Example:
        >>> membership_mask(("a", "b", "c"), ["c"])
        array([False, False,  True])
    """
    wanted = pd.Index(map(str, ids), dtype=str)
    unknown = wanted[~wanted.isin(everyone)]
    if len(unknown):
        raise KeyError(
            f"User {unknown[0]!r} is not among the {len(everyone):,} users. Check the id."
        )
    inside = pd.Index(everyone).isin(wanted)
    if inside.all() or not inside.any():
        raise ValueError(
            f"The group holds {inside.sum():,} of {len(inside):,} users, so there is nothing to"
            " compare. Select some users, but not all."
        )
    return inside
