"""Users to readings: the `UserPreprocessor` turns each user's events into slots, modality means and coarse numbers (numpy alone)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class UserFeatures:
    """Hold what was read of each (user, cut-off): small arrays, still unpadded."""

    users: tuple[str, ...]
    coarse: np.ndarray  # (user, number)
    modal_text: np.ndarray  # (user, modality, text)
    modal_number: np.ndarray  # (user, modality, modal_number)
    present: np.ndarray  # (user, modality)
    slots: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]  # text id, numbers, modality, recent
    texts: list[str]
    vectors: np.ndarray  # (text, text_dim)

    def __len__(self) -> int:
        return len(self.users)

    def lengths(self) -> np.ndarray:
        """Count each user's event slots."""
        return np.array([len(s[0]) for s in self.slots])


def signed_log(values: np.ndarray) -> np.ndarray:
    """Shrink amounts of either sign: a few users spend a hundred times the median."""
    return np.sign(values) * np.log1p(np.abs(values))


def _sums(groups: np.ndarray, n: int, values: np.ndarray) -> np.ndarray:
    """Sum the rows of `values` by group: (n, column)."""
    if not values.shape[1]:
        return np.zeros((n, 0))
    return np.stack([np.bincount(groups, values[:, j], n) for j in range(values.shape[1])], 1)


def _summary(groups: np.ndarray, n: int, age: np.ndarray, clock: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Describe each group of events in numbers: how many, how many lately, how long ago, when in the day, how much."""
    count = np.bincount(groups, minlength=n).astype(float)
    lately = np.bincount(groups, age <= 30, n)
    last, span = np.full(n, 400.0), np.full(n, 400.0)
    last[groups] = age  # events stand oldest first: the newest of a group is assigned last, the oldest (reversed) too
    span[groups[::-1]] = age[::-1]
    clock = _sums(groups, n, clock) / np.maximum(count, 1)[:, None]
    total = _sums(groups, n, number)
    columns = [np.log1p(count), np.log1p(lately), np.log1p(last), np.log1p(np.maximum(span - last, 0)) * (count > 0)]
    mean = _sums(groups, n, number) / np.maximum(count, 1)[:, None]
    return np.column_stack([*columns, clock, signed_log(total), signed_log(mean)]).astype(np.float32)


def user_summary(age, time, key, number, vectors, modalities: int, recent: int, appendable: bool = False) -> dict:
    """Read one user's events before the cut-off (already sorted by time).

    appendable   the newest events are told by the gap before each instead of its age, and from a place on that moves in steps
                 of half of `recent`: so a day later most of them are told by the very same numbers.
    """
    size = len(vectors)
    hour = (time - time.astype("datetime64[D]")) / np.timedelta64(1, "h")
    weekend = ((time.astype("datetime64[D]").astype(int) + 3) % 7 >= 5).astype(float)
    angle = hour * np.pi / 12
    clock = np.column_stack([weekend, np.sin(angle), np.cos(angle)])
    keys, inverse = np.unique(key, return_inverse=True)
    habits = _summary(inverse, len(keys), age, clock, number)
    modality = key // size
    weight = np.log1p(np.bincount(inverse, minlength=len(keys)))
    spread = np.zeros((modalities, len(keys)), np.float32)
    spread[keys // size, np.arange(len(keys))] = weight
    modal_text = spread @ vectors[keys % size].astype(np.float32)
    total = np.bincount(keys // size, weight, modalities)
    words = modal_text.sum(0) / max(total.sum(), 1)
    modal_text /= np.maximum(total, 1e-6)[:, None]
    modal = np.column_stack(
        [_summary(modality, modalities, age, clock, number), _recent_numbers(modality, modalities, age, number, keys // size)]
    ).astype(np.float32)
    rhythm = _rhythm(age, hour, weekend, number)
    start = max(len(key) - recent, 0)
    if appendable:
        start -= start % max(recent // 2, 1)
        age = np.append(400.0, age[:-1] - age[1:])[: len(age)]
    tail = slice(start, len(key)) if recent else slice(0, 0)
    single = np.arange(len(key))[tail]
    events = _summary(np.arange(len(single)), len(single), age[tail], clock[tail], number[tail])
    return {
        "modal_text": modal_text,
        "modal": modal,
        "time": rhythm,
        "words": words.astype(np.float32),
        "present": total > 0,
        "habits": (keys, habits),
        "events": (key[tail], events),
    }


def _recent_numbers(modality, n: int, age, number, texts) -> np.ndarray:
    """Compare lately with before, by modality: last 30 days, last 10, distinct texts, the trend; and shares.

    Of each number: in which share of the events it stands, and its mean weighed by the first number (of what is paid for,
    which share is on discount).
    """
    count, month, days10 = (np.bincount(modality, age <= limit, n) for limit in (1e9, 30, 10))
    lately = _sums(modality[age <= 30], n, number[age <= 30])
    span = max(float(age.max(initial=0)) / 30, 1.0)
    trend = np.log1p(month) - np.log1p(count / span)
    often = _sums(modality, n, number > 0) / np.maximum(count, 1)[:, None]
    weight = np.abs(number[:, :1])
    weighed = _sums(modality, n, number[:, 1:] * weight) / np.maximum(_sums(modality, n, weight), 1e-6)
    texts = np.bincount(texts, minlength=n)
    return np.column_stack([trend, np.log1p(days10), np.log1p(texts), signed_log(lately), often, signed_log(weighed)])


def _rhythm(age, hour, weekend, number) -> np.ndarray:
    """Describe when a user is active: days, gaps between them, parts of the day, and the amounts of the last months."""
    days = np.unique(np.floor(age))
    gaps = np.diff(days) if len(days) > 1 else np.array([90.0])
    parts = np.histogram(hour, bins=[0, 6, 10, 14, 18, 22, 24])[0] / max(len(hour), 1)
    windows = [(0, 7), (7, 14), (14, 30), (30, 60), (60, 90), (90, 180), (180, 400)]
    active = [np.sum((days >= a) & (days < b)) for a, b in windows]
    spent = [np.abs(number[(age >= a) & (age < b)]).sum() if number.size else 0.0 for a, b in windows]
    since = days[0] if len(days) else 400.0
    head = [
        np.log1p(len(days)),
        np.log1p(since),
        np.log1p(gaps.mean()),
        np.log1p(gaps.std()),
        np.log1p(gaps.max()),
        since / (gaps.mean() + 1),
    ]
    return np.array([*head, weekend.mean() if len(weekend) else 0.0, *parts, *np.log1p(active), *np.log1p(spent)], np.float32)
