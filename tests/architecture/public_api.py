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


def tiny_model(n_users: int = 40) -> tuple[qa.QAnchor, qa.Users]:
    """Build an untrained model for sample users."""
    users = qa.make_sample_users(n_users)
    preprocessor = qa.UserPreprocessor.fit(users, None, qa.TINY)
    return qa.QAnchor(qa.TINY, preprocessor, seed=0), users
