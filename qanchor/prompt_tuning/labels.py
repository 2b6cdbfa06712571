"""Encode labels as class numbers, and split labelled users for tuning and validation."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from qanchor.inference.prefix_cache import PrefixCache
from qanchor.utils.text import count
from qanchor.utils.types import UserInts

MIN_CLASS_SIZE = 3  # users per class: two for tuning, one for validation


def known_labels(cache: PrefixCache, labels: pd.Series) -> pd.Series:
    """Return the labels that are not NaN, sorted by user id.

    Args:
        cache: Users from `Engine.prefill`.
        labels: Series indexed by user id; NaN means unknown.

    Raises:
        KeyError: If a labelled user is not in the cache.
        ValueError: If a user has two labels.
    """
    known = labels.dropna()
    known.index = known.index.astype(str)
    strangers = sorted(set(known.index) - set(cache.ids))
    if strangers:
        raise KeyError(
            f"Labelled user {strangers[0]!r} is not among the {len(cache):,} that were read. "
            "Prefill it first."
        )
    if known.index.has_duplicates:
        repeated = known.index[known.index.duplicated()][0]
        raise ValueError(f"User {repeated!r} has more than one label. Keep one.")
    return known.sort_index()


def encode_labels(cache: PrefixCache, labels: pd.Series) -> tuple[UserInts, tuple]:
    """Map labels to class numbers.

    Args:
        cache: Users from `Engine.prefill`.
        labels: Series indexed by user id, with at least two distinct values; NaN means unknown.

    Returns:
        The class number of each user in the cache (-1 for unknown), and the sorted classes.

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
            f"least {MIN_CLASS_SIZE} are required (2 for tuning, 1 for validation). "
            "Label more users, or leave the class out."
        )
    numbers = pd.Series(number, known.index).reindex(list(cache.ids), fill_value=-1)
    return numbers.to_numpy(int), tuple(classes.tolist())


def stratified_split(
    labels: UserInts, valid: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " tuning"], Int[np.ndarray, " validation"]]:
    """Split the labelled users into tuning and validation users, class by class.

    Each class gets at least one validation user and two tuning users.

    Args:
        labels: Class number of each user, -1 for unknown.
        valid: Fraction of each class to use for validation, above 0 and below 1.
        rng: Random generator that draws the users.

    Returns:
        Row numbers of the tuning users, and of the validation users.
    """
    tuning = []
    validation = []
    for label in range(labels.max() + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n_valid = min(max(1, round(valid * len(rows))), len(rows) - 2)
        validation.append(rows[:n_valid])
        tuning.append(rows[n_valid:])
    return np.concatenate(tuning), np.concatenate(validation)
