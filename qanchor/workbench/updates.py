"""The progress and results that back ends yield to their views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Update:
    """Hold the progress of a computation, messages for the user, and the results so far.

    Args:
        done: Units of work done.
        total: Units of work in total. The last update has `done == total`, unless the computation
            was stopped.
        message: What is happening or what was found, in a few sentences (default: empty).
        caption: How the result was computed and how far to trust it (default: empty).
        warning: Why the result may be misleading (default: empty).
        data: Results by name: data frames and plain values (default: none). A name is absent or
            None until its result is known.

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
