"""Compare users with those that a run was trained on: new modalities, missing number columns."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from qanchor.data.users import Users
from qanchor.models.population import Population
from qanchor.utils.text import count

READ_BY_NAME = "The model knows it only by its name; train again if it matters"


def input_differences(users: Users, population: Population) -> list[str]:
    """Return a message for each modality that is new to a run, and each missing number column.

    Args:
        users: Users to read.
        population: Population that the run was trained on.
    """
    modalities = population.named("modality")
    numbers = population.named("number")
    messages = []
    events = users.history()["modality"].value_counts()
    for name in users.modalities:
        if name not in modalities and events.get(name, 0):
            n = count(int(events[name]), "event")
            messages.append(
                f"{users.name} has {n} of {name!r}, a modality that is new to the run."
                f" {READ_BY_NAME}."
            )
    for column in numbers:
        if column not in users.numbers:
            messages.append(_missing_number(users, column, numbers))
    return messages


def _missing_number(users: Users, column: str, numbers: Sequence[str]) -> str:
    """Return the message about a number column that a run was trained with and users lack."""
    others = [name for name in users.numbers if name not in numbers]
    message = f"The run was trained with the number column {column!r}, which {users.name} lacks."
    nearest = difflib.get_close_matches(column, others, 1, 0.0)
    if not nearest:
        return f"{message} It counts as 0; add the column, or train again."
    return f"{message} It counts as 0; if {nearest[0]!r} is the same column, rename it."
