"""Say where users differ from those that a run was trained on: new modalities, missing numbers."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence

from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.models.model import QAnchor
from qanchor.models.pointing_model import PointingModel
from qanchor.utils.text import count

IGNORED = "they are left out. Train the run again to include them"
READ_BY_NAME = "they are read through its name. Train the run again if they matter"


def check_input(model: QAnchor | PointingModel, users: Users, strict: bool = False) -> None:
    """Warn of modalities that a run has not seen, and of number columns that it misses.

    Args:
        model: Model of the run.
        users: Users to read with it.
        strict: Raise instead of warning (default False).

    Raises:
        DataError: The users differ, and `strict` is set.
    """
    found = input_differences(model, users)
    if strict and found:
        raise DataError(users.name, None, None, None, " ".join(found))
    for message in found:
        warnings.warn(message, stacklevel=3)


def input_differences(model: QAnchor | PointingModel, users: Users) -> list[str]:
    """Return one message for each difference between users and those that a run was trained on.

    Args:
        model: Model of the run.
        users: Users to read with it.
    """
    if isinstance(model, PointingModel):
        modalities = model.population.named("modality")
        numbers = model.population.named("number")
        remedy = READ_BY_NAME
    else:
        modalities = model.preprocessor.modalities
        numbers = model.preprocessor.numbers
        remedy = IGNORED
    found = []
    events = users.history()["modality"].value_counts()
    for name in users.modalities:
        if name not in modalities and events.get(name, 0):
            n = count(int(events[name]), "event")
            found.append(
                f"{users.name} has {n} of {name!r}, a modality that is new to the run: {remedy}."
            )
    for column in numbers:
        if column not in users.numbers:
            found.append(_missing_number(users, column, numbers))
    return found


def _missing_number(users: Users, column: str, numbers: Sequence[str]) -> str:
    """Return what to say of a number column that a run was trained with."""
    others = [name for name in users.numbers if name not in numbers]
    message = f"The run was trained with the number column {column!r}, which {users.name} lacks."
    nearest = difflib.get_close_matches(column, others, 1, 0.0)
    if not nearest:
        return f"{message} It counts as 0; add it, or train the run again."
    return f"{message} It counts as 0; if {nearest[0]!r} is the same, rename it."
