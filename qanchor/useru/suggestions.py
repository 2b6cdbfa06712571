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
FAVORITE_QUERIES = {  # asked first, where the users' events speak of it
    "travel": "Will this {} travel soon?",
    "baby": "Does this {} have a baby?",
    "takeout": "Will this {} order takeout next month?",
}
FILM_TOPICS = (
    "cinema",
    "action",
    "comedy",
    "scifi",
)  # of books as of films, but asked about as films
MAX_USERS_READ, MAX_TEXTS_READ = 300, 1_000  # users and texts at most that say what may be asked


def suggest_queries(users: Users) -> tuple[str, ...]:
    """Suggest six questions that fit these users: of their behaviour, and of what their own events
    speak of.

    Example:
        >>> suggest_queries(qa.make_sample_users(40))[0]
        'Will this user travel soon?'
    """
    share = topic_rates(users, MAX_USERS_READ, MAX_TEXTS_READ)
    much = pd.Series(
        np.sqrt((share**2).mean(0)), [topic.name for topic in TOPICS]
    )  # of what many do, or some do much of
    if much["learning"] >= much["cinema"]:  # stories are read here
        much[list(FILM_TOPICS)] = 0
    much = much[much > 0.04 * much.max()].sort_values(ascending=False, kind="stable")
    order = list(dict.fromkeys([*(name for name in FAVORITE_QUERIES if name in much), *much.index]))
    first = {by_name(name).domain: name for name in reversed(order)}
    order.sort(key=lambda name: first[by_name(name).domain] != name)  # a domain's others come last
    asked = [
        FAVORITE_QUERIES.get(name, f"Will this {{}} {by_name(name).does} next month?")
        for name in order[:3]
    ]
    behaviour = BEHAVIOR_QUERIES[:2] if users.numbers else BEHAVIOR_QUERIES[::2]
    return tuple(q.format(users.unit) for q in (*asked[:1], *behaviour, *asked[1:], SUMMARY_QUERY))
