"""Suggest questions that fit the users' own events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.useru.behavior import topic_rates
from qanchor.useru.concepts import Concept
from qanchor.useru.pairs import SUMMARY_QUERY
from qanchor.useru.topics import TOPICS, by_name
from qanchor.utils.text import count

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
GENERAL_QUERIES = ("Will this {} come back?", "Will this {} be less active than before?")
IDEAL_SHARE = 0.3  # of the users: a question about what all or none do tells little
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


def suggest_concept_queries(
    concepts: Sequence[Concept],
    share: Mapping[str, float],
    unit: str,
    horizon_days: int,
    many: int = 6,
) -> tuple[str, ...]:
    """Return questions about concepts that some users have and others do not.

    Args:
        concepts: Concepts of the users.
        share: Share of the users that have each thing, by its name.
        unit: Word for one of the users.
        horizon_days: Days that the questions look ahead.
        many: Number of questions at most (default 6).

    Example:
        >>> cart = Concept("text:cart", "text", "cart", ("text:cart",))
        >>> suggest_concept_queries([cart], {"text:cart": 0.4}, "visitor", 30)[1:]
        ('How likely is “cart” within 30 days?', 'Will this visitor be less active than before?')
    """
    when = f"within {count(horizon_days, 'day')}"
    rows = []
    for concept in concepts:
        common = share.get(concept.things[0], 0) if len(concept.things) == 1 else 0
        if concept.family == "text" and concept.measure == "occurs" and common > 0:
            rows.append((abs(common - IDEAL_SHARE), f"How likely is “{concept.label}” {when}?"))
    about_texts = [query for _, query in sorted(rows)]
    general = [query.format(unit) for query in GENERAL_QUERIES]
    amounts = [concept for concept in concepts if concept.measure == "exceeds"]
    for concept in amounts[1:2]:  # the middle one of three thresholds
        general.append(
            f"Will this {unit} have more than {concept.threshold:g} {concept.label} at once?"
        )
    kept = about_texts[: max(many - len(general), 0)]
    return tuple([*general[:1], *kept, *general[1:]][:many])


def _topic_query(name: str) -> str:
    if name in FAVORITE_QUERIES:
        return FAVORITE_QUERIES[name]
    return f"Will this {{}} {by_name(name).does} next month?"
