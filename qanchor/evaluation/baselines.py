"""Plain feature sets and boosted trees to compare embeddings with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.data.users import Users
from qanchor.models.features import signed_log

WINDOWS = (30, 90)  # days before the cut-off, beside the whole history
COMPONENTS = 64
MAX_COLUMNS = 2_000  # texts counted, the commonest first: a probe on more columns than users learns them by heart


def baseline_features(users: Users, vectors: Any = None) -> dict[str, Float[np.ndarray, "user column"]]:
    """Describe every user in plain numbers, the ways people do today: {method: (user, column)}, in the order of `ids`.

    rfm: recency, frequency and money by modality, with the last 30 and 90 days beside the whole, and the known facts.
    counts: log counts of the texts. rfm_svd: rfm and 64 components of the counts. lightgbm: rfm and counts, for boosted
    trees. With `vectors`, a dict text -> (dim,) or an array in the order of the events' text categories: minilm (mean
    vector of the events), minilm_rfm, rfm_svd_minilm. Only history is read, and no label.

    Example:
        >>> events = pd.DataFrame({"user": ["a", "b", "b"], "modality": "bill", "text": ["tea", "tea", "rice"],
        ...     "time": pd.to_datetime(["2025-01-01", "2025-01-05", "2025-02-02"])})
        >>> baseline_features(Users.from_events(events, cutoff="2025-02-01"))["counts"].round(2)
        array([[0.69],
               [0.69]])
    """
    past = users.history()
    rfm, counts = _rfm(users, past), _counts(users, past)
    dense = np.asarray(np.log1p(counts[:, _commonest(counts)].toarray()), dtype=float)
    small = svd_components(np.log1p(counts))
    features = {"rfm": rfm, "counts": dense, "rfm_svd": np.hstack([rfm, small])}
    if find_spec("lightgbm"):
        features["lightgbm"] = np.hstack([rfm, dense])
    if vectors is not None:
        mean = _mean_vectors(users, past, vectors)
        features |= {"minilm": mean, "minilm_rfm": np.hstack([mean, rfm])}
        features["rfm_svd_minilm"] = np.hstack([rfm, small, svd_components(mean)])
    return features


def fit_boosted_trees(
    x: Float[np.ndarray, "user dim"], y: Int[np.ndarray, " user"], new: Float[np.ndarray, "new dim"], seed: int
):
    """Fit boosted trees (LightGBM, small data settings) on (x, y) and score `new`."""
    import lightgbm

    model = lightgbm.LGBMClassifier(
        n_estimators=200, learning_rate=0.03, num_leaves=15, min_child_samples=20, subsample=0.8, subsample_freq=1,
        colsample_bytree=0.3, reg_lambda=5.0, random_state=seed, n_jobs=1, verbose=-1,
    )  # fmt: skip
    return model.fit(x, y).booster_.predict(new)


def _rfm(users: Users, past: pd.DataFrame) -> Float[np.ndarray, "user column"]:
    """Count, time and sum each user's events, by modality and over all."""
    age = ((users.cutoff - past["time"]) / pd.Timedelta(days=1)).to_numpy()
    user, modality = past["user"].cat.codes.to_numpy().astype(int), past["modality"].cat.codes.to_numpy().astype(int)
    span = float(age.max(initial=1.0))
    parts = []
    for kind in (None, *range(len(users.modalities))):
        chosen = np.ones(len(past), bool) if kind is None else modality == kind
        numbers = np.nan_to_num(past.loc[chosen, list(users.numbers)].to_numpy(float))
        parts += _rfm_of(user[chosen], age[chosen], numbers, len(users), span)
    facts = users.tabular.fillna(users.tabular.median()).fillna(0.0)
    table = np.column_stack([*parts, facts, users.tabular.isna()]).astype(float)
    return table[:, table.std(axis=0) > 1e-9]


def _rfm_of(user: np.ndarray, age: np.ndarray, numbers: np.ndarray, n: int, span: float) -> list[np.ndarray]:
    """Give the columns of one modality; amounts as signed logs, since a few users spend a hundred times the median."""
    count, last, first = np.bincount(user, minlength=n), np.full(n, span + 1), np.zeros(n)
    np.minimum.at(last, user, age)
    np.maximum.at(first, user, age)
    days = np.bincount(np.unique(np.stack([user, age.astype(int)]), axis=1)[0], minlength=n)
    gap = np.maximum(first - last, 1) / np.maximum(days - 1, 1)
    columns = [np.log1p(count), np.log1p(last), np.log1p(days), np.log(gap), np.log1p(last / gap)]
    totals = [count, *(np.bincount(user, column, n) for column in numbers.T)]
    for days_back in WINDOWS:
        rows = age <= days_back
        recent = [np.bincount(user[rows], minlength=n), *(np.bincount(user[rows], column[rows], n) for column in numbers.T)]
        columns += [signed_log(values) for values in recent]
        # the trend: the window's share of the whole (without a whole there is no part: 0)
        columns += [part / np.where(total == 0, 1, total) for part, total in zip(recent, totals, strict=True)]
    columns += [signed_log(total) for total in totals[1:]] + [total / np.maximum(count, 1) for total in totals[1:]]
    return columns + [np.bincount(user, column > 0, n) / np.maximum(count, 1) for column in numbers.T]


def _counts(users: Users, past: pd.DataFrame):
    """Count each user's texts, one column a modality and text: sparse (user, column)."""
    from scipy.sparse import csr_matrix

    texts = len(past["text"].cat.categories)
    column = past["modality"].cat.codes.to_numpy().astype(np.int64) * texts + past["text"].cat.codes.to_numpy()
    seen, column = np.unique(column, return_inverse=True)
    cells = (past["user"].cat.codes.to_numpy(), column)
    return csr_matrix((np.ones(len(past)), cells), (len(users), len(seen)))  # equal cells add up


def _commonest(counts) -> np.ndarray:
    """Choose the columns that most users have, at least two of them where any has."""
    having = np.asarray((counts > 0).sum(axis=0)).ravel()
    best = np.argsort(-having, kind="stable")[:MAX_COLUMNS]
    return np.sort(best[having[best] >= min(2, having.max(initial=0))])


def _mean_vectors(users: Users, past: pd.DataFrame, vectors: Any) -> Float[np.ndarray, "user dim"]:
    """Average the text vectors of each user's events; a user without any stands at the mean of all."""
    from scipy.sparse import csr_matrix

    texts = past["text"].cat.categories
    table = np.asarray([vectors[t] for t in texts] if isinstance(vectors, Mapping) else vectors, dtype=float)
    if len(table) != len(texts):
        raise ValueError(f"{len(table)} vectors for {len(texts)} texts: give one a category of events['text'], in that order")
    cells = (past["user"].cat.codes.to_numpy(), past["text"].cat.codes.to_numpy())
    counts = csr_matrix((np.ones(len(past)), cells), (len(users), len(texts)))
    total = np.asarray(counts.sum(axis=1))
    mean = (counts @ table) / np.maximum(total, 1)
    return np.where(total > 0, mean, mean[total[:, 0] > 0].mean(axis=0) if total.any() else 0.0)


def svd_components(table, n: int = COMPONENTS) -> Float[np.ndarray, "user component"]:
    """Keep the `n` directions that hold most of a (user, column) table."""
    from sklearn.decomposition import TruncatedSVD

    n = min(n, min(table.shape) - 1)
    with np.errstate(invalid="ignore"):  # it divides by the variance, which may be 0
        return TruncatedSVD(n, random_state=0).fit_transform(table) if n > 0 else np.zeros((table.shape[0], 1))
