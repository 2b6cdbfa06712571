"""What the back ends of the views yield while they work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Update:
    """Hold how far a computation is, what to tell the user, and the results so far.

    Args:
        done: Units of work that are done.
        total: Units of work in all; the last update of a run has `done == total`, unless it was
        stopped.
        message: What is happening or what was found, in one or a few sentences.
        caption: How the result was made and how far to trust it.
        warning: Why the result may mislead; empty if nothing is known.
        data: Results by name: data frames and plain values. A name is absent or None until the
        result is known.

    Example:
        >>> Update(3, 9, "Embedding 3 of 9 users ...").data.get("points") is None
        True
    """

    done: int
    total: int
    message: str = ""
    caption: str = ""
    warning: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
