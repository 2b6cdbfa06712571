"""The attention view: where the model looks, beside what deleting each modality does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from threading import Event, RLock

import numpy as np
import pandas as pd
from traitlets import Dict

from widgets.base import (
    Selection,
    View,
    Worker,
    closing,
    count_noun,
    error_message,
    log,
    read_static,
    unit_words,
)
from widgets.packing import float_bytes
from widgets.static_html import BLUE, GRAY, ORANGE, VERMILION, static_page, svg_image

TITLE = "Attention by modality"
MAX_EVENTS = 40  # events of one user that can be edited, the newest
MAX_IDS_SENT = 5_000  # ids offered while one is typed
MAX_TEXT_LENGTH = 2_000  # characters of an event's text
MAX_NAME_LENGTH = 18  # characters of a modality in the picture

CELL = ["query", "modality"]
NEEDED_COLUMNS = [*CELL, "weight"]
DEFAULTS = {
    "kind": "modality",
    "tokens": np.nan,
    "per_token": np.nan,
    "deletion_effect": np.nan,
    "disagrees": False,
    "disagrees_per_token": False,
    "agreement": np.nan,
    "agreement_per_token": np.nan,
}
ROW_COLUMNS = ["weight", "per_token", "disagrees", "disagrees_per_token", "tokens"]
ROW_COLUMNS += ["deletion_effect"]
QUERY_COLUMNS = ["agreement", "agreement_per_token"]  # one number per query
EDIT_NAMES = ("moved", "before", "after")


@dataclass(frozen=True)
class AttentionResult:
    """One attention table, and what is said about it."""

    table: pd.DataFrame
    sentence: str = ""
    caption: str = ""
    user: str = ""  # the one user it is about, if it is about one
    edited: dict = field(default_factory=dict)  # moved, before, after

    def picture(self) -> dict:
        """Return what the browser draws."""
        return {
            **pack_table(self.table),
            "sentence": self.sentence,
            "caption": self.caption,
            "user": self.user,
            "edited": self.edited,
        }


class AttentionView(View):
    """See the attention on each modality beside what deleting the modality does to the answer.

    Args:
        backend: Called as `backend(query, versus, users)`; yields updates with `done`, `total`,
            `message`, `caption` and a dict `data`. `data["table"]` is a frame `query,
            modality, kind, tokens, weight, per_token, deletion_effect, disagrees, agreement,
            disagrees_per_token, agreement_per_token`. Closing the iterator cancels the work.
            Attributes that are used if there are any: `ids`, `queries` (suggestions), `unit` and
            `units`, `events`, called as `events(user)`, which returns a frame `event, time,
            modality, text`, and `rerun`, called as `rerun(query, user, drop, reword)`, which yields
            such updates; `data` of the last one has `moved`, `before` and `after`, too. Leave it
            out to show a saved table.
        users: A frame with a column `user`, or ids (default: `backend.ids`).
        table: A table to show at once.
        sentence: What is said about it.
        caption: How it was made.
        selection: The selection of another view; its users can be looked at.

    Example:
        >>> rows = [("q", "bill", 0.3), ("q", "search", 0.7)]
        >>> AttentionView(table=pd.DataFrame(rows, columns=NEEDED_COLUMNS))
        AttentionView(query='q', 2 rows)
    """

    _esm = read_static("geometry.mjs", "dom.mjs", "kernel.mjs", "events.mjs", "attention.mjs")
    _css = read_static("lens.css", "attention.css")
    _about = Dict().tag(sync=True)  # title, queries, users, ids, units: never changes
    _picture = Dict().tag(sync=True)  # the table that is shown
    _status = Dict().tag(sync=True)  # busy, done, total, message, note, error
    _events = Dict().tag(sync=True)  # user, rows, total

    def __init__(
        self,
        backend: Callable[..., Iterator] | None = None,
        users: pd.DataFrame | Sequence[str] | None = None,
        *,
        table: pd.DataFrame | None = None,
        sentence: str = "",
        caption: str = "",
        selection: Selection | None = None,
    ):
        if backend is None and table is None:
            hint = "pass a callable, or a table to show"
            raise ValueError(f"neither backend nor table is given, one is needed: {hint}")
        self._backend = backend
        self.selection = selection
        self._ids = user_ids(users, backend)
        self._list_events = getattr(backend, "events", None)
        self._rerun_backend = getattr(backend, "rerun", None)
        self._redraws = False  # the browser may show another table than the kept one
        self._result = None
        if table is not None:
            self._result = AttentionResult(checked_table(table), sentence, caption)
        self._guard = RLock()
        # views of one selection ask one model, which serves one at a time
        self._worker = Worker(getattr(selection, "turn", None))
        unit, units = unit_words(backend)
        about = {
            "title": TITLE,
            "queries": [str(query) for query in getattr(backend, "queries", ())],
            "users": len(self._ids),
            "ids": list(self._ids) if len(self._ids) <= MAX_IDS_SENT else [],
            "unit": unit,
            "units": units,
            "asks": backend is not None,
            "edits": self._list_events is not None and self._rerun_backend is not None,
            "has_selection": selection is not None,
        }
        super().__init__(_about=about, _picture=self._result.picture() if self._result else {})
        self.on_msg(self._on_message)

    def look(self, query: str, versus: str = "", users: Sequence[str] | None = None) -> str:
        """Look at users under a query, wait, and return what was seen.

        Args:
            query: The query.
            versus: A query to compare it with (default: none).
            users: Ids (default: all).

        Returns:
            The sentence below the table.
        """
        return self._run_now(partial(self._begin_look, query, versus, users))

    def rerun(
        self,
        query: str,
        user: str,
        drop: Sequence[int] = (),
        reword: Mapping[int, str] | None = None,
    ) -> str:
        """Drop or reword events of one user, look again, wait, and return what it did.

        Args:
            query: The query.
            user: The user.
            drop: Numbers of events to leave out.
            reword: Other texts by number of the event.

        Returns:
            The sentence below the table.
        """
        return self._run_now(partial(self._begin_rerun, query, str(user), drop, reword or {}))

    @property
    def table(self) -> pd.DataFrame:
        """What is shown: one row per query and modality."""
        return self._result.table.copy() if self._result else pd.DataFrame(columns=CELL)

    @property
    def sentence(self) -> str:
        """What was seen, in words."""
        return self._result.sentence if self._result else ""

    @property
    def edited(self) -> dict:
        """What the last edit of events did: `moved`, `before`, `after`; empty if there was none."""
        return dict(self._result.edited) if self._result else {}

    def _summary(self) -> str:
        if self._result is None:
            users = count_noun(len(self._ids), self._about["unit"], self._about["units"])
            return f"AttentionView({users}, not asked yet)"
        names = ", versus=".join(repr(query) for query in table_queries(self._result.table))
        rows = self._result.table["modality"].nunique()
        return f"AttentionView(query={names}, {rows} rows)"

    def _html(self) -> str:
        if self._result is None:
            return static_page(TITLE, [f"{self!r}: run the cell to open it."])
        result = self._result
        queries = table_queries(result.table)
        asked = [f"Query: {queries[0]}"]
        if len(queries) == 2:
            asked = [f"A: {queries[0]}", f"B: {queries[1]}"]
        lines = [*asked, result.sentence, result.caption]
        return static_page(TITLE, lines, bar_chart(result.table), table_rows(result.table))

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; long work goes to a worker, so the kernel can hear Cancel."""
        kind = message.get("type")
        if kind == "look" and self._backend:
            self._worker.start(partial(self._run, partial(self._begin_from_form, message)))
        elif kind == "rerun" and self._rerun_backend:
            query = str(message.get("query", ""))
            user = str(message.get("user", ""))
            drop = [int(event) for event in message.get("drop", ())]
            reword = {int(event): str(text) for event, text in message.get("reword", {}).items()}
            begin = partial(self._begin_rerun, query, user, drop, reword)
            self._worker.start(partial(self._run, begin))
        elif kind == "cancel":
            self._worker.cancel()
            if self._status.get("busy"):
                self._set_status(at_once=True, **self._status | {"message": "Cancelling"})

    # Each of these begins the work: it returns the updates and the one user, if it is about one.

    def _begin_from_form(self, message: dict) -> tuple[Iterator, str]:
        """Read the browser's form, in the worker, so that errors in it appear in the view."""
        scope = message.get("scope", "all")
        users = None
        if scope == "one":
            users = [str(message.get("user", "")).strip()]
            if not users[0]:
                raise ValueError("no user is named: type an id, or look at all users")
        elif scope == "selection":
            users = list(self.selection.ids) if self.selection is not None else []
            if not users:
                hint = "draw around some on the map, or look at all"
                raise ValueError(f"no {self._about['units']} selected: {hint}")
        query = str(message.get("query", ""))
        return self._begin_look(query, str(message.get("versus", "")), users)

    def _begin_look(
        self, query: str, versus: str, users: Sequence[str] | None
    ) -> tuple[Iterator, str]:
        if self._backend is None:
            made = "this view was made from a table, pass a backend to look again"
            raise ValueError(f"there is nothing to ask: {made}")
        if not query.strip():
            example = "write a question, such as 'Will this user travel soon?'"
            raise ValueError(f"the query is empty: {example}")
        user = str(users[0]) if users is not None and len(users) == 1 else ""
        return self._backend(query.strip(), versus.strip() or None, users), user

    def _begin_rerun(
        self, query: str, user: str, drop: Sequence[int], reword: Mapping[int, str]
    ) -> tuple[Iterator, str]:
        if self._rerun_backend is None:
            raise ValueError("events cannot be edited here: pass a backend that has rerun")
        return self._rerun_backend(query.strip(), user, drop, reword), user

    # The work itself

    def _run_now(self, begin: Callable[[], tuple[Iterator, str]]) -> str:
        self._worker.run(partial(self._run, begin, raise_errors=True))
        return self.sentence

    def _run(
        self,
        begin: Callable[[], tuple[Iterator, str]],
        stop: Event,
        raise_errors: bool = False,
    ) -> None:
        """Look, show what comes and keep the last table; if it fails, the last good one returns."""
        self._set_status(busy=True, done=0, total=0, message="Starting")
        suffix = "The table is as it was." if self._result else ""
        try:
            updates, user = begin()
            result = self._follow(updates, user, stop)
            if result is None:
                self._show(note=f"Cancelled. {suffix}".strip())
            else:
                self._result = result
                self._redraws = True
                self._show()
        except Exception as error:
            log.exception("looking failed")
            self._show(error=f"It could not be looked at: {error_message(error)}")
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._show(note=f"Interrupted. {suffix}".strip())
            raise

    def _follow(self, updates: Iterator, user: str, stop: Event) -> AttentionResult | None:
        """Show each table as it comes; return the last one, or None if it was cancelled."""
        result = None
        with closing(updates):
            if user and self._list_events:
                self._show_events(user)
            for update in updates:
                if stop.is_set():
                    return None
                message = str(update.message or "")
                self._set_status(busy=True, done=update.done, total=update.total, message=message)
                table = update.data.get("table")
                if table is None:
                    continue
                edited = {name: update.data[name] for name in EDIT_NAMES if name in update.data}
                caption = str(update.caption or "")
                result = AttentionResult(checked_table(table), message, caption, user, edited)
                self._draw(result)
        if stop.is_set():
            return None
        if result is None:
            raise ValueError("the model gave no table")
        return result

    def _show_events(self, user: str) -> None:
        """Send the events of one user that can be edited, the newest first."""
        if self._events.get("user") == user:
            return
        frame = self._list_events(user)
        newest = frame.head(MAX_EVENTS)
        times = pd.to_datetime(newest["time"]).dt.strftime("%Y-%m-%d %H:%M")
        texts = newest["text"].astype(str).str.slice(0, MAX_TEXT_LENGTH)
        rows = []
        for number, time, modality, text in zip(
            newest["event"], times, newest["modality"], texts, strict=True
        ):
            rows.append([int(number), time, str(modality), text])
        self._events = {"user": user, "rows": rows, "total": len(frame)}

    def _show(self, **status) -> None:
        """Send the kept table, if another may be on the screen, and the status."""
        with self._guard, self.hold_sync():
            if self._redraws:
                self._draw(self._result)
            self._redraws = False
            self._set_status(**status)

    def _draw(self, result: AttentionResult | None) -> None:
        with self._guard:
            picture = result.picture() if result else {}
            self._picture = {**picture, "turn": self._picture.get("turn", 0) + 1}
            self._redraws = True


def user_ids(users, backend) -> tuple[str, ...]:
    """Return the ids of a frame, a list or, if neither is given, a back end."""
    if users is None:
        ids = getattr(backend, "ids", ())
    elif isinstance(users, pd.DataFrame):
        ids = users["user"]
    else:
        ids = users
    return tuple(str(user) for user in ids)


def checked_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return an attention table with all columns, those that were missing empty.

    Args:
        frame: At least `query, modality, weight`, of one or two queries.

    Returns:
        The table.

    Raises:
        ValueError: If columns or rows are missing or rows stand twice.
    """
    missing = [name for name in NEEDED_COLUMNS if name not in frame]
    if missing:
        columns = ", ".join(map(str, frame))
        raise ValueError(
            f"the table has no column {missing[0]!r} (it has {columns}): keep all that ask gives"
        )
    if frame.empty:
        raise ValueError("the table has 0 rows, at least 1 is needed: look at some users first")
    queries = table_queries(frame)
    if len(queries) > 2:
        hint = "select them with frame[frame['query'].isin(...)]"
        raise ValueError(f"the table has {len(queries)} queries, 1 or 2 can be shown: {hint}")
    twice = frame.duplicated(CELL)
    if twice.any():
        rows = f"{twice.sum():,} rows twice ({', '.join(CELL)})"
        raise ValueError(f"the table has {rows}: average over users first")
    blanks = {name: value for name, value in DEFAULTS.items() if name not in frame}
    return frame.assign(**blanks, query=frame["query"].astype(str))


def table_queries(table: pd.DataFrame) -> list[str]:
    """Return the queries of a table in their order."""
    return list(dict.fromkeys(table["query"].astype(str)))


def pack_table(table: pd.DataFrame) -> dict:
    """Pack an attention table: names once, numbers as buffers.

    Args:
        table: As `checked_table` returns it.

    Returns:
        `names`, `kinds` and, per query, `sides`: buffers in the order of the names, NaN where
        nothing is known.
    """
    names = list(dict.fromkeys(table["modality"].astype(str)))
    kinds = table.drop_duplicates("modality").set_index("modality")["kind"]
    return {
        "names": names,
        "kinds": [str(kinds[name]) for name in names],
        "sides": [pack_query(table, query, names) for query in table_queries(table)],
    }


def pack_query(table: pd.DataFrame, query: str, names: Sequence[str]) -> dict:
    """Pack the rows of one query."""
    part = table[table["query"] == query].set_index("modality").reindex(list(names))
    packed: dict = {"query": query}
    for name in ROW_COLUMNS:
        packed[name] = float_bytes(part[name].astype(float))
    for name in QUERY_COLUMNS:
        packed[name] = float_bytes(part[name].astype(float).dropna()[:1])
    return packed


def sorted_rows(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """Return the rows of one query: modalities first, by falling weight."""
    part = table[table["query"] == query]
    part = part.sort_values("weight", ascending=False, kind="stable")
    part = part.assign(is_other=part["kind"] != "modality")
    return part.sort_values("is_other", kind="stable", ignore_index=True)


def table_rows(table: pd.DataFrame) -> list[list[str]]:
    """Write a table in rows of words: one query with its measures, or two with their difference."""
    sides = [sorted_rows(table, query).set_index("modality") for query in table_queries(table)]
    if len(sides) == 2:
        return difference_rows(*sides)
    [rows] = sides
    lines = [["modality", "attention", "per token", "deletion effect", "ranks disagree"]]
    for name, row in rows.iterrows():
        effect = format_effect(row["deletion_effect"])
        line = [name, format_share(row["weight"]), format_share(row["per_token"]), effect]
        lines.append([*line, "yes" if row["disagrees"] == 1 else ""])
    return lines


def difference_rows(first: pd.DataFrame, second: pd.DataFrame) -> list[list[str]]:
    """Write the rows of two queries and their difference in words."""
    second = second.reindex(first.index)
    lines = [["modality", "attention A", "B", "A minus B", "deletion A", "B", "A minus B"]]
    for name, a in first.iterrows():
        b = second.loc[name]
        line = [name]
        for column, write in (("weight", format_share), ("deletion_effect", format_effect)):
            line += [write(a[column]), write(b[column]), write(a[column] - b[column], "+")]
        lines.append(line)
    return lines


def format_share(share: float, sign: str = "") -> str:
    """Write a share in percent; `sign` "+" writes the sign of positive ones, too.

    Example:
        >>> format_share(0.213), format_share(-0.004, "+")
        ('21.3 %', '−0.40 %')
    """
    if pd.isna(share):
        return ""
    digits = 1 if abs(share) >= 0.01 else 2
    return f"{100 * share:{sign}.{digits}f} %".replace("-", "−")


def format_effect(value: float, sign: str = "") -> str:
    """Write an effect with three digits behind the point."""
    return "" if pd.isna(value) else f"{value:{sign}.3f}".replace("-", "−")


def bar_chart(table: pd.DataFrame) -> str:
    """Draw attention and deletion effect of the first query's modalities side by side.

    Args:
        table: As `checked_table` returns it.

    Returns:
        HTML of an image, empty if there is no modality.
    """
    rows = sorted_rows(table, table["query"].iloc[0])
    rows = rows[rows["kind"] == "modality"]
    if rows.empty:
        return ""
    parts = bar_column(rows["weight"], "attention", 150, BLUE, format_share)
    parts += bar_column(rows["deletion_effect"], "deletion effect", 400, ORANGE, format_effect)
    disagrees = (rows["disagrees"] == 1).tolist()
    if any(disagrees):
        parts.append(f'<text x="636" y="18" text-anchor="end" fill="{GRAY}">ranks apart</text>')
    for place, name in enumerate(rows["modality"]):
        y = 30 + 24 * place
        label = escape(str(name)[:MAX_NAME_LENGTH])
        parts.append(f'<text x="8" y="{y + 10}">{label}</text>')
        if disagrees[place]:
            parts.append(f'<path d="M628 {y}l6 6-6 6-6-6z" fill="{VERMILION}"/>')
    height = 40 + 24 * len(rows)
    return svg_image("".join(parts), "Attention and deletion effect by modality", 640, height)


def bar_column(
    values: pd.Series, title: str, left: int, color: str, write: Callable[[float], str]
) -> list[str]:
    """Draw one column of bars with their numbers, as SVG elements."""
    parts = [f'<text x="{left}" y="18" fill="{GRAY}">{title}</text>']
    largest = values.fillna(0).max() or 1
    for place, value in enumerate(values):
        y = 30 + 24 * place
        width = 0 if pd.isna(value) else 150 * value / largest
        bar = f'width="{width:.1f}" height="12" fill="{color}"'
        parts.append(f'<rect x="{left}" y="{y}" {bar}/>')
        parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 10}">{write(value)}</text>')
    return parts
