"""Recency, frequency and monetary value: the plain features that embeddings are compared with."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.users import Users

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
        >>> events = pd.DataFrame({"user": ["a", "b", "b"], "time": times})
        >>> events = events.assign(modality="bill", text="tea")
        >>> rfm_features(Users.from_events(events, cutoff="2025-02-01")).shape
        (2, 8)
    """
    past = users.history()
    events = past[list(users.numbers)].fillna(0.0)
    events.insert(0, "events", 1.0)
    age = (users.cutoff - past["time"]) / pd.Timedelta(days=1)
    span = max(age.max(), 1.0) if len(age) else 1.0
    parts = [_rfm_of(past["user"], age, events, span)]
    for name in users.modalities:
        rows = past["modality"] == name
        parts.append(_rfm_of(past["user"][rows], age[rows], events[rows], span))
    facts = users.tabular.fillna(users.tabular.median()).fillna(0.0)
    table = np.column_stack([*parts, facts, users.tabular.isna()]).astype(float)
    return table[:, table.std(axis=0) > 1e-9]


def _rfm_of(user: pd.Series, age: pd.Series, events: pd.DataFrame, span: float) -> pd.DataFrame:
    """Compute the columns of one modality; amounts as signed logs, since they are skewed."""
    by_user = age.groupby(user, observed=False)
    last = by_user.min().fillna(span + 1)
    first = by_user.max().fillna(0.0)
    days = age.astype(int).groupby(user, observed=False).nunique()
    gap = (first - last).clip(lower=1) / (days - 1).clip(lower=1)
    totals = events.groupby(user, observed=False).sum()
    count = totals["events"]
    columns = [
        np.log1p(count),
        np.log1p(last),
        np.log1p(days),
        np.log(gap),
        np.log1p(last / gap),
    ]
    for days_back in WINDOW_DAYS:
        recent = events.where(age <= days_back, 0.0).groupby(user, observed=False).sum()
        # trend: the window's share of the total, 0 without a total
        columns += [_signed_log(recent), recent / totals.replace(0, 1)]
    amounts = totals.drop(columns="events")
    positive = (events > 0).drop(columns="events").groupby(user, observed=False).sum()
    per_event = count.clip(lower=1)
    columns += [
        _signed_log(amounts),
        amounts.div(per_event, axis=0),
        positive.div(per_event, axis=0),
    ]
    return pd.concat(columns, axis=1)


def _signed_log(values: pd.DataFrame) -> pd.DataFrame:
    """Compute sign(x) * log(1 + |x|), since a few users spend a hundred times the median."""
    return np.sign(values) * np.log1p(values.abs())
