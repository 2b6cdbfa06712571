"""Ask questions of user behaviour: query-conditioned user embeddings (Query as Anchor, arXiv
2602.14492).
"""

from qanchor.analysis.clusters import cluster_transitions
from qanchor.analysis.groups import describe_clusters
from qanchor.analysis.retention import funnel, retention
from qanchor.data.complete_journey import load_complete_journey
from qanchor.data.export import export_group
from qanchor.data.reading import load_users, read_events
from qanchor.data.sample import make_sample_users, sample_ground_truth
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.evaluation.backtest import backtest
from qanchor.evaluation.probe import linear_probe
from qanchor.inference.batch_embed import embed_dataset
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.model import QAnchor
from qanchor.models.text_encoder import text_vectors
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import tune_prompt
from qanchor.training.fit import fit
from qanchor.training.losses import contrastive_loss, prototype_loss
from qanchor.training.pairs import make_pairs
from qanchor.workbench.attention import AttentionBackend
from qanchor.workbench.group_queries import GroupQueriesBackend
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.prompt_tuning import PromptTuningBackend
from qanchor.workbench.query_matrix import QueryMatrixBackend
from qanchor.workbench.session import WorkbenchSession

__all__ = [
    "AttentionBackend",
    "DataError",
    "Engine",
    "GroupQueriesBackend",
    "LensBackend",
    "PrefixCache",
    "PromptTuningBackend",
    "QAnchor",
    "QueryMatrixBackend",
    "SoftPrompt",
    "Users",
    "WorkbenchSession",
    "backtest",
    "cluster_transitions",
    "contrastive_loss",
    "describe_clusters",
    "embed_dataset",
    "export_group",
    "fit",
    "funnel",
    "linear_probe",
    "load_complete_journey",
    "load_users",
    "make_pairs",
    "make_sample_users",
    "prototype_loss",
    "read_events",
    "retention",
    "sample_ground_truth",
    "text_vectors",
    "tune_prompt",
]
