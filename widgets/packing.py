"""Packing of tables for the browser: names once, numbers as buffers, in the order of the users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

MAX_NEIGHBORS = 5  # gained and lost neighbors sent for each user
MAX_RECENT_LENGTH = 600  # characters of recent events sent for each user
MAX_TIMELINE_EVENTS = 10_000  # events of one user that are sent, the newest
MAX_EVENT_LENGTH = 300  # characters of an event of the timeline
MAX_USERS_SENT_WITH_EVENTS = 10_000  # above, events are sent for the users the browser asks for
USER_COLUMNS = ("user", "events", "first", "last", "recent")
RANKING_TEXTS = ("interpretation", "order")  # of an update, passed on to the browser
SHIFT_COLUMNS = ["residual", "noise_floor", "beyond_noise", "neighbours_kept", "gained", "lost"]


def int_bytes(values) -> bytes:
    """Return whole numbers as the bytes of int32 numbers."""
    return np.asarray(values).astype(np.int32).tobytes()


def float_bytes(values) -> bytes:
    """Return a Series or DataFrame as the bytes of float32 numbers, row by row."""
    return np.ascontiguousarray(values.to_numpy(dtype=np.float32)).tobytes()


def json_value(value):
    """Return a value that JSON holds: plain numbers, None for missing ones, text for all else."""
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return float(value) if np.isfinite(value) else None
    return str(value)


def json_row(row: Mapping) -> dict:
    """Return one row of a frame with each value as JSON holds it."""
    return {str(name): json_value(value) for name, value in row.items()}


def pack_users(frame: pd.DataFrame) -> tuple[dict, tuple[str, ...], list[list]]:
    """Pack who the users are.

    Args:
        frame: One row per user, as `users.frame()` returns it: `user` and, if known, `events`,
            numbers of events by modality, `first`, `last` and `recent` (a list of texts).

    Returns:
        What the browser reads; the ids; and for each user the first day, the last day and the
        recent events.

    Raises:
        ValueError: If `user` is missing or not unique.
    """
    if "user" not in frame:
        columns = ", ".join(map(str, frame))
        raise ValueError(f"the frame has no column 'user' (it has {columns}): pass users.frame()")
    ids = tuple(frame["user"].astype(str))
    if len(set(ids)) != len(ids):
        repeated = len(ids) - len(set(ids))
        twice = f"the column 'user' repeats {repeated:,} of {len(ids):,} ids"
        raise ValueError(f"{twice}: give one row a user, as users.frame() does")
    events = frame["events"] if "events" in frame else frame[count_columns(frame)].sum(axis=1)
    texts = user_texts(frame)
    firsts = (first for first, _, _ in texts)
    lasts = (last for _, last, _ in texts)
    packed = {
        "ids": list(ids),
        "texts": texts if len(ids) <= MAX_USERS_SENT_WITH_EVENTS else [],
        "events": float_bytes(events.fillna(0)),
        "span": [min(filter(None, firsts), default=""), max(lasts, default="")],
    }
    return packed, ids, texts


def count_columns(frame: pd.DataFrame) -> list:
    """Name the columns that hold numbers of events by modality and have any."""
    columns = []
    for name in frame:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        if name not in USER_COLUMNS and numeric and frame[name].any():
            columns.append(name)
    return columns


def user_texts(frame: pd.DataFrame) -> list[list]:
    """Return the first day, the last day and the recent events of each user."""
    first = days(frame, "first")
    last = days(frame, "last")
    recent = [()] * len(frame)
    if "recent" in frame:
        recent = frame["recent"]
    texts = [limit_length(text_list(value), MAX_RECENT_LENGTH) for value in recent]
    return [list(row) for row in zip(first, last, texts, strict=True)]


def days(frame: pd.DataFrame, column: str) -> list[str]:
    """Write a column of times as days, empty where there is none."""
    if column not in frame:
        return [""] * len(frame)
    return pd.to_datetime(frame[column]).dt.strftime("%Y-%m-%d").fillna("").tolist()


def text_list(value) -> list[str]:
    """Return a cell that holds a list of texts, one text or nothing as a list of texts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple | np.ndarray):
        return [str(text) for text in value]
    return []


def limit_length(texts: Iterable[str], max_length: int) -> list[str]:
    """Keep the first texts whose characters together are at most `max_length`; cut the last one.

    Example:
        >>> limit_length(["abc", "defg", "h"], 5)
        ['abc', 'de']
    """
    limited = []
    left = max_length
    for text in texts:
        if left <= 0:
            break
        limited.append(text[:left])
        left -= len(text)
    return limited


def pack_timeline(frame: pd.DataFrame) -> dict:
    """Pack the events of one user.

    Args:
        frame: One row per event, oldest first: `time, modality, text` and `evidence` (a bool).

    Returns:
        `total`, all events and all evidence; and of the newest 10,000: `time` (minutes since 1970),
        `modality` and `text` (places in `modalities` and `texts`) and `evidence`.
    """
    newest = frame.tail(MAX_TIMELINE_EVENTS)
    minutes = pd.to_datetime(newest["time"]).astype("datetime64[s]").astype(np.int64) // 60
    modality, modalities = pd.factorize(newest["modality"].astype(str), sort=True)
    text, texts = pd.factorize(newest["text"].astype(str).str.slice(0, MAX_EVENT_LENGTH))
    return {
        "total": [len(frame), int(frame["evidence"].sum())],
        "time": int_bytes(minutes),
        "modality": int_bytes(modality),
        "modalities": list(modalities),
        "text": int_bytes(text),
        "texts": list(texts),
        "evidence": newest["evidence"].to_numpy(np.uint8).tobytes(),
    }


def pack_shift(
    ids: Sequence[str], shift: pd.DataFrame | None, row_of_backend: np.ndarray | None = None
) -> dict:
    """Pack how far each user moved; users who are not in the frame stand still.

    Args:
        ids: The users, in the order of the view.
        shift: One row per user: `user, residual, noise_floor, beyond_noise, neighbours_kept` and
            `gained`, `lost`: tuples of row numbers into the back end's users.
        row_of_backend: The view's row of each of the back end's users, -1 for a user the view does
            not have (default: both have the same users in the same order).

    Returns:
        What the browser reads; `gained` and `lost` hold five rows per user, -1 for none.
    """
    table = pd.DataFrame(columns=SHIFT_COLUMNS, index=list(ids))
    if shift is not None:
        table = shift.set_index("user").reindex(index=list(ids), columns=SHIFT_COLUMNS)
    if row_of_backend is None:
        row_of_backend = np.arange(len(ids))
    floor = pd.to_numeric(table["noise_floor"]).max()
    beyond = [bool(value == 1) for value in table["beyond_noise"]]  # NaN is not beyond
    return {
        "floor": 0.0 if pd.isna(floor) else float(floor),
        "residual": float_bytes(pd.to_numeric(table["residual"]).fillna(0)),
        "beyond": np.array(beyond, dtype=np.uint8).tobytes(),
        "neighbors_kept": float_bytes(pd.to_numeric(table["neighbours_kept"])),
        "gained": pack_neighbors(table["gained"], row_of_backend),
        "lost": pack_neighbors(table["lost"], row_of_backend),
    }


def pack_neighbors(neighbors: Iterable, row_of_backend: np.ndarray) -> bytes:
    """Pack tuples of row numbers, `MAX_NEIGHBORS` a user; numbers of no user are left out."""
    neighbors = list(neighbors)
    packed = np.full((len(neighbors), MAX_NEIGHBORS), -1, dtype=np.int32)
    for place, numbers in enumerate(neighbors):
        if not isinstance(numbers, list | tuple | np.ndarray):
            continue  # nothing is known of this user
        known = [row_of_backend[number] for number in numbers if 0 <= number < len(row_of_backend)]
        rows = [row for row in known if row >= 0][:MAX_NEIGHBORS]
        packed[place, : len(rows)] = rows
    return packed.tobytes()


def pack_ranking(ids: Sequence[str], data: Mapping) -> dict:
    """Pack the scores of the users, and what is said of the ranking.

    Args:
        ids: The users, in the order of the view.
        data: Of an update: `ranking`, a frame `user, score`, the higher the nearer to a yes, and
            the sentences `interpretation` and `order`.

    Returns:
        `interpretation`, `order`, and `score` unless all scores are equal or unknown.
    """
    packed = {name: str(data.get(name) or "") for name in RANKING_TEXTS}
    score = pd.to_numeric(data["ranking"].set_index("user")["score"]).reindex(list(ids))
    if score.nunique() > 1:
        packed["score"] = float_bytes(score)
    return packed
