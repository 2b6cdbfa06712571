"""Retention and funnels: how long users stay after their first day, and how far they go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from qanchor.data.export import membership_mask
from qanchor.data.users import Users
from qanchor.evaluation.intervals import wilson_interval
from qanchor.utils.text import count, has_words

PERIOD_DAYS = (1, 7, 30, 90)
MAX_PERIODS = 26
MIN_USERS = 10  # users that a side must have in a period that is shown


def retention(
    users: Users, ids: Collection[str] | None = None, period_days: int | None = None
) -> pd.DataFrame:
    """Count how many users were active in each period after their first day.

    A user counts in a period only if the whole period lies before the cut-off. Users without events
    have no first day and are not counted.

    Args:
        users: The users.
        ids: Ids of a group to compare with all others (default: all users are one group).
        period_days: Length of a period in days (default: the shortest of 1, 7, 30 and 90 with which
            26 periods cover the history).

    Returns:
        One row per side ("group" and "rest", or "all") and period, if at least 10 users of the side
        have the whole period: `side, period` (0 begins with the first event), `users, active,
        share`, and the ends `low` and `high` of a 95 % interval of the share.
        `attrs["period_days"]` is the length of a period.

    Raises:
        KeyError: If a user of the group is unknown.
        ValueError: If the group is empty or holds all users, `period_days` is below 1, or too few
            users have a whole period.

    Example:
        >>> days = pd.to_datetime(["2025-01-01", "2025-01-09", "2025-01-01"] * 10)
        >>> name = [f"{name}{row // 3}" for row, name in enumerate("aab" * 10)]
        >>> events = pd.DataFrame({"user": name, "time": days, "modality": "x", "text": "tea"})
        >>> users = qa.Users.from_events(events, cutoff="2025-01-15")
        >>> retention(users, period_days=7)["share"].tolist()
        [1.0, 0.5]
    """
    history = users.history()
    if history.empty:
        raise ValueError(f"{users.name} has no events before the cut-off. Choose a later cut-off.")
    first = history.groupby("user", observed=True)["time"].min()
    if period_days is None:
        period_days = _fitting_period((users.cutoff - first.min()).days)
    if period_days < 1:
        raise ValueError(f"period_days is {period_days}. Pass 1 or more.")
    length = pd.Timedelta(days=period_days)
    whole_periods = (users.cutoff - first) // length
    began = history["user"].map(first).astype(history["time"].dtype)
    active = history[["user"]].assign(period=(history["time"] - began) // length)
    active = active.drop_duplicates().astype({"user": str})
    active = active[active["period"] < active["user"].map(whole_periods)]
    rows = []
    for side, members in _sides(users, ids):
        periods_of_users = whole_periods[whole_periods.index.isin(members)]
        n_active = active.loc[active["user"].isin(members), "period"].value_counts()
        for period in range(MAX_PERIODS):
            n = int((periods_of_users > period).sum())
            if n < MIN_USERS:
                break
            row = {"side": side, "period": period, "users": n}
            rows.append(row | {"active": int(n_active.get(period, 0))})
    if not rows:
        raise ValueError(
            f"Fewer than {MIN_USERS} users have a whole period of {count(period_days, 'day')}"
            " before the cut-off. Pass more users or a longer history."
        )
    frame = _with_shares(rows)
    frame.attrs["period_days"] = period_days
    return frame


def _fitting_period(days: int) -> int:
    """Return the shortest period of which `MAX_PERIODS` cover a history of some days."""
    for period_days in PERIOD_DAYS:
        if period_days * MAX_PERIODS >= days:
            return period_days
    return PERIOD_DAYS[-1]


def funnel(users: Users, steps: Sequence[str], ids: Collection[str] | None = None) -> pd.DataFrame:
    """Count how many users reached each step of a funnel, in order or at the same time.

    Args:
        users: The users.
        steps: Two or more steps, in order. Each is a modality, or words that must all occur in the
            text of an event. Case does not matter.
        ids: Ids of a group to compare with all others (default: all users are one group).

    Returns:
        One row per side ("group" and "rest", or "all") and step: `side, step, users` (of the side),
        `active` (users that reached the step), `share`, and the ends `low` and `high` of a 95 %
        interval.

    Raises:
        KeyError: If a user of the group is unknown.
        ValueError: If the group is empty or holds all users, there are fewer than two steps, or no
            user ever did one of them.

    Example:
        >>> rows = [("a", 1, "view"), ("a", 2, "pay"), ("b", 1, "pay"), ("b", 2, "view")]
        >>> events = pd.DataFrame(rows, columns=["user", "day", "text"])
        >>> events["time"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(events["day"], unit="D")
        >>> events = events.assign(modality="shop").drop(columns="day")
        >>> users = qa.Users.from_events(events, cutoff="2025-02-01")
        >>> funnel(users, ["view", "pay"])["active"].tolist()
        [2, 1]
    """
    if isinstance(steps, str):
        raise ValueError(f"steps is the text {steps!r}. Pass a list, such as ['view', 'pay'].")
    steps = [step.strip() for step in steps if step.strip()]
    if len(steps) < 2:
        raise ValueError(f"Found {count(len(steps), 'step')}. Pass two or more, such as view, pay.")
    history = users.history()
    is_step = pd.DataFrame({number: _is_step(history, step) for number, step in enumerate(steps)})
    for step, did in zip(steps, is_step.any(), strict=True):
        if not did:
            raise ValueError(
                f"Nobody did {step!r} before the cut-off. Write a modality"
                f" ({', '.join(users.modalities)}), or words of an event."
            )
    events = history[["time"]].assign(user=history["user"].astype(str))
    events["steps"] = is_step.sum(axis=1)
    # at equal times, use events first that match fewer steps
    events = events.sort_values(["time", "steps"], kind="stable")
    reached = pd.Series(events["time"].min(), index=list(users.ids))
    came_so_far = []
    for number in is_step:
        possible = events[is_step[number].reindex(events.index)]
        follows = possible["time"] >= possible["user"].map(reached)  # equal times: in any order
        earliest = possible[follows].drop_duplicates("user")
        events = events.drop(index=earliest.index)  # an event counts for one step
        reached = earliest.set_index("user")["time"]
        came_so_far.append(reached.index)
    rows = []
    for side, members in _sides(users, ids):
        for step, came in zip(steps, came_so_far, strict=True):
            n_active = int(came.isin(members).sum())
            rows.append({"side": side, "step": step, "users": len(members), "active": n_active})
    return _with_shares(rows)


def _is_step(history: pd.DataFrame, step: str) -> pd.Series:
    """Return a mask of the events that match a step of a funnel."""
    wanted = step.casefold()
    modalities = history["modality"].cat.categories
    named = [name for name in modalities if name.casefold() == wanted]
    if named:
        return history["modality"].isin(named)
    return has_words(history["text"], step)


def _sides(users: Users, ids: Collection[str] | None) -> list[tuple[str, pd.Index]]:
    """Return the name and the users of each side of the comparison."""
    everyone = pd.Index(users.ids)
    if ids is None:
        return [("all", everyone)]
    inside = membership_mask(users.ids, ids)
    return [("group", everyone[inside]), ("rest", everyone[~inside])]


def _with_shares(rows: list[dict]) -> pd.DataFrame:
    """Add shares and their intervals to rows of counts."""
    frame = pd.DataFrame(rows)
    active = frame["active"].to_numpy()
    n = frame["users"].to_numpy()
    low, high = wilson_interval(active, n)
    return frame.assign(share=active / n, low=low, high=high)
