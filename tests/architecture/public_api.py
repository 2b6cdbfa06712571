"""A program that uses the public API as the README does; `mypy` checks it, and the tests run it."""

from __future__ import annotations

import numpy as np
import pandas as pd

import qanchor as qa


def score(users: qa.Users, run: str, query: str) -> pd.DataFrame:
    """Load a run, read the users and rank them."""
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    cache: qa.PrefixCache = engine.prefill(users)
    return engine.rank(cache, query)


def measure(embeddings: np.ndarray, labels: pd.Series) -> float:
    """Return the AUC of a linear probe."""
    result = qa.linear_probe(embeddings, labels, seed=0)
    return result.auc


def fit_model(n_users: int = 60) -> tuple[qa.QAnchor, qa.Users]:
    """Fit a model of sample users without words."""
    users = qa.make_sample_users(n_users)
    return qa.fit(users, text_encoder="hash", steps=5, progress=False), users
