"""How much a frozen embedding knows of a label: a linear probe, AUC, KS and honest intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

STRENGTHS = (0.003, 0.03, 0.3)  # inverse penalties tried inside each training fold: 20 raw columns want much, 500 little
TUNED_ON = 20_000  # users that choose the penalty; more change nothing but the time


@dataclass(frozen=True)
class Probe:
    """Say how well a linear probe tells a label from embeddings of users that it has not seen.

    auc is the mean over folds and seeds, auc_low and auc_high its 95 % interval, ks the mean over seeds of all users'
    held-out scores, n the users whose label is known.

    Example:
        >>> Probe(auc=0.8123, auc_low=0.79, auc_high=0.83, ks=0.471, n=800, positives=210)
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


def auc(scores: Any, labels: Any) -> float:
    """Give the chance that a positive user scores above a negative one (a tie counts half).

    Example:
        >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    scores, labels = _scored(scores, labels)
    ranks = pd.Series(scores).rank().to_numpy()  # ties share their mean rank
    positives = int(labels.sum())
    above = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(labels) - positives)))


def ks(scores: Any, labels: Any) -> float:
    """Give the greatest gap between the score distributions of positive and negative users, from 0 to 1.

    Example:
        >>> ks([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.5
    """
    scores, labels = _scored(scores, labels)
    order = np.argsort(scores, kind="stable")
    last = np.append(np.diff(scores[order]) > 0, True)  # users with equal scores are passed together
    passed = [np.cumsum(side[order])[last] / side.sum() for side in (labels, 1 - labels)]
    return float(np.abs(passed[0] - passed[1]).max())


def probe(embeddings: Any, labels: Any, seed: int = 0, folds: int = 5, seeds: int = 5) -> Probe:
    """Measure what a logistic regression reads of a label from frozen embeddings.

    embeddings (user, dim); labels (user,) 0, 1 or NaN (unknown: left out), in the same order. Standardise, fit on all folds
    but one, score that one; stratified, `seeds` times over. ValueError: lengths differ, a label is neither 0 nor 1, a value
    is not finite, a class has fewer users than folds.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(200, 8))
        >>> probe(known, known[:, 0] > 0).auc > 0.98
        True
    """
    return summary(*held_out_scores(embeddings, labels, seed, folds, seeds), labels)


def held_out_scores(
    embeddings: Any, labels: Any, seed: int = 0, folds: int = 5, seeds: int = 5, fit: Callable | None = None
) -> tuple[Float[np.ndarray, "seed user"], Int[np.ndarray, "seed user"]]:
    """Score every user by a probe that was not fitted on it, once a seed; also give the fold (NaN and -1 where unknown).

    fit: (x, y, new x, seed) -> scores of the new users; default the linear probe.
    """
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    x, y, known = _checked(embeddings, labels, folds)
    scores, fold = np.full((seeds, len(embeddings)), np.nan), np.full((seeds, len(embeddings)), -1)
    with threadpool_limits(1):  # in fits so small, threads only wait for each other
        for row in range(seeds):
            splits = StratifiedKFold(folds, shuffle=True, random_state=seed + row).split(x, y)
            for number, (train, test) in enumerate(splits):
                scores[row, known[test]] = (fit or linear)(x[train], y[train], x[test], seed + row)
                fold[row, known[test]] = number
    return scores, fold


def summary(scores: Float[np.ndarray, "seed user"], fold: Int[np.ndarray, "seed user"], labels: Any) -> Probe:
    """Sum up held-out scores in one `Probe`, whatever model gave them.

    The interval is corrected for folds sharing their training users (Nadeau and Bengio 2003).
    """
    from scipy.stats import t

    y, known, folds = _floats(labels), fold[0] >= 0, int(fold.max()) + 1
    aucs = np.array([auc(s[f == k], y[f == k]) for s, f in zip(scores, fold, strict=True) for k in range(folds)])
    spread = aucs.std(ddof=1) * np.sqrt(1 / len(aucs) + 1 / (folds - 1))  # test users / training users = 1 / (folds - 1)
    mean, reach = float(aucs.mean()), float(t.ppf(0.975, len(aucs) - 1) * spread)
    # KS of one small fold is far too high by chance: take it over all held-out users of a seed
    gap = float(np.mean([ks(s[known], y[known]) for s in scores]))
    return Probe(mean, max(0.0, mean - reach), min(1.0, mean + reach), gap, int(known.sum()), int(y[known].sum()))


def bootstrap_interval(measure: Callable, labels: Any, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Give the 95 % interval (low, high) of `measure(rows)` when the users' rows are drawn anew within each class.

    Example:
        >>> scores, labels = np.tile([0.1, 0.4, 0.35, 0.8], 20), np.tile([0, 0, 1, 1], 20)
        >>> low, high = bootstrap_interval(lambda rows: auc(scores[rows], labels[rows]), labels)
        >>> 0.6 < low < 0.75 < high < 0.9
        True
    """
    rng, y = np.random.default_rng(seed), _both(_floats(labels), 1)
    groups = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    values = [measure(np.concatenate([rng.choice(g, len(g)) for g in groups])) for _ in range(draws)]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def paired_bootstrap(scores_a: Any, scores_b: Any, labels: Any, draws: int = 1000, seed: int = 0) -> tuple:
    """Give (AUC of A minus AUC of B, low, high), 95 %, each draw taking the same users for both.

    scores: (user,) or (seed, user), whose AUCs are averaged; NaN in a label or score leaves the user out.

    Example:
        >>> paired_bootstrap([0.1, 0.9] * 50, [0.9, 0.1] * 50, [0, 1] * 50)
        (1.0, 1.0, 1.0)
    """
    a, b, y = np.atleast_2d(scores_a).astype(float), np.atleast_2d(scores_b).astype(float), _floats(labels)
    if not a.shape[1] == b.shape[1] == len(y):
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} scores, {len(y)} labels: give one of each a user")
    known = ~np.isnan(np.vstack([a, b, y])).any(axis=0)
    a, b, y = a[:, known], b[:, known], y[known]

    def gap(rows) -> float:
        return float(np.mean([auc(s[rows], y[rows]) for s in a]) - np.mean([auc(s[rows], y[rows]) for s in b]))

    return gap(slice(None)), *bootstrap_interval(gap, y, draws, seed)


def linear(x: Float[np.ndarray, "user dim"], y: Int[np.ndarray, " user"], new: Float[np.ndarray, "new dim"], seed: int):
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
    some = np.random.default_rng(seed).permutation(len(y))[:TUNED_ON]
    splits = [(some[a], some[b]) for a, b in StratifiedKFold(inner).split(some, y[some])]
    best = max(STRENGTHS, key=lambda c: np.mean([auc(scored(c, a, x[b]), y[b]) for a, b in splits]))
    return scored(best, slice(None), new)


def _floats(labels: Any) -> np.ndarray:
    return pd.to_numeric(pd.Series(np.asarray(labels)), errors="raise").astype(float).to_numpy()


def _scored(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), _floats(labels)
    if scores.shape != labels.shape or np.isnan(scores).any():
        raise ValueError(f"{len(scores)} scores ({np.isnan(scores).sum()} NaN), {len(labels)} labels: give one of each a user")
    return scores, _both(labels, 1)


def _checked(embeddings: Any, labels: Any, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.asarray(embeddings), _floats(labels)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(f"embeddings {x.shape}, labels {y.shape}: give (user, dim) and (user,) of the same users")
    known = np.flatnonzero(~np.isnan(y))
    x = x[known].astype(float)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"embeddings[{known[row]}, {column}] is {x[row, column]}: fill it or give that user's label as NaN")
    return x, _both(y[known], folds), known


def _both(y: np.ndarray, folds: int) -> Int[np.ndarray, " user"]:
    """Refuse labels other than 0 and 1, or with fewer users of a class than folds."""
    if len(odd := np.setdiff1d(y, (0.0, 1.0))):
        raise ValueError(f"label {odd[0]} is neither 0 nor 1 (nor NaN for unknown): turn the column into yes and no")
    few = int(min(y.sum(), (1 - y).sum()))
    if few < folds:
        cure = f"take folds={few} or fewer" if few > 1 else "take another label or more users"
        raise ValueError(f"{int(y.sum())} positives and {int((1 - y).sum())} negatives do not fill {folds} fold(s): {cure}")
    return y.astype(int)
