"""The front end: views of frames. They know tables and callables, never models."""

from widgets.attention import AttentionLedger
from widgets.result_card import ClaimCard
from widgets.clusters import ClusterLedger
from widgets.lens import QueryLens
from widgets.query_matrix import ShiftMatrix
from widgets.prompt_tuning import PromptLab
from widgets.selection import SelectionPanel
from widgets.workbench import Workbench

__all__ = [
    "AttentionLedger",
    "ClaimCard",
    "ClusterLedger",
    "PromptLab",
    "QueryLens",
    "SelectionPanel",
    "ShiftMatrix",
    "Workbench",
]
