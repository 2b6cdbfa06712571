"""Recency, frequency and monetary value: the plain features that embeddings are compared with."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.users import Users
from qanchor.models.features import signed_log, sums_by_group

WINDOW_DAYS = (30, 90)  # days before the cut-off, in addition to the whole history


def rfm_features(users: Users) -> Float[np.ndarray, "user column"]:
    """Compute recency, frequency and amounts of each user, overall and by modality.

    Args:
        users: Users; events at or after the cut-off and labels are not read.

    Returns:
        Array (user, column) in the order of `users.ids`: the whole history, the last 30 and 90
        days, and the known facts. Constant columns are left out.

    Example:
        >>> times = pd.to_datetime(["2025-01-01", "2025-01-05", "2025-02-02"])
        >>> events = pd.DataFrame({"user": ["a", "b", "b"], "modality": "bill", "text": "tea", "time": times})
        >>> rfm_features(Users.from_events(events, cutoff="2025-02-01")).shape
        (2, 8)
    """
    past = users.history()
    age = ((users.cutoff - past["time"]) / pd.Timedelta(days=1)).to_numpy()
    user = past["user"].cat.codes.to_numpy().astype(int)
    modality = past["modality"].cat.codes.to_numpy().astype(int)
    span = float(age.max(initial=1.0))
    parts = []
    for kind in (None, *range(len(users.modalities))):
        chosen = np.ones(len(past), bool) if kind is None else modality == kind
        numbers = np.nan_to_num(past.loc[chosen, list(users.numbers)].to_numpy(float))
        parts.append(_rfm_of(user[chosen], age[chosen], numbers, len(users), span))
    facts = users.tabular.fillna(users.tabular.median()).fillna(0.0)
    table = np.column_stack([*parts, facts, users.tabular.isna()]).astype(float)
    return table[:, table.std(axis=0) > 1e-9]


def _rfm_of(
    user: np.ndarray, age: np.ndarray, numbers: np.ndarray, n: int, span: float
) -> np.ndarray:
    """Compute the columns of one modality; amounts as signed logs, since they are skewed."""
    last = np.full(n, span + 1)
    first = np.zeros(n)
    np.minimum.at(last, user, age)
    np.maximum.at(first, user, age)
    days = np.bincount(np.unique(np.stack([user, age.astype(int)]), axis=1)[0], minlength=n)
    gap = np.maximum(first - last, 1) / np.maximum(days - 1, 1)
    events = np.column_stack([np.ones(len(user)), numbers])
    totals = sums_by_group(user, n, events)
    count = totals[:, 0]
    columns = [np.log1p(count), np.log1p(last), np.log1p(days), np.log(gap), np.log1p(last / gap)]
    for days_back in WINDOW_DAYS:
        rows = age <= days_back
        recent = sums_by_group(user[rows], n, events[rows])
        # trend: the window's share of the total, 0 without a total
        columns += [signed_log(recent), recent / np.where(totals == 0, 1, totals)]
    amounts = totals[:, 1:]
    per_event = np.maximum(count, 1)[:, None]
    shares = sums_by_group(user, n, numbers > 0) / per_event
    return np.column_stack([*columns, signed_log(amounts), amounts / per_event, shares])
