"""AUC and KS of scores against binary labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int


def roc_auc(scores: Any, labels: Any) -> float:
    """Give the chance that a positive user scores above a negative one (a tie counts half).

    Example:
        >>> roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    scores, labels = _check_scores(scores, labels)
    ranks = pd.Series(scores).rank().to_numpy()  # ties share their mean rank
    positives = int(labels.sum())
    above = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(labels) - positives)))


def ks_statistic(scores: Any, labels: Any) -> float:
    """Give the greatest gap between the score distributions of positive and negative users, from 0 to 1.

    Example:
        >>> ks_statistic([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.5
    """
    scores, labels = _check_scores(scores, labels)
    order = np.argsort(scores, kind="stable")
    last = np.append(np.diff(scores[order]) > 0, True)  # users with equal scores are passed together
    passed = [np.cumsum(side[order])[last] / side.sum() for side in (labels, 1 - labels)]
    return float(np.abs(passed[0] - passed[1]).max())


def _to_floats(labels: Any) -> np.ndarray:
    return pd.to_numeric(pd.Series(np.asarray(labels)), errors="raise").astype(float).to_numpy()


def _check_scores(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), _to_floats(labels)
    if scores.shape != labels.shape or np.isnan(scores).any():
        raise ValueError(f"{len(scores)} scores ({np.isnan(scores).sum()} NaN), {len(labels)} labels: give one of each a user")
    return scores, _check_binary(labels, 1)


def _check_binary(y: np.ndarray, folds: int) -> Int[np.ndarray, " user"]:
    """Refuse labels other than 0 and 1, or with fewer users of a class than folds."""
    if len(odd := np.setdiff1d(y, (0.0, 1.0))):
        raise ValueError(f"label {odd[0]} is neither 0 nor 1 (nor NaN for unknown): turn the column into yes and no")
    few = int(min(y.sum(), (1 - y).sum()))
    if few < folds:
        cure = f"take folds={few} or fewer" if few > 1 else "take another label or more users"
        raise ValueError(f"{int(y.sum())} positives and {int((1 - y).sum())} negatives do not fill {folds} fold(s): {cure}")
    return y.astype(int)
