"""Read labels from a file and check them against the users."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qanchor.data.cells import check_known_ids, read_ids, read_label
from qanchor.data.columns import find_fact_columns
from qanchor.data.sources import open_table
from qanchor.data.users import Users
from qanchor.data.validation import Findings


def read_labels(
    path: Path | None, name: str | None, users: Users, positive: str | None = None
) -> pd.Series:
    """Return the known labels of these users, from a file or from the users themselves.

    Args:
        path: Table with a column of user ids and the column `name`, in any format that
            `read_events` reads; None for a label of `users`. Ids are text: 007 and 7 are two users.
        name: Name of the label, values 0, 1, yes, no or empty. None: the column `label` of the
            file, or its only one, or the users' only label.
        users: The users; labels of others are ignored.
        positive: Word that is 1, for a label of words (default: none).

    Returns:
        Index `user`, values 0. or 1.; unknown labels are left out.

    Raises:
        DataError: The file holds a value that cannot be used, no user of it has an event, or an id
            looks like one of `users` but for zeros; names row and column.
        ValueError: `name` is None and the users have not exactly one label.

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
    findings = Findings()
    table = open_table(path, findings)
    columns = find_fact_columns(table, findings)
    others = [column for column in table.frame if column != columns.user]
    name = name or (others[0] if len(others) == 1 else "label")
    if name not in table.frame:
        message = "missing: write it, or name another with --label"
        findings.add(table.name, name, list(table.frame.columns), message)
    findings.raise_errors()
    ids = read_ids(findings, table.name, table.frame[columns.user], {})
    labels = read_label(findings, table.name, table.frame[name], positive)
    known = labels.notna()
    findings.rows(table.name, ids, known & ids.isna(), "a user needs an id: fill it")
    repeated = known & ids.notna() & ids[known].duplicated().reindex(ids.index, fill_value=False)
    findings.rows(table.name, ids, repeated, "stands twice: keep one label a user")
    known = known & ids.notna()
    labels = labels[known].set_axis(ids[known].astype(str).rename("user"))
    check_known_ids(findings, table.name, ids[known].astype(str), set(users.ids), needed=True)
    findings.raise_errors()
    return labels.reindex([user for user in users.ids if user in labels.index]).rename_axis("user")


def _label_of_users(name: str | None, users: Users) -> pd.Series:
    names = list(users.labels)
    if name is None and len(names) != 1:
        hint = "Give a file with --labels-file."
        if names:
            hint = f"Choose one of {', '.join(names)} with --label."
        raise ValueError(f"{users.name} has {len(names)} labels, and no name was given. {hint}")
    return users.label(name or names[0]).dropna()
