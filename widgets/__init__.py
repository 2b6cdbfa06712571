"""The front end: views of frames. They know tables and callables, never models."""

from widgets.attention import AttentionView
from widgets.clusters import ClusterView
from widgets.lens import QueryLens
from widgets.prompt_tuning import PromptTuningView
from widgets.query_matrix import QueryMatrixView
from widgets.result_card import ResultCard
from widgets.retention import RetentionView
from widgets.selection import SelectionPanel
from widgets.workbench import Workbench

__all__ = [
    "AttentionView",
    "ClusterView",
    "PromptTuningView",
    "QueryLens",
    "QueryMatrixView",
    "ResultCard",
    "RetentionView",
    "SelectionPanel",
    "Workbench",
]
