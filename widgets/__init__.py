"""The front end: views of frames. They know tables and callables, never models."""

from widgets.clusters import ClusterLedger
from widgets.lens import QueryLens
from widgets.prompt import PromptLab

__all__ = ["ClusterLedger", "PromptLab", "QueryLens"]
