"""The updates that the stand-ins yield: what the views read of an update, and no more."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Update:
    """How far the work is, and what is known by now."""

    done: int
    total: int
    message: str = ""
    caption: str = ""
    warning: str = ""
    data: dict[str, Any] = field(default_factory=dict)
