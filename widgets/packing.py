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
SHIFT_NUMBERS = ["residual", "toward_yes", "elsewhere", "stands_out", "neighbours_kept"]
SHIFT_COLUMNS = ["user", *SHIFT_NUMBERS, "gained", "lost"]


def int_bytes(values) -> bytes:
    """Return whole numbers as the bytes of int32 numbers."""
    numbers = np.asarray(values, dtype=np.int32)
    return numbers.tobytes()


def float_bytes(values) -> bytes:
    """Return a Series or DataFrame as the bytes of float32 numbers, row by row."""
    numbers = values.to_numpy(dtype=np.float32)
    return numbers.tobytes()


def json_rows(frame: pd.DataFrame) -> list[dict]:
    """Return the rows of a frame as JSON holds them: None for what is missing or infinite."""
    finite = frame.replace([np.inf, -np.inf], np.nan)
    cells = finite.astype(object)
    known = cells.where(cells.notna(), None)
    return known.to_dict("records")


def pack_users(frame: pd.DataFrame) -> tuple[dict, tuple[str, ...], list[list]]:
    """Pack who the users are.

    Args:
        frame: One row per user, as `users.frame()` returns it: `user` and, if known, `events`,
            `first`, `last` and `recent` (a list of texts).

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
    n_users = len(ids)
    repeated = n_users - len(set(ids))
    if repeated:
        twice = f"the column 'user' repeats {repeated:,} of {n_users:,} ids"
        raise ValueError(f"{twice}: give one row a user, as users.frame() does")
    table = frame.reindex(columns=USER_COLUMNS)
    first = days(table["first"])
    last = days(table["last"])
    recent = []
    for value in table["recent"]:
        events = text_list(value)
        recent.append(limit_length(events, MAX_RECENT_LENGTH))
    texts = []
    for row in zip(first, last, recent, strict=True):
        texts.append(list(row))
    n_events = table["events"].fillna(0)
    first_day = min(filter(None, first), default="")
    last_day = max(last, default="")
    packed = {
        "ids": list(ids),
        "texts": [],
        "events": float_bytes(n_events),
        "span": [first_day, last_day],
    }
    if n_users <= MAX_USERS_SENT_WITH_EVENTS:
        packed["texts"] = texts
    return packed, ids, texts


def days(times: pd.Series) -> list[str]:
    """Write times as days, empty where there is none."""
    written = pd.to_datetime(times).dt.strftime("%Y-%m-%d")
    return written.fillna("").tolist()


def text_list(value) -> list[str]:
    """Return a cell that holds texts, or nothing, as a list of texts."""
    if not pd.api.types.is_list_like(value):
        return []
    return list(map(str, value))


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
        frame: One row per event, oldest first: `time, modality, text`, `evidence` (a bool) and, if
            known, `weight`.

    Returns:
        `total`, all events and all evidence; and of the newest 10,000: `time` (minutes since 1970),
        `modality` and `text` (places in `modalities` and `texts`), `evidence` and `weight` (0 where
        it is unknown).
    """
    newest = frame.tail(MAX_TIMELINE_EVENTS)
    times = newest["time"].astype("datetime64[s]")
    minutes = times.astype(np.int64) // 60
    modality, modalities = pd.factorize(newest["modality"].astype(str), sort=True)
    long_texts = newest["text"].astype(str)
    text, texts = pd.factorize(long_texts.str.slice(0, MAX_EVENT_LENGTH))
    evidence = newest["evidence"].to_numpy(np.uint8)
    weight = newest.reindex(columns=["weight"]).fillna(0)
    n_evidence = int(frame["evidence"].sum())
    return {
        "total": [len(frame), n_evidence],
        "time": int_bytes(minutes),
        "modality": int_bytes(modality),
        "modalities": list(modalities),
        "text": int_bytes(text),
        "texts": list(texts),
        "evidence": evidence.tobytes(),
        "weight": float_bytes(weight),
    }


def pack_shift(ids: Sequence[str], shift: pd.DataFrame | None, row_of_backend: np.ndarray) -> dict:
    """Pack how far each user moved; users who are not in the frame stand still.

    Args:
        ids: The users, in the order of the view.
        shift: One row per user: `user`, the columns `SHIFT_NUMBERS`, and `gained`, `lost`: tuples
            of row numbers into the back end's users.
        row_of_backend: The view's row of each of the back end's users, -1 for a user the view does
            not have.

    Returns:
        What the browser reads; `gained` and `lost` hold five rows per user, -1 for none.
    """
    if shift is None:
        shift = pd.DataFrame(columns=SHIFT_COLUMNS)
    by_user = shift.set_index("user")
    table = by_user.reindex(index=list(ids), columns=SHIFT_COLUMNS[1:])
    numbers = table[SHIFT_NUMBERS].astype(float)
    was_compared = numbers["toward_yes"].notna().any()  # with other questions
    stands_out = numbers["stands_out"] == 1  # NaN does not
    beyond = stands_out.to_numpy(np.uint8)
    moved = numbers.fillna(0)
    return {
        "residual": float_bytes(moved["residual"]),
        "compared": bool(was_compared),
        "toward": float_bytes(moved["toward_yes"]),
        "elsewhere": float_bytes(moved["elsewhere"]),
        "beyond": beyond.tobytes(),
        "neighbors_kept": float_bytes(numbers["neighbours_kept"]),
        "gained": pack_neighbors(table["gained"], row_of_backend),
        "lost": pack_neighbors(table["lost"], row_of_backend),
    }


def pack_neighbors(neighbors: pd.Series, row_of_backend: np.ndarray) -> bytes:
    """Pack tuples of row numbers, `MAX_NEIGHBORS` a user; users the view has not are left out."""
    shape = (len(neighbors), MAX_NEIGHBORS)
    packed = np.full(shape, -1, np.int32)
    for place, numbers in enumerate(neighbors):
        if isinstance(numbers, tuple):  # else nothing is known of this user
            rows = row_of_backend[list(numbers)]
            in_view = rows[rows >= 0]
            nearest = in_view[:MAX_NEIGHBORS]
            packed[place, : len(nearest)] = nearest
    return packed.tobytes()


def pack_ranking(scores: pd.Series, sentences: Mapping) -> dict:
    """Pack the scores of the users, and what is said of the ranking.

    Args:
        scores: The higher the nearer to a yes, in the order of the users.
        sentences: `interpretation` and `order`, if there are any, and `meant`, records `text,
            users` of the things that the query means.

    Returns:
        `interpretation`, `order`, `meant`, and `score` unless all scores are equal or unknown.
    """
    packed = {}
    for name in RANKING_TEXTS:
        packed[name] = sentences.get(name, "")
    packed["meant"] = list(sentences.get("meant", ()))
    if scores.nunique() > 1:
        packed["score"] = float_bytes(scores)
    return packed
