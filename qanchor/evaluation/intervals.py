"""Confidence intervals: bootstrap, cross-validation, shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from qanchor.utils.types import UserInts

INTERVAL_QUANTILES = (0.025, 0.975)  # of a 95 % interval
Z = 1.96  # half-width of a 95 % interval in standard deviations


def bootstrap_interval(
    measure: Callable, labels: UserInts, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of a measure, resampling users within each class.

    Args:
        measure: Function that maps row numbers of users to a value.
        labels: 0 or 1 for each user.
        draws: Bootstrap samples. Default: 1000.
        seed: Seed. Default: 0.

    Returns:
        Lower and upper end.

    Example:
        >>> from qanchor.evaluation.metrics import roc_auc
        >>> scores, labels = np.tile([0.1, 0.4, 0.35, 0.8], 20), np.tile([0, 0, 1, 1], 20)
        >>> low, high = bootstrap_interval(lambda rows: roc_auc(scores[rows], labels[rows]), labels)
        >>> 0.6 < low < 0.75 < high < 0.9
        True
    """
    rng = np.random.default_rng(seed)
    classes = (np.flatnonzero(labels == 1), np.flatnonzero(labels == 0))
    values = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(users, len(users)) for users in classes])
        values.append(measure(rows))
    low, high = np.quantile(values, INTERVAL_QUANTILES).tolist()
    return low, high


def cv_half_width(aucs: Float[np.ndarray, "row fold"], folds: int) -> Float[np.ndarray, " row"]:
    """Return half the width of the 95 % interval of means over folds that share training users.

    Args:
        aucs: One value for each fold and repetition.
        folds: Number of folds in one repetition.

    Source: Nadeau and Bengio, Machine Learning 52 (2003).
    """
    from scipy.stats import t

    n_values = aucs.shape[1]
    # test users / training users = 1 / (folds - 1)
    correction = np.sqrt(1 / n_values + 1 / (folds - 1))
    return t.ppf(INTERVAL_QUANTILES[1], n_values - 1) * aucs.std(axis=1, ddof=1) * correction


def auc_columns(aucs: Float[np.ndarray, "row fold"], folds: int) -> dict[str, np.ndarray]:
    """Return the mean AUC of each row and its 95 % interval, as columns of a frame.

    Args:
        aucs: One AUC for each fold and repetition.
        folds: Number of folds in one repetition.

    Returns:
        Arrays by name: `auc`, `auc_low`, `auc_high`.
    """
    mean = aucs.mean(axis=1)
    half_width = cv_half_width(aucs, folds)
    low = np.maximum(0, mean - half_width)
    high = np.minimum(1, mean + half_width)
    return {"auc": mean, "auc_low": low, "auc_high": high}


def wilson_interval(
    count: Int[np.ndarray, " row"], n: Int[np.ndarray, " row"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson interval of shares.

    Args:
        count: Number of successes.
        n: Number of trials.

    Returns:
        (low, high).

    Example:
        >>> bounds = wilson_interval(np.array([0, 5]), np.array([10, 10]))
        >>> [bound.round(3).tolist() for bound in bounds]
        [[0.0, 0.237], [0.278, 0.763]]
    """
    middle = count + Z**2 / 2
    half_width = Z * np.sqrt(count * (n - count) / n + Z**2 / 4)
    low = np.maximum(0, middle - half_width) / (n + Z**2)
    high = (middle + half_width) / (n + Z**2)
    return low, np.minimum(1, high)
