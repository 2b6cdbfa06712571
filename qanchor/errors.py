"""Exceptions of the library. All of them derive from `QanchorError`."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SHOWN = 80  # characters of a value


class QanchorError(Exception):
    """Base class of every exception that this library raises on purpose."""


@dataclass(eq=False, repr=False)
class DataError(QanchorError, ValueError):
    """Report a fault in the input: file, row, column, value and what to do about it.

    Args:
        file: Name of the file or table.
        row: Row number, counted from 0, or None if the whole column is at fault.
        column: Name of the column or field, or None if the whole file is at fault.
        value: The value that was found; None is shown only as the value of a cell.
        hint: What to do about it.

    Example:
        >>> print(DataError("events.csv", 3, "time", "soon", "not a time: write it as 2025-01-31"))
        events.csv, row 3, column 'time': 'soon': not a time: write it as 2025-01-31
    """

    file: str
    row: int | None
    column: str | None
    value: object
    hint: str

    def __str__(self) -> str:
        import numpy as np  # late: the command line needs it for no other reason

        place = self.file
        if self.row is not None:
            place += f", row {self.row}"
        if self.column is not None:
            place += f", column {self.column!r}"
        if self.value is None and self.row is None:
            return f"{place}: {self.hint}"
        value = self.value.item() if isinstance(self.value, np.generic) else self.value
        shown = repr(value)
        if len(shown) >= MAX_SHOWN:
            shown = f"{shown[: MAX_SHOWN - 3]}..."
        return f"{place}: {shown}: {self.hint}"


class WeightsError(QanchorError, RuntimeError):
    """Model weights are missing or damaged."""


class TableError(QanchorError, RuntimeError):
    """A table of text vectors on disk is damaged."""


class RunError(QanchorError, RuntimeError):
    """A run folder is incomplete, damaged, or was written by an incompatible version."""


class CheckpointError(QanchorError, ValueError):
    """Training cannot resume from a checkpoint: it is damaged or belongs to another training."""


class ChatClientError(QanchorError, OSError):
    """A chat endpoint does not answer."""


class TokenBudgetExceeded(QanchorError):
    """The next request may cost more tokens than the budget allows."""
