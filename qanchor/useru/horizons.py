"""How many days a question looks ahead."""

from __future__ import annotations

import re

import numpy as np

MONTH = 30  # days
DAYS = {"day": 1, "week": 7, "month": MONTH, "year": 365}
LENGTHS = {
    7: "week",
    14: "two weeks",
    MONTH: "month",
    60: "two months",
    90: "three months",
    180: "six months",
    365: "year",
}
RATE = rf" (?:an?|per|each|every) (?P<period>{'|'.join(DAYS)})\b"
# "twice a week" says how often, not how far ahead
HOW_OFTEN = re.compile(rf"\b(?:times|once|twice){RATE}")


def query_horizon(query: str, horizon_days: int) -> int:
    """Return how many days a question looks ahead.

    The time that the question names is rounded to the nearest of three horizons: about a quarter of
    the default, the default, and three times the default.

    Args:
        query: The question.
        horizon_days: Default horizon in days, used if the question names no time.

    Example:
        >>> query_horizon("Will this user travel in the next week?", 30)
        7
        >>> query_horizon("Will this user travel once a week?", 30)
        30
    """
    named = _named_days(HOW_OFTEN.sub("", query))
    if not named:
        return horizon_days
    horizons = (max(1, horizon_days * 7 // 30), horizon_days, 3 * horizon_days)
    return min(horizons, key=lambda days: abs(np.log(days / named)))


def _named_days(query: str) -> int:
    """Return the length of time that a question names, in days; 0 if it names none."""
    counted = re.search(r"\b([1-9]\d{0,2})[ -](day|week|month)s?\b", query)
    if counted:
        return int(counted[1]) * DAYS[counted[2]]
    for days, words in LENGTHS.items():
        if re.search(rf"\b{words}\b", query):
            return days
    return 0
