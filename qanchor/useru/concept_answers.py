"""Graded answers to questions about concepts: one short sentence per grade, such as "often".

Grades are computed from the event table. The sentence does not repeat what the question is about.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from qanchor.data.things import ThingEvents
from qanchor.useru.concepts import LESS, MORE, Concept, Outcomes

UNKNOWN = -1  # grade of a user whose outcome is unknown
A_FEW_TIMES = 2  # events; active days if the concept is any event
OFTEN = 4
# Facts per measure, from the lowest grade to the highest. They hold for affirmative and negated
# questions alike. "much" and "a large part" mean the top quarter of the users who have any.
FACTS = {
    "occurs": ("not once", "once", "a few times", "often"),
    "more": ("much less", "about as much", "more"),
    "less": ("more", "about as much", "much less"),
    "first": ("no first time", "a first time"),
    "exceeds": ("none so large", "one so large"),
    "high": ("none", "some", "much"),
    "share": ("no part", "a small part", "a large part"),
}
# lowest grade at which the concept is true
FIRST_TRUE = {"occurs": 1, "more": 2, "less": 2, "first": 1, "exceeds": 1, "high": 2, "share": 2}


def graded_answers(measure: str, sign: int) -> tuple[str, ...]:
    """Return the answers to a question, one per grade.

    Args:
        measure: What the question measures, one of `qanchor.useru.concepts.MEASURES`.
        sign: 1 if yes means that the concept is true, -1 if yes means that it is false.

    Example:
        >>> graded_answers("first", 1), graded_answers("first", -1)
        (('No, no first time.', 'Yes, a first time.'), ('Yes, no first time.', 'No, a first time.'))
    """
    answers = []
    for grade, fact in enumerate(FACTS[measure]):
        is_true = grade >= FIRST_TRUE[measure]
        word = "Yes" if is_true == (sign > 0) else "No"
        answers.append(f"{word}, {fact}.")
    return tuple(answers)


def concept_grades(
    outcomes: Outcomes,
    events: ThingEvents,
    concepts: Sequence[Concept],
    truth: Float[np.ndarray, "user concept"],
) -> Int[np.ndarray, "user concept"]:
    """Return each user's grade for each concept after a cut-off; -1 if unknown.

    Args:
        outcomes: Activity of the users before and after the cut-off.
        events: Events that the outcomes were counted from.
        concepts: The concepts.
        truth: From `Outcomes.truth`.
    """
    grades = np.zeros(truth.shape, np.int8)
    for column, concept in enumerate(concepts):
        future, before = outcomes.amounts(events, concept)
        rate = before / outcomes.horizons
        grade = (truth[:, column] == 1).astype(np.int8)
        if concept.measure == "occurs":
            grade = np.searchsorted((1, A_FEW_TIMES, OFTEN), future, side="right")
        elif concept.measure in ("high", "share"):
            grade += future > 0
        elif concept.measure == "more":
            grade += future >= LESS * rate
        elif concept.measure == "less":
            grade += future <= MORE * rate
        grades[:, column] = grade
    return np.where(np.isnan(truth), np.int8(UNKNOWN), grades)


def past_fact(label: str, count: int, days_since: float) -> str:
    """Say in words how often a user did something, and when last.

    Args:
        label: Name of what happened.
        count: Number of times.
        days_since: Days since the last time; ignored if `count` is 0.

    Example:
        >>> past_fact("payment done", 3, 5.0), past_fact("payment done", 0, float("nan"))
        ('payment done: 3 times, last 5 days ago', 'payment done: never so far')
    """
    if not count:
        return f"{label}: never so far"
    times = {1: "once", 2: "twice"}.get(count, f"{count:,} times")
    ago = {0: "today", 1: "1 day ago"}.get(int(days_since), f"{int(days_since):,} days ago")
    return f"{label}: {times}, last {ago}"
