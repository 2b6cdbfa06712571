"""When and how much is asked: cut-offs, horizons, and the number of pairs of each sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.topics import TOPICS, Topic

MIN_DAYS = 45  # days of history before the first cut-off
MIN_HISTORY_SHARE = 0.4  # share of the history before the first cut-off
N_CUTOFFS = 6
OUTLIER_SHARE = 0.01  # share of the oldest events that does not count as the start of the history
OTHER_SHARE = 0.2  # share of the future pairs of each horizon other than the users' own


@dataclass(frozen=True)
class PairConfig:
    """What is asked, the same for all users.

    Args:
        unit: Word for one of the users, such as "household".
        horizon_days: The users' own horizon in days.
        per_sample: Pairs per sample, besides the summary (default 8).
        future_share: Share of them about the future, 0 to 1 (default 0.6).
        seed: Seed of the draws (default 0).
        horizons: Horizons of future questions in days (default 30 only).
        topics: Topics to ask about (default: all 72).

    Raises:
        ValueError: A field is out of range.
    """

    unit: str
    horizon_days: int
    per_sample: int = 8
    future_share: float = 0.6
    seed: int = 0
    horizons: tuple[int, ...] = (30,)
    topics: tuple[Topic, ...] = TOPICS

    def __post_init__(self):
        if not _is_positive_integer(self.per_sample):
            raise ValueError(
                f"per_sample is {self.per_sample!r}. Give a whole number of pairs, at least 1."
            )
        if not 0 <= self.future_share <= 1:
            raise ValueError(f"future_share is {self.future_share!r}. Give a share from 0 to 1.")
        for days in self.horizons:
            if not _is_positive_integer(days):
                raise ValueError(f"horizon {days!r} is invalid. Give whole days, at least 1.")
        if len(set(self.horizons)) < len(self.horizons):
            raise ValueError(f"horizons {self.horizons} repeat a value. Give each once.")


def _is_positive_integer(value) -> bool:
    return isinstance(value, int | np.integer) and value >= 1


class QueryWindow(NamedTuple):
    """A cut-off with what is asked there.

    Args:
        cutoff: Only events before it are shown to the model.
        kind: "profile" (about the past) or "future".
        days: Horizon of a future question; of a profile, the days that count as recent.
        pairs: Number of pairs for each user.
    """

    cutoff: pd.Timestamp
    kind: str
    days: int
    pairs: int


def parse_cutoffs(cutoffs: Iterable, end: pd.Timestamp) -> list[pd.Timestamp]:
    """Return cut-offs as times.

    Args:
        cutoffs: One or more times.
        end: The users' own cut-off.

    Raises:
        ValueError: A cut-off is no time, has a time zone, is repeated, or is after `end`.

    Example:
        >>> parse_cutoffs("2025-01-31", pd.Timestamp("2025-02-28"))
        [Timestamp('2025-01-31 00:00:00')]
    """
    values = [cutoffs] if isinstance(cutoffs, str | pd.Timestamp) else list(cutoffs)
    try:
        times = [pd.Timestamp(value) for value in values]
    except ValueError as error:
        raise ValueError(f"cutoffs: {error}. Write days as 2025-01-31.") from error
    for time in times:
        if time.tz is not None:
            raise ValueError(f"cut-off {time} has a time zone. Give it in UTC, without one.")
        if times.count(time) > 1:
            raise ValueError(f"cut-off {time} is given {times.count(time)} times. Give it once.")
        if time > end:
            raise ValueError(
                f"cut-off {time:%Y-%m-%d} is after the users' own, {end:%Y-%m-%d}."
                " Choose earlier ones."
            )
    return times


def query_windows(cutoffs: Iterable, end: pd.Timestamp, config: PairConfig) -> list[QueryWindow]:
    """Return what is asked at each cut-off.

    Args:
        cutoffs: The cut-offs.
        end: The users' own cut-off; a future question needs its whole horizon before it.
        config: What is asked.

    Returns:
        For each cut-off a "profile" and a "future" for each horizon that fits.

    Raises:
        ValueError: A cut-off is invalid, see `parse_cutoffs`.
    """
    windows = []
    n_future = round(config.per_sample * config.future_share)
    n_profile = config.per_sample - n_future
    for cutoff in parse_cutoffs(cutoffs, end):
        windows.append(QueryWindow(cutoff, "profile", config.horizon_days, n_profile))
        fitting = [days for days in config.horizons if cutoff + pd.Timedelta(days=days) <= end]
        for days, pairs in _pairs_per_horizon(fitting, n_future, config.horizon_days).items():
            windows.append(QueryWindow(cutoff, "future", days, pairs))
    return windows


def _pairs_per_horizon(horizons: list[int], n_pairs: int, own: int) -> dict[int, int]:
    """Divide future pairs: a fifth for each other horizon and the rest for the users' own.

    Without the users' own horizon, all get the same and the last one the rest.
    """
    if not horizons:
        return {}
    each = n_pairs // len(horizons)
    if own in horizons:
        each = min(round(n_pairs * OTHER_SHARE), each)
        main = own
    else:
        main = horizons[-1]
    rest = n_pairs - each * (len(horizons) - 1)
    return {days: rest if days == main else each for days in horizons}


def default_cutoffs(users: Users, n: int = N_CUTOFFS) -> list[pd.Timestamp]:
    """Return evenly spaced days with enough history before and a whole horizon after them.

    Args:
        users: The users.
        n: Number of cut-offs (default 6); fewer if the days do not suffice.

    Returns:
        Days with at least 45 days and 40 % of the history before them.

    Raises:
        ValueError: The history is too short.
    """
    events_per_day = users.history()["time"].dt.floor("D").value_counts().sort_index()
    return spread_cutoffs(events_per_day, users.cutoff, users.horizon_days, n)


def spread_cutoffs(
    events_per_day: pd.Series, end: pd.Timestamp, horizon_days: int, n: int = N_CUTOFFS
) -> list[pd.Timestamp]:
    """Return `default_cutoffs` of a history of which only the events per day are known.

    Args:
        events_per_day: Number of events before `end`, index day, sorted.
        end: The users' cut-off.
        horizon_days: The users' horizon in days.
        n: Number of cut-offs (default 6).

    Raises:
        ValueError: The history is too short.
    """
    start = end
    if len(events_per_day):
        seen = events_per_day.cumsum().to_numpy()
        n_outliers = int(OUTLIER_SHARE * (seen[-1] - 1))
        start = events_per_day.index[np.searchsorted(seen, n_outliers, side="right")]
    span = (end - start).days
    first = max(MIN_DAYS, int(np.ceil(MIN_HISTORY_SHARE * span)))
    last = span - horizon_days
    if first > last:
        raise ValueError(
            f"{span} days of history are too short: {first} days before and {horizon_days} after"
            " a cut-off are needed. Pass cutoffs=[...]."
        )
    offsets = np.unique(np.linspace(first, last, n).round())
    return [start + pd.Timedelta(days=int(day)) for day in offsets]


def default_horizons(horizon_days: int) -> tuple[int, ...]:
    """Return about a quarter of a horizon, the horizon, and three times the horizon, in days.

    Args:
        horizon_days: The users' own horizon.

    Example:
        >>> default_horizons(30)
        (7, 30, 90)
    """
    return tuple(sorted({max(1, horizon_days * 7 // 30), horizon_days, 3 * horizon_days}))
