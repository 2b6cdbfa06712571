"""Read labels from a file and check them against the users."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd

from qanchor.data.cells import check_known_ids
from qanchor.data.reading import read_label_table
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
        name: Name of the label, values 0, 1, yes, no or empty. None for the column `label` of the
            file, its only label column, or the only label of `users`.
        users: The users; labels of others are ignored.
        positive: Word that means 1, if the labels are words (default: none).

    Returns:
        Index `user`, values 0. or 1.; unknown labels are left out.

    Raises:
        DataError: The file has an invalid value, none of its users is known, or an id differs from
            a known one only by leading zeros. The message names row and column.
        ValueError: `path` and `name` are None, and `users` does not have exactly one label.

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
    table = open_table(path, Findings())
    findings = table.findings
    if name is None and ("label" in table.frame or table.frame.shape[1] > 2):
        name = "label"
    labels = read_label_table(table, positive, name)
    if not labels.shape[1]:
        message = "missing. Add it, or name another column with --label."
        findings.add(name or "label", list(table.frame), message)
    check_known_ids(findings, labels, users.ids, needed=True)
    findings.raise_errors()
    for finding in findings.of("dropped"):
        warnings.warn(str(finding), stacklevel=2)
    return labels.iloc[:, 0].reindex(users.ids).dropna()


def _label_of_users(name: str | None, users: Users) -> pd.Series:
    names = list(users.labels)
    if name is None and len(names) != 1:
        hint = "Give a file with --labels-file."
        if names:
            hint = f"Choose one of {', '.join(names)} with --label."
        raise ValueError(f"{users.name} has {len(names)} labels, and no name was given. {hint}")
    return users.label(name or names[0]).dropna()
