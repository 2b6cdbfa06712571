"""Pack frames for the browser: names once, numbers as buffers, everything in the order of the users."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

NAMED = 5  # gained and lost neighbours shown of a user
RECENT = 600  # characters of recent events sent for each user
TOLD = 10_000  # users whose events all go to the browser at once; of more, those are sent that it asks for
DESCRIBED = ("user", "events", "first", "last", "recent")


@dataclass(frozen=True)
class Asked:
    """One query that was asked, and what came of it."""

    query: str
    points: pd.DataFrame
    shift: pd.DataFrame | None
    sentence: str
    caption: str
    picture: dict


def described(frame: pd.DataFrame) -> tuple[dict, tuple[str, ...], list[tuple[str, str, str]]]:
    """Pack who the users are for the browser; give that, their ids, and of each the first day, the last, and recent events."""
    if "user" not in frame:
        raise ValueError(f"the frame has no column 'user' (it has {', '.join(map(str, frame))}): pass users.frame()")
    ids = tuple(frame["user"].astype(str))
    if len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids):,} rows but {len(set(ids)):,} users: give one row a user, as users.frame() does")
    counts = [c for c in frame if c not in DESCRIBED and pd.api.types.is_numeric_dtype(frame[c]) and frame[c].any()]
    numbers = frame[counts].fillna(0).to_numpy(dtype=np.float32)
    blank = pd.Series("", index=frame.index)
    dates = [pd.to_datetime(frame[c]).dt.strftime("%Y-%m-%d").fillna("") if c in frame else blank for c in ("first", "last")]
    recent = frame["recent"].fillna("").astype(str).str.slice(0, RECENT) if "recent" in frame else blank
    events = frame["events"] if "events" in frame else frame[counts].sum(axis=1)
    texts = list(zip(*(part.tolist() for part in (*dates, recent)), strict=True))
    packed = {
        "ids": list(ids),
        "texts": texts if len(ids) <= TOLD else [],
        "events": np.asarray(events.fillna(0), dtype=np.float32).tobytes(),
        "columns": [str(c) for c in counts],
        "counts": numbers.tobytes(),
    }
    return packed, ids, texts


def asked(ids: Sequence[str], query: str, update: dict, unit: str = "user") -> Asked:
    """Read one update of the asker into what the view keeps and what the browser draws."""
    points, shift = update["points"], update.get("shift")
    names = list(dict.fromkeys(points["query"]))
    last = query if query in names else names[-1]
    first = next((name for name in names if name != last), last)
    rows = {name: points[points["query"] == name].drop_duplicates("user", keep="last") for name in (first, last)}
    rows = {name: part.set_index("user").reindex(list(ids)) for name, part in rows.items()}
    sentence, caption = str(update.get("sentence") or ""), str(update.get("caption") or "")
    if first == last:  # the opening map, or a query against itself: nobody can have moved
        shift = None
    if not query:
        sentence = f"{len(ids):,} {unit}s before any query. Ask something to see who moves."
    picture = {
        "from": str(first),
        "to": query,
        "before": _floats(rows[first][["x", "y"]]),
        "after": _floats(rows[last][["x", "y"]]),
        "trust": _floats(rows[last]["trust"].fillna(1) if "trust" in points else pd.Series(1.0, index=list(ids))),
        "sentence": sentence,
        "caption": caption,
        "warning": str(update.get("warning") or ""),
        "shifted": shift is not None,
        **_shift(ids, shift),
    }
    return Asked(query, points, shift, sentence, caption, picture)


def leaning(ids: Sequence[str], frame: pd.DataFrame) -> dict:
    """Pack how near each user is to a yes, in the order of `ids`, with words: as what it was asked, and who is `nearest`."""
    score = pd.to_numeric(frame.set_index("user")["score"]).reindex(list(ids))
    about, first = [str(name).replace("_", " ") for name in frame.attrs.get("topics", ())], score.dropna().nlargest(3).index
    if not len(first) or not score.std() > 0:
        return {"words": "This question has no yes: nobody is nearer to it than the others."}
    read, nearest = f"Read as a question of {', '.join(about[:3])}." if about else "", f"Nearest to yes: {', '.join(first)}."
    return {"score": _floats(score), "read": read, "nearest": nearest, "words": f"{read} {nearest}".strip()}


def _shift(ids: Sequence[str], shift: pd.DataFrame | None) -> dict:
    """Pack the shift frame as buffers, in the order of `ids`; users it does not hold stand still."""
    columns = ["residual", "noise_floor", "beyond_noise", "neighbours_kept", "gained", "lost"]
    table = pd.DataFrame(columns=columns, index=list(ids))
    if shift is not None:
        table = shift.set_index("user").reindex(index=list(ids), columns=columns)
    row = {user: i for i, user in enumerate(ids)}
    floor = pd.to_numeric(table["noise_floor"]).max()
    return {
        "floor": 0.0 if pd.isna(floor) else float(floor),
        "residual": _floats(pd.to_numeric(table["residual"]).fillna(0)),
        "beyond": np.array([b is True or b == 1 for b in table["beyond_noise"]], dtype=np.uint8).tobytes(),
        "kept": _floats(pd.to_numeric(table["neighbours_kept"])),
        "gained": _named(table["gained"], row),
        "lost": _named(table["lost"], row),
    }


def _named(texts: Iterable, row: dict[str, int]) -> bytes:
    """Turn 'u1, u2' into row numbers, `NAMED` a user, -1 where there are fewer."""
    out = np.full((len(row), NAMED), -1, dtype=np.int32)
    for i, text in enumerate(texts):
        known = [row[name] for name in (text.split(", ") if isinstance(text, str) else ()) if name in row][:NAMED]
        out[i, : len(known)] = known
    return out.tobytes()


def _floats(values) -> bytes:
    return np.ascontiguousarray(values.to_numpy(dtype=np.float32)).tobytes()
