"""Which horizon a question means."""

from __future__ import annotations

import re

import numpy as np

MONTH = 30  # days
LENGTHS = {
    7: "week",
    14: "two weeks",
    MONTH: "month",
    60: "two months",
    90: "three months",
    180: "six months",
    365: "year",
}


def asked_horizon(query: str, horizons: tuple[int, ...]) -> int | None:
    """Return the horizon that is nearest to the time that a query names; None if it names none.

    Args:
        query: The query.
        horizons: Horizons in days.

    Example:
        >>> asked_horizon("Will this user travel in the next week?", (7, 30, 90))
        7
    """
    named = [int(days) for days in re.findall(r"\b([1-9]\d{0,2}) days\b", query)]
    named += [days for days, words in LENGTHS.items() if re.search(rf"\b{words}\b", query)]
    if not named:
        return None
    return min(horizons, key=lambda days: abs(np.log(days / named[0])))


def default_horizons(horizon_days: int) -> tuple[int, ...]:
    """Return about a quarter of a horizon, the horizon, and three times the horizon, in days.

    Args:
        horizon_days: The users' own horizon.

    Example:
        >>> default_horizons(30)
        (7, 30, 90)
    """
    return tuple(sorted({max(1, horizon_days * 7 // 30), horizon_days, 3 * horizon_days}))
