"""How much a frozen embedding knows of a label: a linear probe, AUC, KS and honest intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qanchor.evaluation.metrics import _check_binary, _to_floats, ks_statistic, roc_auc

STRENGTHS = (0.003, 0.03, 0.3)  # inverse penalties tried inside each training fold: 20 raw columns want much, 500 little
MAX_TUNING_USERS = 20_000  # users that choose the penalty; more change nothing but the time


@dataclass(frozen=True)
class ProbeResult:
    """Say how well a linear probe tells a label from embeddings of users that it has not seen.

    auc is the mean over folds and seeds, auc_low and auc_high its 95 % interval, ks the mean over seeds of all users'
    held-out scores, n the users whose label is known.

    Example:
        >>> ProbeResult(auc=0.8123, auc_low=0.79, auc_high=0.83, ks=0.471, n=800, positives=210)
        Probe(auc=.812, ks=.47, n=800)
    """

    auc: float
    auc_low: float
    auc_high: float
    ks: float
    n: int
    positives: int

    def __repr__(self) -> str:
        return f"Probe(auc={self.auc:.3f}, ks={self.ks:.2f}, n={self.n})".replace("=0.", "=.")


def linear_probe(embeddings: Any, labels: Any, seed: int = 0, folds: int = 5, seeds: int = 5) -> ProbeResult:
    """Measure what a logistic regression reads of a label from frozen embeddings.

    embeddings (user, dim); labels (user,) 0, 1 or NaN (unknown: left out), in the same order. Standardise, fit on all folds
    but one, score that one; stratified, `seeds` times over. ValueError: lengths differ, a label is neither 0 nor 1, a value
    is not finite, a class has fewer users than folds.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(200, 8))
        >>> linear_probe(known, known[:, 0] > 0).auc > 0.98
        True
    """
    return summarize_cv(*cross_val_scores(embeddings, labels, seed, folds, seeds), labels)


def cross_val_scores(
    embeddings: Any, labels: Any, seed: int = 0, folds: int = 5, seeds: int = 5, fit: Callable | None = None
) -> tuple[Float[np.ndarray, "seed user"], Int[np.ndarray, "seed user"]]:
    """Score every user by a probe that was not fitted on it, once a seed; also give the fold (NaN and -1 where unknown).

    fit: (x, y, new x, seed) -> scores of the new users; default the linear probe.
    """
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    x, y, known = _check_probe_input(embeddings, labels, folds)
    scores, fold = np.full((seeds, len(embeddings)), np.nan), np.full((seeds, len(embeddings)), -1)
    with threadpool_limits(1):  # in fits so small, threads only wait for each other
        for row in range(seeds):
            splits = StratifiedKFold(folds, shuffle=True, random_state=seed + row).split(x, y)
            for number, (train, test) in enumerate(splits):
                scores[row, known[test]] = (fit or fit_linear_probe)(x[train], y[train], x[test], seed + row)
                fold[row, known[test]] = number
    return scores, fold


def summarize_cv(scores: Float[np.ndarray, "seed user"], fold: Int[np.ndarray, "seed user"], labels: Any) -> ProbeResult:
    """Sum up held-out scores in one `ProbeResult`, whatever model gave them.

    The interval is corrected for folds sharing their training users (Nadeau and Bengio 2003).
    """
    from scipy.stats import t

    y, known, folds = _to_floats(labels), fold[0] >= 0, int(fold.max()) + 1
    aucs = np.array([roc_auc(s[f == k], y[f == k]) for s, f in zip(scores, fold, strict=True) for k in range(folds)])
    spread = aucs.std(ddof=1) * np.sqrt(1 / len(aucs) + 1 / (folds - 1))  # test users / training users = 1 / (folds - 1)
    mean, reach = float(aucs.mean()), float(t.ppf(0.975, len(aucs) - 1) * spread)
    # KS of one small fold is far too high by chance: take it over all held-out users of a seed
    gap = float(np.mean([ks_statistic(s[known], y[known]) for s in scores]))
    return ProbeResult(mean, max(0.0, mean - reach), min(1.0, mean + reach), gap, int(known.sum()), int(y[known].sum()))


def fit_linear_probe(
    x: Float[np.ndarray, "user dim"], y: Int[np.ndarray, " user"], new: Float[np.ndarray, "new dim"], seed: int
):
    """Fit the linear probe, its penalty chosen by three inner folds of the same users, and score `new`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x, new = scaler.transform(x), scaler.transform(new)

    def scored(strength: float, rows, others) -> np.ndarray:
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x[rows], y[rows]).decision_function(others)

    inner = min(3, y.sum(), (1 - y).sum())
    if inner < 2:  # nobody to hold out
        return scored(STRENGTHS[1], slice(None), new)
    some = np.random.default_rng(seed).permutation(len(y))[:MAX_TUNING_USERS]
    splits = [(some[a], some[b]) for a, b in StratifiedKFold(inner).split(some, y[some])]
    best = max(STRENGTHS, key=lambda c: np.mean([roc_auc(scored(c, a, x[b]), y[b]) for a, b in splits]))
    return scored(best, slice(None), new)


def _check_probe_input(embeddings: Any, labels: Any, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.asarray(embeddings), _to_floats(labels)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(f"embeddings {x.shape}, labels {y.shape}: give (user, dim) and (user,) of the same users")
    known = np.flatnonzero(~np.isnan(y))
    x = x[known].astype(float)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"embeddings[{known[row]}, {column}] is {x[row, column]}: fill it or give that user's label as NaN")
    return x, _check_binary(y[known], folds), known
