"""Ask questions of user behaviour: query-conditioned user embeddings (Query as Anchor, arXiv 2602.14492)."""

from .asker import Asker
from .batch import batch_users
from .cache import Cache
from .clusters import cluster_ledger, find_clusters
from .config import FULL, MEDIUM, SMALL, TINY, Config
from .deck import Deck, shift_matrix
from .desk import Desk
from .engine import Engine
from .explain import explain_group
from .groups import describe_group, export_group
from .hindsight import Hindsight, hindsight
from .journey import load_journey, load_movielens
from .looker import Looker
from .losses import autoregressive_loss, contrastive_loss, prototype_loss
from .model import QAnchor, build
from .nearest import neighbours
from .pairs import make_pairs
from .probe import Probe, probe
from .prompt import SoftPrompt
from .reader import Reader
from .runs import history, load, save
from .scale import embed_folder
from .schema import DataError, Users, load_users
from .shards import split, write_pairs
from .synthesis import synthesise
from .telling import name_clusters
from .texts import text_vectors
from .train import train
from .tuner import Tuner
from .tuning import tune_prompt, watch_tuning
from .world import make_world, world_truth

__all__ = [
    "FULL",
    "MEDIUM",
    "SMALL",
    "TINY",
    "Asker",
    "Cache",
    "Config",
    "DataError",
    "Deck",
    "Desk",
    "Engine",
    "Hindsight",
    "Looker",
    "Probe",
    "QAnchor",
    "Reader",
    "SoftPrompt",
    "Tuner",
    "Users",
    "autoregressive_loss",
    "batch_users",
    "build",
    "cluster_ledger",
    "contrastive_loss",
    "describe_group",
    "embed_folder",
    "explain_group",
    "export_group",
    "find_clusters",
    "hindsight",
    "history",
    "load",
    "load_journey",
    "load_movielens",
    "load_users",
    "make_pairs",
    "make_world",
    "name_clusters",
    "neighbours",
    "probe",
    "prototype_loss",
    "save",
    "shift_matrix",
    "split",
    "synthesise",
    "text_vectors",
    "train",
    "tune_prompt",
    "watch_tuning",
    "world_truth",
    "write_pairs",
]
