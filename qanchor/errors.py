"""Exceptions of the library. All of them derive from `QanchorError`."""

from __future__ import annotations

import numpy as np


class QanchorError(Exception):
    """Base class of every exception that this library raises on purpose."""


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

    def __init__(self, file: str, row: int | None, column: str | None, value: object, hint: str):
        self.file = file
        self.row = row
        self.column = column
        self.value = value
        self.hint = hint
        place = [self.file]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        parts = [", ".join(place)]
        if value is not None or row is not None:
            shown = repr(value.item() if isinstance(value, np.generic) else value)
            parts.append(shown if len(shown) < 80 else shown[:77] + "...")
        super().__init__(": ".join([*parts, hint]))

    def __reduce__(self):  # a pickled error from another process keeps its fields
        return type(self), (self.file, self.row, self.column, self.value, self.hint)


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
