"""AUC and KS of scores against binary labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qanchor.utils.types import UserFloats, UserInts


def roc_auc(scores: Any, labels: Any) -> float:
    """Compute the area under the ROC curve: the share of pairs ordered correctly, ties half.

    Args:
        scores: One score per user.
        labels: 0 or 1 for each user.

    Returns:
        0 to 1; a random ranking has 0.5.

    Raises:
        ValueError: If lengths differ, a score is NaN, or a class is missing.

    Example:
        >>> roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    scores, labels = _check_scores(scores, labels)
    ranks = pd.Series(scores).rank().to_numpy()  # ties share their mean rank
    return float(auc_of_ranks(ranks[labels == 1].sum(), labels.sum(), len(labels)))


def auc_of_ranks(rank_sum: Any, positives: Any, n: int) -> Any:
    """Compute AUCs from rank sums (Mann-Whitney U), of one ranking or of many.

    Args:
        rank_sum: Sum of the ranks of the positives; the lowest score has rank 1.
        positives: Number of positives.
        n: Number of users.

    Returns:
        The AUC, of the shape of `rank_sum`.

    Example:
        >>> auc_of_ranks(np.array([7.0, 3.0]), 2, 4)
        array([1., 0.])
    """
    pairs_won = rank_sum - positives * (positives + 1) / 2
    return pairs_won / (positives * (n - positives))


def ks_statistic(scores: Any, labels: Any) -> float:
    """Compute the largest gap between the score distributions of positives and negatives.

    Args:
        scores: One score per user.
        labels: 0 or 1 for each user.

    Returns:
        0 to 1.

    Raises:
        ValueError: If lengths differ, a score is NaN, or a class is missing.

    Example:
        >>> ks_statistic([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.5
    """
    scores, labels = _check_scores(scores, labels)
    shares = []
    for label in (0, 1):
        of_class = np.sort(scores[labels == label])
        shares.append(np.searchsorted(of_class, scores, "right") / len(of_class))
    return float(np.abs(shares[0] - shares[1]).max())


def to_floats(labels: Any) -> UserFloats:
    """Return labels as floats, NaN for unknown.

    Args:
        labels: One label per user: a bool, a number or a number as text.

    Raises:
        ValueError: If a label is not a number.
    """
    return pd.to_numeric(pd.Series(np.asarray(labels))).to_numpy(float)


def _check_scores(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=float)
    labels = to_floats(labels)
    n_missing = np.isnan(scores).sum()
    if scores.shape != labels.shape or n_missing:
        raise ValueError(
            f"Found {len(scores)} scores ({n_missing} NaN), {len(labels)} labels."
            " Pass one score and one label per user."
        )
    return scores, check_binary(labels, 1)


def check_binary(labels: UserFloats, folds: int) -> UserInts:
    """Return labels as integers.

    Args:
        labels: Known labels, from `to_floats`.
        folds: Smallest number of users in each class.

    Raises:
        ValueError: If a label is neither 0 nor 1, or a class has fewer users.
    """
    others = np.setdiff1d(labels, (0.0, 1.0))
    if len(others):
        raise ValueError(
            f"The label {others[0]} is neither 0 nor 1 (nor NaN for unknown). "
            "Convert the column to 0 and 1."
        )
    positives = int(labels.sum())
    negatives = len(labels) - positives
    smaller = min(positives, negatives)
    if smaller < folds:
        hint = "Choose another label or more users."
        if smaller > 1:
            hint = f"Pass folds={smaller} or fewer."
        raise ValueError(
            f"Found {positives} positives and {negatives} negatives; {folds} of each are required."
            f" {hint}"
        )
    return labels.astype(int)
