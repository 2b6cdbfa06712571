"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qanchor.evaluation.metrics import _check_binary, _to_floats, roc_auc

INTERVAL_QUANTILES = (0.025, 0.975)  # of a 95 % interval


def bootstrap_interval(
    measure: Callable, labels: Any, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of a measure, resampling users within each class.

    Args:
        measure: Maps row numbers of users to a value.
        labels: 0 or 1 for each user.
        draws: Bootstrap samples. Default: 1000.
        seed: Seed. Default: 0.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: If a label is neither 0 nor 1, or a class is missing.

    Example:
        >>> scores, labels = np.tile([0.1, 0.4, 0.35, 0.8], 20), np.tile([0, 0, 1, 1], 20)
        >>> low, high = bootstrap_interval(lambda rows: roc_auc(scores[rows], labels[rows]), labels)
        >>> 0.6 < low < 0.75 < high < 0.9
        True
    """
    rng = np.random.default_rng(seed)
    y = _check_binary(_to_floats(labels), 1)
    classes = (np.flatnonzero(y == 1), np.flatnonzero(y == 0))
    values = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(users, len(users)) for users in classes])
        values.append(measure(rows))
    low, high = (float(np.quantile(values, q)) for q in INTERVAL_QUANTILES)
    return low, high


def paired_bootstrap(
    scores_a: Any, scores_b: Any, labels: Any, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Compute AUC(A) - AUC(B) with its 95 % interval; each draw takes the same users for both.

    Args:
        scores_a: Scores, (user,), or (seed, user) whose AUCs are averaged.
        scores_b: Scores of the other method.
        labels: 0, 1 or NaN for each user. NaN in a label or score leaves the user out.
        draws: Bootstrap samples. Default: 1000.
        seed: Seed. Default: 0.

    Returns:
        Difference, lower and upper end.

    Raises:
        ValueError: If lengths differ, a label is neither 0 nor 1, or a class is missing.

    Example:
        >>> paired_bootstrap([0.1, 0.9] * 50, [0.9, 0.1] * 50, [0, 1] * 50)
        (1.0, 1.0, 1.0)
    """
    a = np.atleast_2d(scores_a).astype(float)
    b = np.atleast_2d(scores_b).astype(float)
    y = _to_floats(labels)
    if not a.shape[1] == b.shape[1] == len(y):
        raise ValueError(
            f"{a.shape[1]} and {b.shape[1]} scores, {len(y)} labels: give one of each a user"
        )
    known = ~np.isnan(np.vstack([a, b, y])).any(axis=0)
    a, b, y = a[:, known], b[:, known], y[known]

    def difference(rows) -> float:
        mean_a = np.mean([roc_auc(scores[rows], y[rows]) for scores in a])
        mean_b = np.mean([roc_auc(scores[rows], y[rows]) for scores in b])
        return float(mean_a - mean_b)

    return difference(slice(None)), *bootstrap_interval(difference, y, draws, seed)
