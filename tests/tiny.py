"""Small users and models that several test files share: ragged, random, made in well under a
second.
"""

import copy
import functools

import numpy as np
import pandas as pd
import torch

from qanchor.config import TINY, Config
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.models.collate import collate_queries, collate_users
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor
from qanchor.models.preprocessor import UserPreprocessor

CUTOFF = pd.Timestamp("2025-04-01")
QUERIES = (
    "Will this user travel soon?",
    "",
    "Why?",
    "Is this user price-conscious, and if so, since when, and on what?",
)


@functools.cache
def make_users(seed: int = 0) -> Users:
    """Nine users with 0 to 60 events in three modalities, some of them after the cut-off; `none`
    has no event at all.
    """
    rng = np.random.default_rng(seed)
    texts = [
        "tea",
        "rice",
        "flight to Rome",
        "shoes",
        "baby food",
        "open app",
        "search hotels",
        "cinema",
        "soap",
        "beans",
    ]
    rows = []
    for user, many in {
        "a": 60,
        "b": 1,
        "c": 7,
        "d": 2,
        "e": 23,
        "f": 12,
        "g": 3,
        "later": 4,
    }.items():
        for _ in range(many):
            days = rng.uniform(-25, 0) if user == "later" else rng.uniform(-10, 100)
            kind = ("bill", "app", "search")[0 if user == "d" else rng.integers(3)]
            time = CUTOFF - pd.Timedelta(minutes=int(days * 1440))
            rows.append(
                (
                    user,
                    time,
                    kind,
                    rng.choice(texts),
                    rng.gamma(2.0, 9.0) if kind == "bill" else np.nan,
                )
            )
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"])
    ids = pd.Index([*"abcdefg", "later", "none"], name="user")
    facts = pd.DataFrame(
        {
            "age.years": rng.normal(40, 9, 9),
            "home.rooms": np.where(rng.random(9) < 0.4, np.nan, 3.0),
        },
        ids,
    )
    labels = pd.DataFrame({"odd": np.arange(9) % 2}, ids).astype(float)
    return Users.from_events(
        events, CUTOFF, tabular=facts, labels=labels, modalities=("bill", "app", "search")
    )


def cutoffs(users: Users) -> pd.DataFrame:
    return pd.DataFrame({"user": list(users.ids), "cutoff": users.cutoff})


def make_model(
    users: Users | None = None, seed: int = 0, config: Config = TINY, awake: bool = True, **changes
) -> QAnchor:
    """Build a tiny model whose every weight matters: LoRA is not zero, and (awake) attention looks
    at places and words.
    """
    users, config = users or make_users(), config.replace(**changes)
    model = QAnchor(
        config,
        UserPreprocessor.fit(users, cutoffs(users), config),
        seed,
        device="cpu",
        dtype=config.dtype,
    ).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
            elif awake and "_proj" in name:
                weight.mul_(
                    6.0
                )  # at their first size they are so small that a wrong position changes nothing
    return model


def make_engine(model: QAnchor) -> Engine:
    """Serve a copy: an engine folds LoRA into the weights of the model it is given."""
    return Engine(copy.deepcopy(model))


def forward(model: QAnchor, batch, queries: list, answers: list | None = None, said=()):
    """Run one pass over token ids `queries[user][branch]`: anchors (pair, dim), hidden states that
    write, targets.
    """
    asked = [ids for row in queries for ids in row]
    words = [model.tokenizer.decode(ids) for ids in asked]
    query = QueryEncoding(model.encode_query_tokens(asked), model.query_text_embeddings(words)).at(
        torch.arange(len(asked)).view(len(queries), -1)
    )
    return model(batch, collate_queries(queries, answers), query, list(said))


@torch.no_grad()
def one_by_one(model: QAnchor, users: Users, queries=QUERIES) -> np.ndarray:
    """Embed every user for every query alone, uncached, nothing padded: (user, query, dim)."""
    readings = model.preprocessor.transform(users)
    rows = [
        [model.embed(collate_users(readings, [i]), query)[0].numpy() for query in queries]
        for i in range(len(users))
    ]
    return np.array(rows)
