"""Suggest questions that fit the users' own events."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.behavior import topic_rates
from qanchor.useru.pairs import SUMMARY_QUERY
from qanchor.useru.topics import TOPICS, by_name

BEHAVIOR_QUERIES = (
    "Will this {} stop coming?",
    "Is this {} price-conscious?",
    "Is this {} here more than before?",
)
FAVORITE_QUERIES = {  # suggested first, if events are about them
    "travel": "Will this {} travel soon?",
    "baby": "Does this {} have a baby?",
    "takeout": "Will this {} order takeout next month?",
}
FILM_TOPICS = ("cinema", "action", "comedy", "scifi")  # their words also match books
MAX_USERS_READ = 300
MAX_TEXTS_READ = 1_000
MIN_RELATIVE_SHARE = 0.04  # of the most common topic


def suggest_queries(users: Users) -> tuple[str, ...]:
    """Return six questions that fit these users, about their behavior and their events' topics.

    Args:
        users: The users; at most 300 of them and 1,000 texts are read.

    Returns:
        The questions.

    Example:
        >>> suggest_queries(qa.make_sample_users(40))[0]
        'Will this user travel soon?'
    """
    share = topic_rates(users, MAX_USERS_READ, MAX_TEXTS_READ)
    # root mean square: topics of many users, or that some users have much of
    frequency = np.sqrt((share**2).mean(0))
    frequency = pd.Series(frequency, [topic.name for topic in TOPICS])
    if frequency["learning"] >= frequency["cinema"]:  # the stories are books
        frequency[list(FILM_TOPICS)] = 0
    frequency = frequency[frequency > MIN_RELATIVE_SHARE * frequency.max()]
    frequency = frequency.sort_values(ascending=False, kind="stable")
    favorites = [name for name in FAVORITE_QUERIES if name in frequency]
    order = list(dict.fromkeys([*favorites, *frequency.index]))
    first_of_domain = {by_name(name).domain: name for name in reversed(order)}
    # further topics of a domain come last
    order.sort(key=lambda name: first_of_domain[by_name(name).domain] != name)
    topic_queries = [_topic_query(name) for name in order[:3]]
    behavior = BEHAVIOR_QUERIES[:2] if users.numbers else BEHAVIOR_QUERIES[::2]
    queries = (*topic_queries[:1], *behavior, *topic_queries[1:], SUMMARY_QUERY)
    return tuple(query.format(users.unit) for query in queries)


def _topic_query(name: str) -> str:
    if name in FAVORITE_QUERIES:
        return FAVORITE_QUERIES[name]
    return f"Will this {{}} {by_name(name).does} next month?"
