"""Linear probe: how well frozen embeddings predict a label, with AUC, KS and intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qanchor.evaluation.intervals import auc_columns
from qanchor.evaluation.metrics import check_binary, ks_statistic, roc_auc, to_floats
from qanchor.utils.types import EmbeddingRows, UserInts

# Values of C tried in each training fold: 20 raw columns need a large one, 500 a small one.
INVERSE_PENALTIES = (0.003, 0.03, 0.3)
DEFAULT_PENALTY = INVERSE_PENALTIES[1]
INNER_FOLDS = 3
MAX_TUNING_USERS = 20_000  # users that the penalty is chosen on; more only take longer


@dataclass(frozen=True)
class ProbeResult:
    """Hold how well a linear probe predicts a label for users that it was not fitted on.

    Example:
        >>> ProbeResult(auc=0.8123, auc_low=0.79, auc_high=0.83, ks=0.471, n=800, positives=210)
        Probe(auc=.812, ks=.47, n=800)
    """

    auc: float  # mean over folds and seeds
    auc_low: float  # ends of the 95 % interval
    auc_high: float
    ks: float  # mean over seeds, each over all users
    n: int  # users with a known label
    positives: int

    def __repr__(self) -> str:
        return f"Probe(auc={self.auc:.3f}, ks={self.ks:.2f}, n={self.n})".replace("=0.", "=.")


def linear_probe(
    embeddings: Any, labels: Any, seed: int = 0, folds: int = 5, seeds: int = 5
) -> ProbeResult:
    """Measure how well a logistic regression predicts a label from frozen embeddings.

    Args:
        embeddings: (user, dim).
        labels: 0, 1 or NaN (unknown: left out) for each user, in the same order.
        seed: First seed of the folds. Default: 0.
        folds: Folds of the stratified cross-validation. Default: 5.
        seeds: Repetitions with other folds. Default: 5.

    Returns:
        AUC with its 95 % interval, and KS.

    Raises:
        ValueError: If lengths differ, a label is neither 0 nor 1, a value is not finite, or a class
            has fewer users than folds.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(200, 8))
        >>> linear_probe(known, known[:, 0] > 0).auc > 0.98
        True
    """
    scores, fold = cross_val_scores(embeddings, labels, seed, folds, seeds)
    return summarize_cv(scores, fold, labels)


def cross_val_scores(
    embeddings: Any,
    labels: Any,
    seed: int = 0,
    folds: int = 5,
    seeds: int = 5,
    fit: Callable | None = None,
) -> tuple[Float[np.ndarray, "seed user"], Int[np.ndarray, "seed user"]]:
    """Score every user with a model that was not fitted on it.

    Args:
        embeddings: (user, dim).
        labels: 0, 1 or NaN (unknown: left out) for each user.
        seed: First seed of the folds. Default: 0.
        folds: Folds. Default: 5.
        seeds: Repetitions with other folds. Default: 5.
        fit: Function that maps (x, y, new x, seed) to scores of the new users. Default:
            `fit_linear_probe`.

    Returns:
        Scores (NaN where unknown) and fold numbers (-1 where unknown), both (seed, user).

    Raises:
        ValueError: As `linear_probe`.
    """
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    x, y, known = _check_probe_input(embeddings, labels, folds)
    fit = fit or fit_linear_probe
    shape = (seeds, len(embeddings))
    scores = np.full(shape, np.nan)
    fold = np.full(shape, -1)
    with threadpool_limits(1):  # in fits this small, threads only wait for each other
        for row in range(seeds):
            splitter = StratifiedKFold(folds, shuffle=True, random_state=seed + row)
            for number, (train, test) in enumerate(splitter.split(x, y)):
                users = known[test]
                scores[row, users] = fit(x[train], y[train], x[test], seed + row)
                fold[row, users] = number
    return scores, fold


def summarize_cv(
    scores: Float[np.ndarray, "seed user"], fold: Int[np.ndarray, "seed user"], labels: Any
) -> ProbeResult:
    """Summarize cross-validated scores of any model.

    The interval is corrected for folds that share training users (Nadeau and Bengio 2003).

    Args:
        scores: Scores, from `cross_val_scores`.
        fold: Fold numbers, from `cross_val_scores`.
        labels: 0, 1 or NaN for each user.
    """
    y = to_floats(labels)
    known = fold[0] >= 0
    folds = int(fold.max()) + 1
    aucs = []
    for seed_scores, seed_fold in zip(scores, fold, strict=True):
        for number in range(folds):
            test = seed_fold == number
            aucs.append(roc_auc(seed_scores[test], y[test]))
    summary = auc_columns(np.array([aucs]), folds)
    # KS of one small fold is far too high by chance: compute it over all users of a seed
    ks_of_seeds = [ks_statistic(seed_scores, y[known]) for seed_scores in scores[:, known]]
    return ProbeResult(
        **{name: float(values[0]) for name, values in summary.items()},
        ks=float(np.mean(ks_of_seeds)),
        n=int(known.sum()),
        positives=int(y[known].sum()),
    )


def fit_linear_probe(
    x: EmbeddingRows,
    y: UserInts,
    new: Float[np.ndarray, "new dim"],
    seed: int,
):
    """Fit a standardized logistic regression and score other users.

    The penalty is chosen by cross-validation in three inner folds.

    Args:
        x: Embeddings to fit on.
        y: Their labels, 0 or 1.
        new: Embeddings to score.
        seed: Seed for sampling the users that the penalty is chosen on.

    Returns:
        Decision values of the new users.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x = scaler.transform(x)
    model = LogisticRegression(C=DEFAULT_PENALTY, max_iter=300, tol=1e-3)
    inner_folds = min(INNER_FOLDS, y.sum(), (1 - y).sum())
    if inner_folds > 1:  # otherwise too few users of a class to choose the penalty
        tuning = np.random.default_rng(seed).permutation(len(y))[:MAX_TUNING_USERS]
        grid = {"C": INVERSE_PENALTIES}
        search = GridSearchCV(model, grid, scoring="roc_auc", cv=int(inner_folds), refit=False)
        search.fit(x[tuning], y[tuning])
        model.set_params(**search.best_params_)
    return model.fit(x, y).decision_function(scaler.transform(new))


def _check_probe_input(
    embeddings: Any, labels: Any, folds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings and labels of the users with a known label, and their rows."""
    x = np.asarray(embeddings)
    y = to_floats(labels)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"Found embeddings {x.shape}, labels {y.shape}. "
            "Pass (user, dim) and (user,) of the same users."
        )
    known = np.flatnonzero(~np.isnan(y))
    x = x[known].astype(float)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"embeddings[{known[row]}, {column}] is {x[row, column]}. "
            "Fill it, or set that user's label to NaN."
        )
    return x, check_binary(y[known], folds), known
