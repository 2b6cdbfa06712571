"""Features of users as plain arrays: events, modality means and coarse numbers (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECENT_DAYS = 30
SHORT_DAYS = 10
MAX_AGE_DAYS = 400.0  # stands for "never" where an age in days is missing
ACTIVITY_WINDOWS = [(0, 7), (7, 14), (14, 30), (30, 60), (60, 90), (90, 180), (180, 400)]  # days
DAY_PARTS = [0, 6, 10, 14, 18, 22, 24]  # hours


@dataclass
class UserFeatures:
    """Hold the features of each sample (user, cut-off), not yet padded.

    Made by `UserPreprocessor.transform`; `collate_users` turns rows into a padded batch.
    """

    users: tuple[str, ...]
    coarse: np.ndarray  # (user, number)
    modal_text: np.ndarray  # (user, modality, text)
    modal_number: np.ndarray  # (user, modality, modal_number)
    present: np.ndarray  # (user, modality)
    events: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    # per user: text index, numbers, modality index, whether it is one recent event
    vectors: np.ndarray  # (text, text_dim)

    def __len__(self) -> int:
        return len(self.users)

    def lengths(self) -> np.ndarray:
        """Return the number of event tokens of each user."""
        return np.array([len(text_ids) for text_ids, *_ in self.events])


def signed_log(values: np.ndarray) -> np.ndarray:
    """Compute sign(x) * log(1 + |x|), since a few users spend a hundred times the median.

    Args:
        values: Amounts of either sign.
    """
    return np.sign(values) * np.log1p(np.abs(values))


def user_summary(
    age: np.ndarray,
    time: np.ndarray,
    key: np.ndarray,
    number: np.ndarray,
    vectors: np.ndarray,
    modalities: int,
    recent: int,
    appendable: bool = False,
) -> dict:
    """Compute the raw features of one user's events before the cut-off.

    Args:
        age: Days before the cut-off, (event,); events are sorted by time.
        time: Timestamps, (event,).
        key: modality * number of texts + text, (event,).
        number: Number columns, (event, number).
        vectors: Text vectors, (text, dim).
        modalities: Number of modalities.
        recent: Most recent events to keep.
        appendable: Describe recent events by the gap to the event before instead of the age, and
            let their window move in steps of `recent / 2`. One day later most of them then have
            the very same numbers. Default: False.

    Returns:
        Arrays by name: modal_text, modal, time, words, present, habits (key, numbers of each
        distinct text) and events (key, numbers of each recent event).
    """
    n_texts = len(vectors)
    day = time.astype("datetime64[D]")
    hour = (time - day) / np.timedelta64(1, "h")
    weekend = ((day.astype(int) + 3) % 7 >= 5).astype(float)
    angle = hour * np.pi / 12
    clock = np.column_stack([weekend, np.sin(angle), np.cos(angle)])

    keys, inverse = np.unique(key, return_inverse=True)
    frequent = _group_summary(inverse, len(keys), age, clock, number)
    modality = key // n_texts
    text_modality = keys // n_texts

    weight = np.log1p(np.bincount(inverse, minlength=len(keys)))
    spread = np.zeros((modalities, len(keys)), np.float32)
    spread[text_modality, np.arange(len(keys))] = weight
    modal_text = spread @ vectors[keys % n_texts].astype(np.float32)
    total = np.bincount(text_modality, weight, modalities)
    words = modal_text.sum(0) / max(total.sum(), 1)
    modal_text /= np.maximum(total, 1e-6)[:, None]
    whole = _group_summary(modality, modalities, age, clock, number)
    trend = _recent_numbers(modality, modalities, age, number, text_modality)
    rhythm = _rhythm(age, hour, weekend, number)

    start = max(len(key) - recent, 0)
    if appendable:
        start -= start % max(recent // 2, 1)
        age = np.append(MAX_AGE_DAYS, age[:-1] - age[1:])[: len(age)]
    tail = slice(start, len(key)) if recent else slice(0, 0)
    n_tail = len(key[tail])
    events = _group_summary(np.arange(n_tail), n_tail, age[tail], clock[tail], number[tail])
    return {
        "modal_text": modal_text,
        "modal": np.column_stack([whole, trend]).astype(np.float32),
        "time": rhythm,
        "words": words.astype(np.float32),
        "present": total > 0,
        "habits": (keys, frequent),
        "events": (key[tail], events),
    }


def sums_by_group(groups: np.ndarray, n: int, values: np.ndarray) -> np.ndarray:
    """Return the sums of the rows of `values` by group, (n, column).

    Args:
        groups: Group of each row.
        n: Number of groups.
        values: Numbers, (row, column).
    """
    if not values.shape[1]:
        return np.zeros((n, 0))
    return np.stack([np.bincount(groups, values[:, j], n) for j in range(values.shape[1])], 1)


def _group_summary(
    groups: np.ndarray, n: int, age: np.ndarray, clock: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """Describe each group of events: counts, recency, span, time of day, totals and means."""
    count = np.bincount(groups, minlength=n).astype(float)
    recent_count = np.bincount(groups, age <= RECENT_DAYS, n)
    # events are sorted oldest first: the newest of a group is assigned last, reversed the oldest
    newest = np.full(n, MAX_AGE_DAYS)
    oldest = np.full(n, MAX_AGE_DAYS)
    newest[groups] = age
    oldest[groups[::-1]] = age[::-1]
    span = np.log1p(np.maximum(oldest - newest, 0)) * (count > 0)
    events = np.maximum(count, 1)[:, None]
    total = sums_by_group(groups, n, number)
    columns = [np.log1p(count), np.log1p(recent_count), np.log1p(newest), span]
    mean_clock = sums_by_group(groups, n, clock) / events
    mean = total / events
    columns += [mean_clock, signed_log(total), signed_log(mean)]
    return np.column_stack(columns).astype(np.float32)


def _recent_numbers(modality, n: int, age, number, text_modality) -> np.ndarray:
    """Compare recent with earlier events of each modality, (n, column).

    Columns: trend of the last 30 days, count of the last 10, distinct texts, sums of the last 30
    days; and of each number the share of events that have it, and its mean weighted by the first
    number (for example the share of spending at a discount).
    """
    count, month, days10 = (
        np.bincount(modality, age <= limit, n) for limit in (1e9, RECENT_DAYS, SHORT_DAYS)
    )
    is_recent = age <= RECENT_DAYS
    recent_sums = sums_by_group(modality[is_recent], n, number[is_recent])
    months = max(float(age.max(initial=0)) / RECENT_DAYS, 1.0)
    trend = np.log1p(month) - np.log1p(count / months)
    share = sums_by_group(modality, n, number > 0) / np.maximum(count, 1)[:, None]
    weight = np.abs(number[:, :1])
    weighted = sums_by_group(modality, n, number[:, 1:] * weight)
    weighted = weighted / np.maximum(sums_by_group(modality, n, weight), 1e-6)
    texts = np.bincount(text_modality, minlength=n)
    columns = [trend, np.log1p(days10), np.log1p(texts), signed_log(recent_sums), share]
    return np.column_stack([*columns, signed_log(weighted)])


def _rhythm(age, hour, weekend, number) -> np.ndarray:
    """Describe when a user is active: days, gaps, parts of the day, activity of recent months."""
    days = np.unique(np.floor(age))
    gaps = np.diff(days) if len(days) > 1 else np.array([90.0])
    day_parts = np.histogram(hour, bins=DAY_PARTS)[0] / max(len(hour), 1)
    active = [np.sum((days >= low) & (days < high)) for low, high in ACTIVITY_WINDOWS]
    spent = [
        np.abs(number[(age >= low) & (age < high)]).sum() if number.size else 0.0
        for low, high in ACTIVITY_WINDOWS
    ]
    since = days[0] if len(days) else MAX_AGE_DAYS
    gap_columns = [
        np.log1p(len(days)),
        np.log1p(since),
        np.log1p(gaps.mean()),
        np.log1p(gaps.std()),
        np.log1p(gaps.max()),
        since / (gaps.mean() + 1),
    ]
    weekend_share = weekend.mean() if len(weekend) else 0.0
    columns = [*gap_columns, weekend_share, *day_parts, *np.log1p(active), *np.log1p(spent)]
    return np.array(columns, np.float32)
