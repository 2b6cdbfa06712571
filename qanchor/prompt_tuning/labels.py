"""Class numbers of labels, class weights, and the split into tuning and validation users."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from qanchor.inference.prefix_cache import PrefixCache
from qanchor.utils.text import count
from qanchor.utils.types import UserInts

MIN_CLASS_SIZE = 3  # users of a class: two to tune on, one to validate with


def known_labels(cache: PrefixCache, labels: pd.Series) -> pd.Series:
    """Return the labels that are not NaN, in the order of their users' ids.

    Args:
        cache: Users that were read.
        labels: Index user.

    Raises:
        KeyError: If a labelled user is not in the cache.
        ValueError: If a user has two labels.
    """
    known = labels.dropna()
    known.index = known.index.astype(str)
    strangers = sorted(set(known.index) - set(cache.ids))
    if strangers:
        raise KeyError(
            f"labelled user {strangers[0]!r} is not among the {len(cache):,} that were read: "
            "prefill it first"
        )
    if known.index.has_duplicates:
        repeated = known.index[known.index.duplicated()][0]
        raise ValueError(f"user {repeated!r} has 2 labels or more: keep one")
    return known.sort_index()


def encode_labels(cache: PrefixCache, labels: pd.Series) -> tuple[UserInts, tuple]:
    """Map labels to class numbers.

    Args:
        cache: Users that were read.
        labels: Index user, any two or more values; NaN means unknown.

    Returns:
        The class number of each user of the cache, -1 for unknown; and the classes, sorted.

    Raises:
        KeyError: If a labelled user is not in the cache.
        ValueError: If there are fewer than two classes, or a class has fewer than 3 users.
    """
    known = known_labels(cache, labels)
    classes, number, counts = np.unique(known.to_numpy(), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"Found {count(len(classes), 'class')} in {len(known):,} labels; at least 2 are"
            " required. Label users of another class."
        )
    if counts.min() < MIN_CLASS_SIZE:
        smallest = counts.argmin()
        raise ValueError(
            f"Class {classes.tolist()[smallest]!r} has {counts[smallest]} labelled user(s); at "
            f"least {MIN_CLASS_SIZE} are required (2 to tune on, 1 to validate with). "
            "Label more users, or leave the class out."
        )
    numbers = pd.Series(number, known.index).reindex(list(cache.ids)).fillna(-1)
    return numbers.to_numpy(int), tuple(classes.tolist())


def stratified_split(
    labels: UserInts, valid: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " tuning"], Int[np.ndarray, " validation"]]:
    """Split the labelled users into tuning and validation users, class by class.

    At least one user of each class validates and at least two are tuned on.

    Args:
        labels: Class number of each user, -1 for unknown.
        valid: Share of each class that validates, above 0 and below 1.
        rng: Draws the users.

    Returns:
        Rows to tune on, and rows to validate with.
    """
    tuning = []
    validation = []
    for label in range(labels.max() + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n_valid = min(max(1, round(valid * len(rows))), len(rows) - 2)
        validation.append(rows[:n_valid])
        tuning.append(rows[n_valid:])
    return np.concatenate(tuning), np.concatenate(validation)
