"""A program that uses the public API as the README does; `mypy` checks it, and the tests run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import qanchor as qa


def read(folder: Path) -> qa.Users:
    """Read users in the three ways that there are."""
    events = qa.make_sample_users(60).events
    users: qa.Users = qa.read_events(events, cutoff="2025-06-01", unit="customer")
    users = qa.Users.from_events(users.events, cutoff=pd.Timestamp("2025-06-01"))
    return qa.load_users(users.save(folder))


def score(users: qa.Users, run: Path, query: str) -> pd.DataFrame:
    """Load a run, read the users and rank them."""
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    cache: qa.PrefixCache = engine.prefill(users)
    return engine.rank(cache, query)


def tune(users: qa.Users, run: Path, labels: pd.Series) -> float:
    """Tune a soft prompt and return the AUC of a linear probe of the embeddings under it."""
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    cache = engine.prefill(users)
    prompt, _ = qa.tune_prompt(engine, cache, "Why?", labels, steps=1)
    embeddings: np.ndarray = engine.embed(cache, ["Why?", prompt])
    return qa.linear_probe(embeddings[:, 1], labels, seed=0).auc


def main(folder: Path) -> tuple[pd.DataFrame, Path, float]:
    """Fit a model of sample users without words, rank the users with it, and export some."""
    users = read(folder / "users")
    model = qa.fit(users, text_encoder="hash", steps=5, progress=False)
    run = model.save_pretrained(folder / "run")
    ranking = score(users, run, "Will this customer travel?")
    path = qa.export_group(users, ranking["user"].head(12), folder / "group.csv")
    labels = pd.Series(np.arange(len(users)) % 2, pd.Index(users.ids))
    return ranking, path, tune(users, run, labels)
