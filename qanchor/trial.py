"""Labels from a file, and a fair trial of tuning: a soft prompt learned from some users is judged on others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .about import DataError
from .cache import Cache
from .engine import Engine
from .probe import auc, ks, linear, paired_bootstrap
from .prompt import SoftPrompt, known_labels, tune_prompt
from .schema import Users


def read_labels(path: Path, name: str, users: Users) -> pd.Series:
    """Read a label file, columns user and `name` (0, 1 or empty), and give what it knows of these users: index user, 0. or 1.

    Raises DataError with the place of what is wrong, ValueError when it knows none of these users.
    """
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ValueError as error:
        raise DataError(path.name, None, name, str(error), "cannot be read: write it again as parquet or csv") from error
    for column in ("user", name):
        if column not in frame:
            raise DataError(path.name, None, column, list(frame.columns), "missing: write it, or name another with --column")
    bad = frame[~(frame[name].isin([0, 1]) | frame[name].isna())]
    if len(bad):
        raise DataError(path.name, int(bad.index[0]), name, bad[name].iloc[0], "write 0, 1, or leave it empty")
    twice = frame["user"].astype(str).duplicated()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise DataError(path.name, row, "user", frame["user"].iloc[row], "stands twice: keep one label a user")
    truth = frame.assign(user=frame["user"].astype(str)).set_index("user")[name].astype(float)
    known = truth.reindex(list(users.ids)).dropna()
    if known.empty:
        raise ValueError(f"{path}: none of its {len(truth):,} users is among the {len(users):,} of {users.name}: check the ids")
    return known


def trial(
    engine: Engine, cache: Cache, query: str, labels: pd.Series, *, share: float = 0.5, seed: int = 0, **how: Any
) -> tuple[SoftPrompt, pd.DataFrame, dict]:
    """Tune a soft prompt on a share of the labelled users and judge it on all others: (prompt, history, what was found).

    labels  index user, 0, 1 or NaN (left out). The seed alone says who is tuned on, so no label of a judged user plays a part.
    how     options of `tune_prompt`, which holds its validation users out of the share.

    before and after have one judge: the linear probe, fitted on the tuned-on users' embeddings under the typed query and under
    the prompt, scores the others' (auc, ks). That the prompt has seen the labels which the second probe is fitted on flatters
    that fit, not the score of users it never saw. prototype: their score by the prompt's own prototypes. gain: after minus
    before, 95 %, users drawn anew.

    Example:
        >>> users = qa.make_world(60)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> sorted(trial(engine, engine.prefill(users), "Why?", users.label("Active"), steps=10)[2])
        ['after', 'before', 'best_step', 'gain', 'n_test', 'n_tuning', 'positives', 'prototype', 'seconds']
    """
    known = known_labels(cache, labels)
    order = np.random.default_rng(seed).permutation(len(known))
    learn, judge = np.split(order, [int(share * len(known))])
    began = time.perf_counter()
    prompt, history = tune_prompt(engine, cache, query, known.iloc[learn], seed=seed, **how)
    taken = time.perf_counter() - began
    z = engine.embed(cache, [query, prompt])[pd.Index(cache.ids).get_indexer(known.index)].astype(float)
    y = known.to_numpy(int)
    before, after = (linear(z[learn, k], y[learn], z[judge, k], seed) for k in (0, 1))
    own = prompt.chances(z[judge, 1])[:, 1]
    scores = {"before": before, "after": after, "prototype": own}
    told: dict = {name: {"auc": auc(s, y[judge]), "ks": ks(s, y[judge])} for name, s in scores.items()}
    told["gain"] = dict(zip(("auc", "low", "high"), paired_bootstrap(after, before, y[judge], seed=seed), strict=True))
    told |= {"n_tuning": len(learn), "n_test": len(judge), "positives": int(y[judge].sum()), "seconds": taken}
    return prompt, history, told | {"best_step": int(history["step"][history["valid"].idxmin()])}
