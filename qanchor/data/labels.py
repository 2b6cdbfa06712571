"""Labels: read from a file, checked against the users that were read, numbered by class, and divided for validation."""

from __future__ import annotations

from pathlib import Path
import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.errors import DataError


def read_labels(path: Path | None, name: str | None, users: Users) -> pd.Series:
    """Read a label file, columns user and `name` (0, 1 or empty), and give what it knows of these users: index user, 0. or 1.

    Without a file it is a label of the users themselves, and without a name their only one.
    Raises DataError with the place of what is wrong, ValueError when it knows none of these users.
    """
    if path is None:
        return _own_label(name, users)
    name = name or "label"
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ValueError as error:
        raise DataError(path.name, None, name, str(error), "cannot be read: write it again as parquet or csv") from error
    for column in ("user", name):
        if column not in frame:
            cure = "missing: write it" if column == "user" else "missing: write it, or name another with --column"
            raise DataError(path.name, None, column, list(frame.columns), f"{cure} (`check --fix` mends a folder)")
    bad = frame[~(frame[name].isin([0, 1]) | frame[name].isna())]
    if len(bad):
        raise DataError(path.name, int(bad.index[0]), name, bad[name].iloc[0], "write 0, 1, or leave it empty")
    twice = frame["user"].astype(str).duplicated()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise DataError(path.name, row, "user", frame["user"].iloc[row], "stands twice: keep one label a user")
    truth = frame.assign(user=frame["user"].astype(str)).set_index("user")[name].astype(float)
    known = truth.reindex(list(users.ids)).dropna()
    if known.empty:
        raise ValueError(f"{path}: none of its {len(truth):,} users is among the {len(users):,} of {users.name}: check the ids")
    return known


def _own_label(name: str | None, users: Users) -> pd.Series:
    named = list(users.labels)
    if name is None and len(named) != 1:
        cure = f"choose one of {', '.join(named)} with --column" if named else "give a file with --labels"
        raise ValueError(f"{users.name} has {len(named)} labels, and none is named: {cure}")
    return users.label(name or named[0]).dropna()
