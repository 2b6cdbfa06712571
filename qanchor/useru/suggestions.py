"""Suggest questions that fit the users' own events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qanchor.useru.concepts import Concept
from qanchor.useru.topics import TOPICS
from qanchor.utils.text import count

GENERAL_QUERIES = ("Will this {} come back?", "Will this {} be less active than before?")
IDEAL_SHARE = 0.3  # of the users; what everybody or nobody does is not informative


def suggest_queries(
    concepts: Sequence[Concept],
    share: Mapping[str, float],
    unit: str,
    horizon_days: int,
    many: int = 6,
) -> tuple[str, ...]:
    """Return questions about concepts that some users have and others do not, topics first.

    Args:
        concepts: Candidate concepts.
        share: Share of users that have each thing, by the name of the thing.
        unit: Singular noun for a user, such as "customer".
        horizon_days: Number of days that the questions look ahead.
        many: Maximum number of questions (default 6).

    Example:
        >>> cart = Concept("text:cart", "text", "cart", ("text:cart",))
        >>> suggest_queries([cart], {"text:cart": 0.4}, "visitor", 30)[1:]
        ('How likely is “cart” within 30 days?', 'Will this visitor be less active than before?')
    """
    when = f"within {count(horizon_days, 'day')}"
    topic_of = {topic.thing: topic for topic in TOPICS}
    rows = []
    domains = set()
    for concept in concepts:
        common = 1 - np.prod([1 - share.get(thing, 0) for thing in concept.things])
        if concept.measure != "occurs" or not common:
            continue
        distance = abs(common - IDEAL_SHARE)
        if concept.family == "topic" and concept.label in topic_of:
            topic = topic_of[concept.label]
            is_again = topic.domain in domains  # further topics of the same domain rank lower
            domains.add(topic.domain)
            rows.append((is_again, distance, f"Will this {unit} {topic.does} {when}?"))
        elif concept.family == "text":
            rows.append((True, 1 + distance, f"How likely is “{concept.label}” {when}?"))
    about_things = [query for *_, query in sorted(rows)]
    general = [query.format(unit) for query in GENERAL_QUERIES]
    amounts = [concept for concept in concepts if concept.measure == "exceeds"]
    for concept in amounts[1:2]:  # the middle one of three thresholds
        general.append(
            f"Will this {unit} have more than {concept.threshold:g} {concept.label} at once?"
        )
    chosen = about_things[: max(many - len(general), 0)]
    return tuple([*general[:1], *chosen, *general[1:]][:many])
