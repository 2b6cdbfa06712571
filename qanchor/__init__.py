"""Ask questions of user behaviour: query-conditioned user embeddings (Query as Anchor, arXiv
2602.14492).
"""

from qanchor.analysis.clusters import (
    cluster_transitions,
    compare_clusters,
    find_clusters,
)
from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import rank_queries_for_group
from qanchor.analysis.groups import describe_clusters, describe_group
from qanchor.analysis.query_matrix import query_group_matrix
from qanchor.config import FULL, MEDIUM, SMALL, TINY, Config
from qanchor.data.complete_journey import load_complete_journey
from qanchor.data.export import export_group
from qanchor.data.reading import load_users, read_events
from qanchor.data.sample import make_sample_users, sample_ground_truth
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.evaluation.backtest import BacktestResult, backtest
from qanchor.evaluation.probe import ProbeResult, linear_probe
from qanchor.inference.batch_embed import embed_dataset
from qanchor.inference.engine import Engine
from qanchor.inference.neighbors import nearest_users
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.collate import collate_users
from qanchor.models.model import QAnchor
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.models.serialization import load_history
from qanchor.models.text_encoder import text_vectors
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import iter_tune_prompt, tune_prompt
from qanchor.training.losses import autoregressive_loss, contrastive_loss, prototype_loss
from qanchor.training.trainer import train
from qanchor.useru.llm import generate_pairs
from qanchor.useru.pairs import make_pairs
from qanchor.useru.sharded import split, write_pairs
from qanchor.workbench.attention import AttentionBackend
from qanchor.workbench.clusters import comparison_update
from qanchor.workbench.group_queries import GroupQueriesBackend
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.prompt_tuning import PromptTuningBackend
from qanchor.workbench.query_matrix import QueryMatrixBackend
from qanchor.workbench.session import WorkbenchSession
from qanchor.workbench.updates import Update

__all__ = [
    "FULL",
    "MEDIUM",
    "SMALL",
    "TINY",
    "AttentionBackend",
    "BacktestResult",
    "Config",
    "DataError",
    "EmbeddingCache",
    "Engine",
    "GroupQueriesBackend",
    "LensBackend",
    "PrefixCache",
    "ProbeResult",
    "PromptTuningBackend",
    "QAnchor",
    "QueryMatrixBackend",
    "SoftPrompt",
    "Update",
    "UserPreprocessor",
    "Users",
    "WorkbenchSession",
    "autoregressive_loss",
    "backtest",
    "cluster_transitions",
    "collate_users",
    "compare_clusters",
    "comparison_update",
    "contrastive_loss",
    "describe_clusters",
    "describe_group",
    "embed_dataset",
    "export_group",
    "find_clusters",
    "generate_pairs",
    "iter_tune_prompt",
    "linear_probe",
    "load_complete_journey",
    "load_history",
    "load_users",
    "make_pairs",
    "make_sample_users",
    "nearest_users",
    "prototype_loss",
    "query_group_matrix",
    "rank_queries_for_group",
    "read_events",
    "sample_ground_truth",
    "split",
    "text_vectors",
    "train",
    "tune_prompt",
    "write_pairs",
]
