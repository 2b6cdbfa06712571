"""Encode labels by class, split them, and weigh classes alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.inference.prefix_cache import PrefixCache

MIN_CLASS_SIZE = 3  # users of a class: two to tune on, one to validate with


def known_labels(cache: PrefixCache, labels: pd.Series) -> pd.Series:
    """Give the labels that are known, in the order of their users' ids; refuse users that were not read, or stand twice."""
    known = labels.dropna()
    known.index = known.index.astype(str)
    if strangers := sorted(set(known.index) - set(cache.ids)):
        raise KeyError(f"labelled user {strangers[0]!r} is not among the {len(cache):,} that were read: prefill it first")
    if known.index.has_duplicates:
        raise ValueError(f"user {known.index[known.index.duplicated()][0]!r} has 2 labels or more: keep one")
    return known.sort_index()


def encode_labels(cache: PrefixCache, labels: pd.Series) -> tuple[Int[np.ndarray, " user"], tuple]:
    """Number the labels: for each user of the cache the place of its class, -1 for those without a label; and the classes."""
    known = known_labels(cache, labels)
    classes, number, counts = np.unique(known.to_numpy(), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"the {len(known):,} labels are of {len(classes)} class(es), at least 2 are needed: label others too")
    if counts.min() < MIN_CLASS_SIZE:
        few, told = counts.argmin(), "two to tune on, one to validate with: label more, or leave the class out"
        raise ValueError(
            f"class {classes.tolist()[few]!r} has {counts[few]} user(s), at least {MIN_CLASS_SIZE} are needed, {told}"
        )
    truth = pd.Series(number, known.index).reindex(list(cache.ids)).fillna(-1).to_numpy(int)
    return truth, tuple(classes.tolist())


def balanced_weights(label: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Say how often each row is drawn so that every class comes alike: shares that sum to 1."""
    return 1 / (len(np.unique(label)) * np.bincount(label)[label])


def stratified_split(
    truth: Int[np.ndarray, " user"], valid: float, rng
) -> tuple[Int[np.ndarray, " tuned"], Int[np.ndarray, " checked"]]:
    """Draw the validation users, a share of every class: (rows tuned on, rows validated with)."""
    if not 0 < valid < 1:
        raise ValueError(f"valid is {valid}: it must be above 0 and below 1, a share of the labelled users")
    tuned, checked = [], []
    for label in range(truth.max() + 1):
        rows = rng.permutation(np.flatnonzero(truth == label))
        some = min(max(1, round(valid * len(rows))), len(rows) - 2)
        checked.append(rows[:some])
        tuned.append(rows[some:])
    return np.concatenate(tuned), np.concatenate(checked)
