"""Read labels from a file and check them against the users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.errors import DataError


def read_labels(path: Path | None, name: str | None, users: Users) -> pd.Series:
    """Return the known labels of these users, from a file or from the users themselves.

    Args:
        path: Table with the columns `user` and `name`, csv or parquet; None for a label of `users`.
            Ids are text: 007 and 7 are two users.
        name: Name of the label, values 0, 1 or empty. None: the column `label` of the file, or the
            users' only label.
        users: The users; labels of others are ignored.

    Returns:
        Index `user`, values 0. or 1.; unknown labels are left out.

    Raises:
        DataError: The file holds a value that cannot be used; names row and column.
        ValueError: The file has no label of these users, or `name` is None and they have not
            exactly one label.

    Example:
        >>> import tempfile
        >>> users = qa.make_sample_users(2)
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = path.write_text("user,label\\nu000000,1\\nsomebody,0\\n")
        >>> read_labels(path, "label", users).to_dict()
        {'u000000': 1.0}
    """
    if path is None:
        return _label_of_users(name, users)
    name = name or "label"
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype={"user": str})
        else:
            frame = pd.read_parquet(path)
    except ValueError as error:
        hint = "cannot be read: write it again as parquet or csv"
        raise DataError(path.name, None, name, str(error), hint) from error
    for column in ("user", name):
        if column not in frame:
            hint = "missing: write it"
            if column != "user":
                hint += ", or name another with --label"
            hint += " (`check --fix` mends a folder)"
            raise DataError(path.name, None, column, list(frame.columns), hint)
    invalid = frame[~(frame[name].isin([0, 1]) | frame[name].isna())]
    if len(invalid):
        row = int(invalid.index[0])
        hint = "write 0, 1, or leave it empty"
        raise DataError(path.name, row, name, invalid[name].iloc[0], hint)
    repeated = frame["user"].astype(str).duplicated()
    if repeated.any():
        row = int(np.flatnonzero(repeated)[0])
        hint = "stands twice: keep one label a user"
        raise DataError(path.name, row, "user", frame["user"].iloc[row], hint)
    labels = frame.assign(user=frame["user"].astype(str)).set_index("user")[name].astype(float)
    known = labels.reindex(list(users.ids)).dropna()
    if known.empty:
        raise ValueError(
            f"{path}: none of its {len(labels):,} users is among the {len(users):,} of"
            f" {users.name}. Check that both use the same ids."
        )
    return known


def _label_of_users(name: str | None, users: Users) -> pd.Series:
    names = list(users.labels)
    if name is None and len(names) != 1:
        hint = "Give a file with --labels-file."
        if names:
            hint = f"Choose one of {', '.join(names)} with --label."
        raise ValueError(f"{users.name} has {len(names)} labels, and no name was given. {hint}")
    return users.label(name or names[0]).dropna()
