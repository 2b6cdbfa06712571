"""The attention view: where the model looks, beside what deleting each modality does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from threading import Event
from typing import Any

import pandas as pd
from traitlets import Dict

from qanchor.widgets.base import (
    Selection,
    View,
    closing,
    count_noun,
    read_static,
    unit_words,
    until_cancelled,
)
from qanchor.widgets.packing import float_bytes
from qanchor.widgets.static_html import BLUE, GRAY, ORANGE, VERMILION, static_page, svg_image

TITLE = "Attention by modality"
MAX_EVENTS = 40  # events of one user that can be edited, the newest
MAX_IDS_SENT = 5_000  # ids offered while one is typed
MAX_TEXT_LENGTH = 2_000  # characters of an event's text
MAX_NAME_LENGTH = 18  # characters of a modality in the picture

TABLE_COLUMNS = ["query", "modality", "weight"]
EVENT_COLUMNS = ["event", "time", "modality", "text"]
ROW_COLUMNS = [
    "weight",
    "per_token",
    "disagrees",
    "disagrees_per_token",
    "tokens",
    "deletion_effect",
]
QUERY_COLUMNS = ["agreement", "agreement_per_token"]  # one number per query
EDIT_NAMES = ("moved", "before", "after")
Work = tuple[Iterator, str]  # updates of the back end, and the one user, if they are about one


class AttentionView(View):
    """See the attention on each modality beside what deleting the modality does to the answer.

    Args:
        backend: Called as `backend(query, versus, users)`; yields updates with `done`, `total`,
            `message`, `caption` and a dict `data`. `data["table"]` is a frame `query,
            modality, kind, tokens, weight, per_token, deletion_effect, disagrees, agreement,
            disagrees_per_token, agreement_per_token`. Closing the iterator cancels the work.
            It has `ids`, `queries` (suggestions), `unit` and `units`, `events`, called as
            `events(user)`, which returns a frame `event, time, modality, text`, and `rerun`, called
            as `rerun(query, user, drop, reword)`, which yields such updates; `data` of the last one
            has `moved`, `before` and `after`, too.
        users: A frame with a column `user` (default: the users `backend.ids`).
        selection: The selection of another view; its users can be looked at.

    Example:
        >>> backend = lambda query, versus, users: iter([])
        >>> backend.ids = ["a", "b"]
        >>> backend.queries = []
        >>> AttentionView(backend)
        AttentionView(2 users, not asked yet)
    """

    _esm = read_static("geometry.mjs", "dom.mjs", "kernel.mjs", "events.mjs", "attention.mjs")
    _css = read_static("lens.css", "attention.css")
    _about = Dict().tag(sync=True)  # title, queries, users, ids, units: never changes
    _picture = Dict().tag(sync=True)  # the table that is shown
    _status = Dict().tag(sync=True)  # busy, done, total, message, note, error
    _events = Dict().tag(sync=True)  # user, rows, total

    def __init__(
        self,
        backend: Callable[..., Iterator],
        users: pd.DataFrame | None = None,
        *,
        selection: Selection | None = None,
    ):
        self._backend = backend
        self.selection = selection
        ids = backend.ids if users is None else users["user"]
        self._ids = list(map(str, ids))
        self._table = pd.DataFrame(columns=TABLE_COLUMNS)
        self._kept: dict = {}  # what the browser draws of the table
        self._unit, self._units = unit_words(backend)
        about = {
            "title": TITLE,
            "queries": list(backend.queries),
            "users": len(self._ids),
            "ids": self._ids if len(self._ids) <= MAX_IDS_SENT else [],
            "unit": self._unit,
            "units": self._units,
            "has_selection": selection is not None,
        }
        super().__init__(getattr(selection, "turn", None), _about=about)

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
            drop: Numbers of events to leave out (default: none).
            reword: Other texts by number of the event (default: none).

        Returns:
            The sentence below the table.
        """
        return self._run_now(partial(self._begin_rerun, query, user, drop, reword))

    @property
    def table(self) -> pd.DataFrame:
        """What is shown: one row per query and modality."""
        return self._table.copy()

    @property
    def sentence(self) -> str:
        """What was seen, in words."""
        return self._kept.get("sentence", "")

    @property
    def edited(self) -> dict:
        """What the last edit of events did: `moved`, `before`, `after`; empty if there was none."""
        return dict(self._kept.get("edited", {}))

    def _summary(self) -> str:
        if not self._kept:
            users = count_noun(len(self._ids), self._unit, self._units)
            return f"AttentionView({users}, not asked yet)"
        names = ", versus=".join(map(repr, table_queries(self._table)))
        rows = self._table["modality"].nunique()
        return f"AttentionView(query={names}, {rows} rows)"

    def _html(self) -> str:
        if not self._kept:
            return static_page(TITLE, [f"{self!r}: run the cell to open it."])
        queries = table_queries(self._table)
        lines = [f"Query: {queries[0]}"]
        if len(queries) == 2:
            lines = [f"A: {queries[0]}", f"B: {queries[1]}"]
        lines += [self.sentence, self._kept["caption"]]
        return static_page(TITLE, lines, bar_chart(self._table), table_rows(self._table))

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; long work goes to a worker, so the kernel can hear Cancel."""
        kind = message.get("type")
        if kind == "look":
            begin = partial(self._begin_from_form, message)
            self._worker.start(partial(self._run, begin))
        elif kind == "rerun":
            reword = {int(event): text for event, text in message["reword"].items()}
            edits = (message["query"], message["user"], message["drop"], reword)
            begin = partial(self._begin_rerun, *edits)
            self._worker.start(partial(self._run, begin))
        elif kind == "cancel":
            self._worker.cancel()
            self._add_to_status(message="Cancelling")

    def _begin_from_form(self, message: dict) -> Work:
        """Read the browser's form, in the worker, so that errors in it appear in the view."""
        scope = message.get("scope", "all")
        users = None
        if scope == "one":
            users = [message["user"].strip()]
            if not users[0]:
                raise ValueError("no user is named: type an id, or look at all users")
        elif scope == "selection":
            users = list(self.selection.ids)
            if not users:
                hint = "draw around some on the map, or look at all"
                raise ValueError(f"no {self._units} selected: {hint}")
        return self._begin_look(message["query"], message.get("versus", ""), users)

    # The work itself

    def _begin_look(self, query: str, versus: str, users: Sequence[str] | None) -> Work:
        user = users[0] if users is not None and len(users) == 1 else ""
        return self._backend(query.strip(), versus.strip() or None, users), user

    def _begin_rerun(
        self, query: str, user: str, drop: Sequence[int], reword: Mapping[int, str] | None
    ) -> Work:
        return self._backend.rerun(query.strip(), user, drop, reword), user

    def _run_now(self, begin: Callable[[], Work]) -> str:
        self._worker.run(partial(self._run, begin, raise_errors=True))
        return self.sentence

    def _run(self, begin: Callable, stop: Event, raise_errors: bool = False) -> None:
        """Look, show what comes and keep the last table; if it fails, the last good one returns."""
        self._set_status(busy=True, done=0, total=0, message="Starting")
        with self._showing_failure("It could not be looked at", raise_errors):
            updates, user = begin()
            self._table, self._kept = self._follow(updates, user, stop)
            self._set_status()

    def _follow(self, updates: Iterator, user: str, stop: Event) -> tuple[pd.DataFrame, dict]:
        """Show each table as it comes; return the last one, and what the browser draws of it."""
        table = None
        with closing(updates):
            if user:
                self._show_events(user)
            for update in until_cancelled(updates, stop):
                message = update.message
                self._set_status(busy=True, done=update.done, total=update.total, message=message)
                if update.data["table"] is not None:
                    table = update.data["table"]
                    picture = pack_update(update, user)
                    self._draw(picture)
        if table is None:
            raise ValueError("the model gave no table")
        return table, picture

    def _show_events(self, user: str) -> None:
        """Send the events of one user that can be edited, the newest first."""
        if self._events.get("user") == user:
            return
        frame = self._backend.events(user)
        newest = frame.head(MAX_EVENTS)[EVENT_COLUMNS]
        newest["time"] = newest["time"].dt.strftime("%Y-%m-%d %H:%M")
        newest["text"] = newest["text"].str.slice(0, MAX_TEXT_LENGTH)
        rows = newest.to_numpy(object).tolist()
        self._events = {"user": user, "rows": rows, "total": len(frame)}

    def _show(self, **status) -> None:
        """Send the kept table, as another may be on the screen, and the status."""
        with self._guard, self.hold_sync():
            self._draw(self._kept)
            self._set_status(**status)

    def _show_end(self, how: str) -> None:
        suffix = " The table is as it was." if self._kept else ""
        self._show(note=f"{how}.{suffix}")

    def _draw(self, picture: dict) -> None:
        with self._guard:
            self._picture = {**picture, "turn": self._picture.get("turn", 0) + 1}


def table_queries(table: pd.DataFrame) -> list[str]:
    """Return the queries of a table in their order."""
    return table["query"].unique().tolist()


def pack_update(update: Any, user: str) -> dict:
    """Pack an attention table and what is said of it: names once, numbers as buffers.

    Args:
        update: Of the back end.
        user: The one user it is about, empty if it is about several.

    Returns:
        `names`, `kinds`, `sentence`, `caption`, `user`, `edited` and, per query, `sides`: buffers
        in the order of the names, NaN where nothing is known.
    """
    table = update.data["table"]
    first = table.drop_duplicates("modality")
    names = first["modality"].tolist()
    return {
        "names": names,
        "kinds": first["kind"].tolist(),
        "sides": [pack_query(table, query, names) for query in table_queries(table)],
        "sentence": update.message,
        "caption": update.caption,
        "user": user,
        "edited": {name: update.data[name] for name in EDIT_NAMES if name in update.data},
    }


def pack_query(table: pd.DataFrame, query: str, names: Sequence[str]) -> dict:
    """Pack the rows of one query."""
    rows = table[table["query"] == query]
    rows = rows.set_index("modality").reindex(names)
    packed: dict = {"query": query}
    for name in ROW_COLUMNS:
        packed[name] = float_bytes(rows[name].astype(float))
    for name in QUERY_COLUMNS:
        packed[name] = float_bytes(rows[name].dropna()[:1])
    return packed


def sorted_rows(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """Return the rows of one query: modalities first, by falling weight."""
    rows = table[table["query"] == query]
    rows = rows.assign(is_other=rows["kind"] != "modality")
    return rows.sort_values(["is_other", "weight"], ascending=[True, False], ignore_index=True)


def table_rows(table: pd.DataFrame) -> list[list[str]]:
    """Write a table in rows of words: one query with its measures, or two with their difference."""
    sides = [sorted_rows(table, query) for query in table_queries(table)]
    if len(sides) == 2:
        return difference_rows(*sides)
    rows = [["modality", "attention", "per token", "deletion effect", "ranks disagree"]]
    for row in sides[0].itertuples():
        attention = [format_share(row.weight), format_share(row.per_token)]
        disagrees = "yes" if row.disagrees else ""
        rows.append([row.modality, *attention, format_effect(row.deletion_effect), disagrees])
    return rows


def difference_rows(first: pd.DataFrame, second: pd.DataFrame) -> list[list[str]]:
    """Write the rows of two queries and their difference in words."""
    rows = [["modality", "attention A", "B", "A minus B", "deletion A", "B", "A minus B"]]
    both = first.merge(second, on="modality", how="left", suffixes=("", "_b"))
    for row in both.itertuples():
        cells = [row.modality]
        for a, b, write in (
            (row.weight, row.weight_b, format_share),
            (row.deletion_effect, row.deletion_effect_b, format_effect),
        ):
            cells += [write(a), write(b), write(a - b, "+")]
        rows.append(cells)
    return rows


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
    if pd.isna(value):
        return ""
    return f"{value:{sign}.3f}".replace("-", "−")


def bar_chart(table: pd.DataFrame) -> str:
    """Draw attention and deletion effect of the first query's modalities side by side.

    Args:
        table: From an update of the back end.

    Returns:
        HTML of an image, empty if there is no modality.
    """
    rows = sorted_rows(table, table["query"].iloc[0])
    rows = rows[rows["kind"] == "modality"]
    if rows.empty:
        return ""
    parts = bar_column(rows["weight"], "attention", 150, BLUE, format_share)
    parts += bar_column(rows["deletion_effect"], "deletion effect", 400, ORANGE, format_effect)
    if rows["disagrees"].any():
        parts.append(f'<text x="636" y="18" text-anchor="end" fill="{GRAY}">ranks apart</text>')
    for row in rows.itertuples():
        y = 30 + 24 * row.Index
        label = escape(row.modality[:MAX_NAME_LENGTH])
        parts.append(f'<text x="8" y="{y + 10}">{label}</text>')
        if row.disagrees:
            parts.append(f'<path d="M628 {y}l6 6-6 6-6-6z" fill="{VERMILION}"/>')
    height = 40 + 24 * len(rows)
    return svg_image("".join(parts), "Attention and deletion effect by modality", 640, height)


def bar_column(
    values: pd.Series, title: str, left: int, color: str, write: Callable[[float], str]
) -> list[str]:
    """Draw one column of bars with their numbers, as SVG elements."""
    parts = [f'<text x="{left}" y="18" fill="{GRAY}">{title}</text>']
    known = values.fillna(0)
    largest = known.max() or 1
    widths = 150 * known / largest
    y = 30
    for value, width in zip(values, widths, strict=True):
        size = f'width="{width:.1f}" height="12"'
        end = left + width + 6
        parts.append(f'<rect x="{left}" y="{y}" {size} fill="{color}"/>')
        parts.append(f'<text x="{end:.1f}" y="{y + 10}">{write(value)}</text>')
        y += 24
    return parts
