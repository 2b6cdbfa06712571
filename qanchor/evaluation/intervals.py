"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qanchor.evaluation.metrics import _check_binary, _to_floats, roc_auc


def bootstrap_interval(measure: Callable, labels: Any, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Give the 95 % interval (low, high) of `measure(rows)` when the users' rows are drawn anew within each class.

    Example:
        >>> scores, labels = np.tile([0.1, 0.4, 0.35, 0.8], 20), np.tile([0, 0, 1, 1], 20)
        >>> low, high = bootstrap_interval(lambda rows: roc_auc(scores[rows], labels[rows]), labels)
        >>> 0.6 < low < 0.75 < high < 0.9
        True
    """
    rng, y = np.random.default_rng(seed), _check_binary(_to_floats(labels), 1)
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
    a, b, y = np.atleast_2d(scores_a).astype(float), np.atleast_2d(scores_b).astype(float), _to_floats(labels)
    if not a.shape[1] == b.shape[1] == len(y):
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} scores, {len(y)} labels: give one of each a user")
    known = ~np.isnan(np.vstack([a, b, y])).any(axis=0)
    a, b, y = a[:, known], b[:, known], y[known]

    def gap(rows) -> float:
        return float(np.mean([roc_auc(s[rows], y[rows]) for s in a]) - np.mean([roc_auc(s[rows], y[rows]) for s in b]))

    return gap(slice(None)), *bootstrap_interval(gap, y, draws, seed)
