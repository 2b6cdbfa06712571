"""When and how much is asked: cut-offs, the horizons ahead of them, and how many pairs of each a
sample gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.topics import TOPICS, Topic

MIN_DAYS, MIN_HISTORY, N_CUTOFFS = 45, 0.4, 6
OTHER_SHARE = 0.2  # share of the future pairs that each other horizon than the users' own takes


@dataclass(frozen=True)
class PairConfig:
    """Hold what is asked for, alike for all users; the fields are those of `make_pairs`."""

    unit: str
    horizon_days: int
    per_sample: int = 8
    future_share: float = 0.6
    seed: int = 0
    held_out: bool = False
    horizons: tuple[int, ...] = (30,)
    topics: tuple[Topic, ...] = TOPICS

    def __post_init__(self):
        if not isinstance(self.per_sample, int | np.integer) or self.per_sample < 1:
            raise ValueError(
                f"per_sample is {self.per_sample!r}: give a whole number of pairs, at least 1"
            )
        if not 0 <= self.future_share <= 1:
            raise ValueError(f"future_share is {self.future_share!r}: give a share from 0 to 1")
        if bad := [
            days for days in self.horizons if not isinstance(days, int | np.integer) or days < 1
        ]:
            raise ValueError(f"horizon {bad[0]!r}: give whole days, at least 1")
        if len(set(self.horizons)) < len(self.horizons):
            raise ValueError(f"horizons {self.horizons}: one stands there twice, give each once")


class QueryWindow(NamedTuple):
    """A cut-off with what is asked there: kind "profile", or "future" over `days`; `pairs` of it
    for each user.
    """

    cutoff: pd.Timestamp
    kind: str
    days: int
    pairs: int


def parse_cutoffs(cutoffs: Iterable, end: pd.Timestamp) -> list[pd.Timestamp]:
    """Read cut-offs, each given once and none of them after the users' own."""
    given = [cutoffs] if isinstance(cutoffs, str | pd.Timestamp) else list(cutoffs)
    try:
        cutoffs = [pd.Timestamp(cutoff) for cutoff in given]
    except ValueError as error:
        raise ValueError(f"cutoffs: {error}: write days as 2025-01-31") from error
    if zoned := [cutoff for cutoff in cutoffs if cutoff.tz is not None]:
        raise ValueError(f"cut-off {zoned[0]} has a time zone: give it in UTC, without one")
    if twice := [cutoff for cutoff in cutoffs if cutoffs.count(cutoff) > 1]:
        raise ValueError(
            f"cut-off {twice[0]} is given {cutoffs.count(twice[0])} times: once is enough"
        )
    if late := [cutoff for cutoff in cutoffs if cutoff > end]:
        raise ValueError(
            f"cut-off {late[0]:%Y-%m-%d} is after the users' own, {end:%Y-%m-%d}: choose earlier "
            "ones"
        )
    return cutoffs


def query_windows(cutoffs: Iterable, end: pd.Timestamp, wish: PairConfig) -> list[QueryWindow]:
    """List what is asked at the cut-offs: a "profile" each, and a "future" for every horizon that
    is over before the end.
    """
    found, ahead = [], round(wish.per_sample * wish.future_share)
    for cutoff in parse_cutoffs(cutoffs, end):
        known = [days for days in wish.horizons if cutoff + pd.Timedelta(days=days) <= end]
        found.append(QueryWindow(cutoff, "profile", wish.horizon_days, wish.per_sample - ahead))
        found += [
            QueryWindow(cutoff, "future", days, n)
            for days, n in _shares(known, ahead, wish.horizon_days).items()
        ]
    return found


def _shares(known: list[int], ahead: int, main: int) -> dict[int, int]:
    """Share out the future pairs: a fifth for each other horizon and the rest for the users' own;
    without that, alike.
    """
    if not known:
        return {}
    own = main if main in known else known[-1]
    each = (
        min(round(ahead * OTHER_SHARE), ahead // len(known))
        if main in known
        else ahead // len(known)
    )
    return {days: ahead - each * (len(known) - 1) if days == own else each for days in known}


def default_cutoffs(users: Users, n: int = N_CUTOFFS) -> list[pd.Timestamp]:
    """Choose `n` days, evenly spaced, with at least 45 days (and 40 % of the history) before and a
    whole horizon after.
    """
    days = users.history()["time"].dt.floor("D").value_counts().sort_index()
    return spread_cutoffs(days, users.cutoff, users.horizon_days, n)


def spread_cutoffs(
    days: pd.Series, end: pd.Timestamp, horizon_days: int, n: int = N_CUTOFFS
) -> list[pd.Timestamp]:
    """Do so for a history of which only the events of each day are known (index day, sorted)."""
    seen = days.cumsum().to_numpy()
    # a few odd old events, one in a hundred, move nothing
    start = (
        days.index[np.searchsorted(seen, int(0.01 * (seen[-1] - 1)), side="right")]
        if len(seen)
        else end
    )
    span = (end - start).days
    first, last = max(MIN_DAYS, int(np.ceil(MIN_HISTORY * span))), span - horizon_days
    if first > last:
        raise ValueError(
            f"{span} days of history are too short: {first} and {horizon_days} after needed; "
            "pass cutoffs=[...]"
        )
    return [
        start + pd.Timedelta(days=int(day))
        for day in np.unique(np.linspace(first, last, n).round())
    ]


def default_horizons(horizon_days: int) -> tuple[int, ...]:
    """Look ahead a quarter as far, as far, and three times as far: a week, a month, three months."""
    return tuple(sorted({max(1, horizon_days * 7 // 30), horizon_days, 3 * horizon_days}))
