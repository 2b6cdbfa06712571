"""Labels: read from a file, checked against the users that were read, numbered by class, and divided for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .about import DataError
from .cache import Cache
from .schema import Users

FEWEST = 3  # users of a class: two to tune on, one to validate with


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


def known_labels(cache: Cache, labels: pd.Series) -> pd.Series:
    """Give the labels that are known, in the order of their users' ids; refuse users that were not read, or stand twice."""
    known = labels.dropna()
    known.index = known.index.astype(str)
    if strangers := sorted(set(known.index) - set(cache.ids)):
        raise KeyError(f"labelled user {strangers[0]!r} is not among the {len(cache):,} that were read: prefill it first")
    if known.index.has_duplicates:
        raise ValueError(f"user {known.index[known.index.duplicated()][0]!r} has 2 labels or more: keep one")
    return known.sort_index()


def numbered(cache: Cache, labels: pd.Series) -> tuple[Int[np.ndarray, " user"], tuple]:
    """Number the labels: for each user of the cache the place of its class, -1 for those without a label; and the classes."""
    known = known_labels(cache, labels)
    classes, number, counts = np.unique(known.to_numpy(), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"the {len(known):,} labels are of {len(classes)} class(es), at least 2 are needed: label others too")
    if counts.min() < FEWEST:
        few, told = counts.argmin(), "two to tune on, one to validate with: label more, or leave the class out"
        raise ValueError(f"class {classes.tolist()[few]!r} has {counts[few]} user(s), at least {FEWEST} are needed, {told}")
    truth = pd.Series(number, known.index).reindex(list(cache.ids)).fillna(-1).to_numpy(int)
    return truth, tuple(classes.tolist())


def even(label: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Say how often each row is drawn so that every class comes alike: shares that sum to 1."""
    return 1 / (len(np.unique(label)) * np.bincount(label)[label])


def divided(
    truth: Int[np.ndarray, " user"], valid: float, rng
) -> tuple[Int[np.ndarray, " tuned"], Int[np.ndarray, " checked"]]:
    """Draw the validation users, a share of every class: (rows tuned on, rows validated with)."""
    if not 0 < valid < 1:
        raise ValueError(f"valid is {valid}: it must be above 0 and below 1, a share of the labelled users")
    tuned, checked = [], []
    for label in range(truth.max() + 1):
        rows = rng.permutation(np.flatnonzero(truth == label))
        some = min(max(1, round(valid * len(rows))), len(rows) - 2)
        checked.append(rows[:some])
        tuned.append(rows[some:])
    return np.concatenate(tuned), np.concatenate(checked)
