"""The front end: views of frames. They know tables and callables, never models."""

from widgets.attention import AttentionLedger
from widgets.lens import QueryLens

__all__ = ["AttentionLedger", "QueryLens"]
