"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qanchor.evaluation.metrics import _check_binary, _to_floats

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
        >>> from qanchor.evaluation.metrics import roc_auc
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
