"""The front end: views of frames. They know tables and callables, never models."""

try:
    import anywidget  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The package anywidget is not installed. Run pip install 'qanchor[lab]'."
    ) from error

from qanchor.widgets.attention import AttentionView
from qanchor.widgets.clusters import ClusterView
from qanchor.widgets.lens import QueryLens
from qanchor.widgets.prompt_tuning import PromptTuningView
from qanchor.widgets.query_matrix import QueryMatrixView
from qanchor.widgets.result_card import ResultCard
from qanchor.widgets.retention import RetentionView
from qanchor.widgets.selection import SelectionPanel
from qanchor.widgets.workbench import Workbench

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
