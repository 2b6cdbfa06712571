"""Plain feature sets and boosted trees that embeddings are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from qanchor.data.users import Users
from qanchor.models.user_tokens import TOKEN_NUMBERS, UserTokens

N_COMPONENTS = 64
WINDOW_DAYS = (30, 90)  # days before the cut-off, in addition to the whole history


# Most common texts that are counted: a probe on more columns than users memorizes them.
MAX_COLUMNS = 2_000


def baseline_features(
    users: Users, vectors: Any = None
) -> dict[str, Float[np.ndarray, "user column"]]:
    """Compute the plain feature sets that embeddings are compared with, from the history only.

    Args:
        users: Users; events at or after the cut-off and labels are not read.
        vectors: Text vectors, as a dict text -> (dim,) or an array in the order of the categories
            of `users.events["text"]`. Default: none.

    Returns:
        Arrays (user, column) in the order of `users.ids`, by method. rfm: recency, frequency and
        amounts by modality, overall and for the last 30 and 90 days, and the known facts. counts:
        log counts of texts. rfm_svd: rfm and 64 SVD components of the counts. lightgbm (if
        installed): rfm and counts, for boosted trees. With `vectors`: minilm (mean text vector),
        minilm_rfm and rfm_svd_minilm.

    Example:
        >>> times = pd.to_datetime(["2025-01-01", "2025-01-05", "2025-02-02"])
        >>> texts = ["tea", "tea", "rice"]
        >>> events = pd.DataFrame(
        ...     {"user": ["a", "b", "b"], "modality": "bill", "text": texts, "time": times}
        ... )
        >>> baseline_features(Users.from_events(events, cutoff="2025-02-01"))["counts"].round(2)
        array([[0.69],
               [0.69]])
    """
    past = users.history()
    rfm = rfm_features(users)
    counts = _counts(users, past)
    common = counts[:, _most_common(counts)].toarray()
    dense_counts = np.asarray(np.log1p(common), dtype=float)
    components = svd_components(np.log1p(counts))
    features = {
        "rfm": rfm,
        "counts": dense_counts,
        "rfm_svd": np.hstack([rfm, components]),
    }
    if find_spec("lightgbm"):
        features["lightgbm"] = np.hstack([rfm, dense_counts])
    if vectors is not None:
        mean = _mean_vectors(users, past, vectors)
        features["minilm"] = mean
        features["minilm_rfm"] = np.hstack([mean, rfm])
        features["rfm_svd_minilm"] = np.hstack([rfm, components, svd_components(mean)])
    return features


def token_features(*cutoffs: UserTokens) -> dict[str, list[np.ndarray]]:
    """Return what the model is given of each user as plain tables, of one or more cut-offs.

    Args:
        *cutoffs: Tokens of users, of the same things.

    Returns:
        A table (user, column) for each of them, by what is fitted on it. lightgbm: log counts of
        each thing, over all time and in the last horizon, and the numbers of the user as a whole.
        logistic: these numbers, and 64 SVD components of the counts.
    """
    counts = [_thing_counts(tokens) for tokens in cutoffs]
    ends = np.cumsum([len(table) for table in counts])[:-1]
    components = np.split(svd_components(np.vstack(counts)), ends)
    return {
        name: [
            np.hstack([table, tokens.level]) for table, tokens in zip(tables, cutoffs, strict=True)
        ]
        for name, tables in (("logistic", components), ("lightgbm", counts))
    }


def _thing_counts(tokens: UserTokens) -> Float[np.ndarray, "user column"]:
    """Return log counts of each thing by user, over all time and in the last horizon."""
    user, place = np.nonzero(tokens.which >= 0)
    thing = tokens.which[user, place]
    columns = []
    for name in ("count", "count in the last horizon"):
        table = np.zeros((len(tokens), len(tokens.things)))
        table[user, thing] = tokens.numbers[user, place, TOKEN_NUMBERS.index(name)]
        columns.append(table)
    return np.hstack(columns)


def fit_boosted_trees(
    x: Float[np.ndarray, "user dim"],
    y: Int[np.ndarray, " user"],
    new: Float[np.ndarray, "new dim"],
    seed: int,
):
    """Fit boosted trees (LightGBM with settings for small data) and score other users.

    Args:
        x: Features to fit on.
        y: Their labels, 0 or 1.
        new: Features to score.
        seed: Seed of the subsampling.

    Returns:
        Probabilities of the new users.
    """
    import lightgbm

    model = lightgbm.LGBMClassifier(
        n_estimators=200,
        learning_rate=0.03,
        num_leaves=15,
        min_child_samples=20,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.3,
        reg_lambda=5.0,
        random_state=seed,
        n_jobs=1,
        verbose=-1,
    )
    return model.fit(x, y).booster_.predict(new)


def _counts(users: Users, past: pd.DataFrame):
    """Count the texts of each user: sparse (user, modality and text)."""
    texts = len(past["text"].cat.categories)
    column = (
        past["modality"].cat.codes.to_numpy().astype(np.int64) * texts
        + past["text"].cat.codes.to_numpy()
    )
    seen, column = np.unique(column, return_inverse=True)
    cells = (past["user"].cat.codes.to_numpy(), column)
    return csr_matrix((np.ones(len(past)), cells), (len(users), len(seen)))  # equal cells add up


def _most_common(counts) -> np.ndarray:
    """Return the columns that most users have; columns of one user only if there are no others."""
    n_users = np.asarray((counts > 0).sum(axis=0)).ravel()
    best = np.argsort(-n_users, kind="stable")[:MAX_COLUMNS]
    return np.sort(best[n_users[best] >= min(2, n_users.max(initial=0))])


def _mean_vectors(users: Users, past: pd.DataFrame, vectors: Any) -> Float[np.ndarray, "user dim"]:
    """Average the text vectors of each user's events; users without events get the mean of all."""
    texts = past["text"].cat.categories
    table = np.asarray(
        [vectors[t] for t in texts] if isinstance(vectors, Mapping) else vectors, dtype=float
    )
    if len(table) != len(texts):
        raise ValueError(
            f"{len(table)} vectors for {len(texts)} texts: "
            "give one a category of events['text'], in that order"
        )
    cells = (past["user"].cat.codes.to_numpy(), past["text"].cat.codes.to_numpy())
    counts = csr_matrix((np.ones(len(past)), cells), (len(users), len(texts)))
    total = np.asarray(counts.sum(axis=1))
    mean = (counts @ table) / np.maximum(total, 1)
    return np.where(total > 0, mean, mean[total[:, 0] > 0].mean(axis=0) if total.any() else 0.0)


def svd_components(table, n: int = N_COMPONENTS) -> Float[np.ndarray, "user component"]:
    """Compute the first SVD components of a table.

    Args:
        table: (user, column), dense or sparse.
        n: Components, at most one less than rows and columns. Default: 64.

    Returns:
        (user, component); one column of zeros if the table is too small.
    """
    n = min(n, min(table.shape) - 1)
    with np.errstate(invalid="ignore"):  # it divides by the variance, which may be 0
        return (
            TruncatedSVD(n, random_state=0).fit_transform(table)
            if n > 0
            else np.zeros((table.shape[0], 1))
        )


def rfm_features(users: Users) -> Float[np.ndarray, "user column"]:
    """Compute recency, frequency and amounts of each user, overall and by modality.

    Args:
        users: Users; events at or after the cut-off and labels are not read.

    Returns:
        Array (user, column) in the order of `users.ids`: the whole history, the last 30 and 90
        days, and the known facts. Constant columns are left out.

    Example:
        >>> times = pd.to_datetime(["2025-01-01", "2025-01-05", "2025-02-02"])
        >>> events = pd.DataFrame({"user": ["a", "b", "b"], "time": times})
        >>> events = events.assign(modality="bill", text="tea")
        >>> rfm_features(Users.from_events(events, cutoff="2025-02-01")).shape
        (2, 8)
    """
    past = users.history()
    events = past[list(users.numbers)].fillna(0.0)
    events.insert(0, "events", 1.0)
    age = (users.cutoff - past["time"]) / pd.Timedelta(days=1)
    span = max(age.max(), 1.0) if len(age) else 1.0
    parts = [_rfm_of(past["user"], age, events, span)]
    for name in users.modalities:
        rows = past["modality"] == name
        parts.append(_rfm_of(past["user"][rows], age[rows], events[rows], span))
    facts = users.tabular.fillna(users.tabular.median()).fillna(0.0)
    table = np.column_stack([*parts, facts, users.tabular.isna()]).astype(float)
    return table[:, table.std(axis=0) > 1e-9]


def _rfm_of(user: pd.Series, age: pd.Series, events: pd.DataFrame, span: float) -> pd.DataFrame:
    """Compute the columns of one modality; amounts as signed logs, since they are skewed."""
    by_user = age.groupby(user, observed=False)
    last = by_user.min().fillna(span + 1)
    first = by_user.max().fillna(0.0)
    days = age.astype(int).groupby(user, observed=False).nunique()
    gap = (first - last).clip(lower=1) / (days - 1).clip(lower=1)
    totals = events.groupby(user, observed=False).sum()
    count = totals["events"]
    columns = [
        np.log1p(count),
        np.log1p(last),
        np.log1p(days),
        np.log(gap),
        np.log1p(last / gap),
    ]
    for days_back in WINDOW_DAYS:
        recent = events.where(age <= days_back, 0.0).groupby(user, observed=False).sum()
        # trend: the window's share of the total, 0 without a total
        columns += [_signed_log(recent), recent / totals.replace(0, 1)]
    amounts = totals.drop(columns="events")
    positive = (events > 0).drop(columns="events").groupby(user, observed=False).sum()
    per_event = count.clip(lower=1)
    columns += [
        _signed_log(amounts),
        amounts.div(per_event, axis=0),
        positive.div(per_event, axis=0),
    ]
    return pd.concat(columns, axis=1)


def _signed_log(values: pd.DataFrame) -> pd.DataFrame:
    """Compute sign(x) * log(1 + |x|), since a few users spend a hundred times the median."""
    return np.sign(values) * np.log1p(values.abs())
