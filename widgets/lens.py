"""The query lens: ask a question about every user and watch who moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Event, RLock
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

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
    unused_path,
)
from widgets.columns import UserColumns, find_ids
from widgets.packing import (
    RANKING_TEXTS,
    float_bytes,
    pack_ranking,
    pack_shift,
    pack_timeline,
    pack_users,
)
from widgets.result_card import ResultCard
from widgets.static_html import map_image, static_page

MAX_ARROWS = 60  # only the strongest movers get an arrow
MAX_LISTED = 100  # rows in the list of users
MAX_HISTORY = 100  # maps that can be walked back to: some 100 MB for 2,000 users
MIN_HISTORY = 5  # for very many users
MAX_HISTORY_POINTS = 1_000_000  # places of users in all maps of the history: some 500 MB
MOST_MOVED_SHARE = 0.8  # above, "moved" tells nobody apart and the ranking is the result
TOP_SHARE = 0.1  # of the ranking, marked on the map of a result card
POINT_COLUMNS = ["user", "query", "x", "y", "trust"]
SHIFT_COLUMNS = ["user", "from_query", "to_query", "residual", "noise_floor", "beyond_noise"]
RANKING_COLUMNS = ["user", "score", "answer"]


@dataclass(frozen=True)
class MapEntry:
    """One query that was asked, the map it gave, and what the browser draws of it."""

    query: str
    previous: str | None
    points: pd.DataFrame
    shift: pd.DataFrame | None
    sentence: str
    caption: str
    picture: dict

    @property
    def moved_share(self) -> float:
        """The share of users beyond the noise floor."""
        return 0.0 if self.shift is None else float(self.shift["beyond_noise"].mean())


@dataclass(frozen=True)
class Ranking:
    """The ranking of the users under one query; `scores` is None if the query cannot rank them."""

    frame: pd.DataFrame
    scores: np.ndarray | None  # in the order of the users, -inf where unknown
    packed: dict


class QueryLens(View):
    """Ask a question about every user; see who moves and who is nearest to a yes.

    Args:
        frame: One row per user: `user` and, if known, `events`, numbers of events by modality,
            `first`, `last` and `recent` (a list of texts). The map can be colored by any other
            column, and users can be found by it.
        backend: Called as `backend(query, previous)`; yields updates with `done`, `total`,
            `message`, `caption`, `warning` and a dict `data`. Closing the iterator cancels the
            work. `data["points"]` and `data["shift"]` are frames once they are known; the last map
            is kept. Without a message of that one, the ranking is what the view says. Updates that
            have `data["ranking"]` follow the last map: it is None while the users are ranked, then
            a frame `user, score, answer`, with two sentences in `data`: `interpretation` (what the
            query was interpreted as) and `order` (who ranks first). Attributes that are used if
            there are any: `answer` (called as `answer(user, query)`, returns text), `backtest`,
            `backtests_unasked`, `columns` (a frame of further columns, index the ids), `find`
            (called as `find(text)`, returns the ids of users who did such a thing), `ids`,
            `provenance`, `queries`, `rank` (there will be a ranking),
            `timeline` (called as `timeline(user, query)`, returns a frame `time, modality, text,
            evidence` of the events of one user, oldest first), `unit` and `units`.
        queries: Suggested queries (default: `backend.queries`).
        query: Asked when the view is first shown (default: a map before any query).
        provenance: Called as `provenance(shift=...)`, returns what a result card says about the run
            and the result (default: `backend.provenance`).

    `backend.backtest(query)` yields updates; `data["backtest"]` of the last one has `right`, `low`,
    `high`, `n`, `cutoff` and a str that says the result. It runs when it is asked for; if
    `backend.backtests_unasked`, also after each question that is asked in the browser.

    Example:
        >>> from types import SimpleNamespace
        >>> points = pd.DataFrame({"user": ["a"], "query": ["q"], "x": [0.0], "y": [0.0]})
        >>> update = SimpleNamespace(done=1, total=1, message="Nobody moved.", caption="")
        >>> update.warning, update.data = "", {"points": points}
        >>> lens = QueryLens(pd.DataFrame({"user": ["a"]}), lambda query, previous: iter([update]))
        >>> lens.ask("q"), lens
        ('Nobody moved.', QueryLens(1 user, query='q'))
    """

    _esm = read_static(
        "geometry.mjs",
        "dom.mjs",
        "kernel.mjs",
        "dots.mjs",
        "gestures.mjs",
        "map.mjs",
        "card.mjs",
        "columns.mjs",
        "histogram.mjs",
        "lens.mjs",
    )
    _css = read_static("lens.css", "card.css")
    _about = Dict().tag(sync=True)  # title, queries, units, limits: never changes
    _users = Dict().tag(sync=True)  # who the users are: never changes
    _picture = Dict().tag(sync=True)  # what is on the map
    _status = Dict().tag(sync=True)  # busy, done, total, query, note, error
    _history = Dict().tag(sync=True)  # queries, at
    _selected = Bytes().tag(sync=True)  # row numbers, int32
    _ranking = Dict().tag(sync=True)  # query, busy, score, interpretation, order
    _backtest = Dict().tag(sync=True)  # query, busy, words
    _answer = Dict().tag(sync=True)  # user, query, busy, text, error
    _timeline = Dict().tag(sync=True)  # user, query, error, events as `pack_timeline` packs them
    _recent = Dict().tag(sync=True)  # rows, texts: the events the browser asked for
    _column = Dict().tag(sync=True)  # what `UserColumns.pack` returns: the colors of the map
    _found = Dict().tag(sync=True)  # text, n, sentence: whom the browser asked for

    def __init__(
        self,
        frame: pd.DataFrame,
        backend: Callable[[str, str | None], Iterator],
        queries: Sequence[str] = (),
        query: str = "",
        provenance: Callable[..., dict] | None = None,
    ):
        users, ids, self._texts = pack_users(frame)
        self._ids = ids
        self._backend = backend
        self._query = query.strip()
        self._answer_user = getattr(backend, "answer", None)
        self._timeline_of = getattr(backend, "timeline", None)
        self._provenance = provenance or getattr(backend, "provenance", None)
        self._backtest_backend = getattr(backend, "backtest", None)
        self._backtests_unasked = bool(getattr(backend, "backtests_unasked", False))
        self._ranks = getattr(backend, "rank", None) is not None
        self._unit, self._units = unit_words(backend)
        self._row_of_backend = rows_in_view(ids, getattr(backend, "ids", None))
        self._columns = UserColumns(with_columns(frame, ids, getattr(backend, "columns", None)))
        self._find_by_event = getattr(backend, "find", None)

        room = MAX_HISTORY_POINTS // max(len(ids), 1)
        self._history_size = max(MIN_HISTORY, min(MAX_HISTORY, room))
        self._entries: list[MapEntry] = []
        self._at = -1
        self._rankings = RankingStore(ids, self._unit, self._units, self._history_size)
        self._opened = False
        self._provisional = False  # a map that is not kept is on the screen

        self._guard = RLock()
        self._worker = Worker()
        # the model serves one worker at a time
        self._user_worker = Worker(self._worker.turn)
        self._backtest_worker = Worker(self._worker.turn)
        queries = queries or getattr(backend, "queries", ())
        about = {
            "title": "Query lens",
            "queries": [str(query) for query in queries],
            "unit": self._unit,
            "units": self._units,
            "max_arrows": MAX_ARROWS,
            "max_listed": MAX_LISTED,
            "most_moved_share": MOST_MOVED_SHARE,
            "timelines": self._timeline_of is not None,
            "columns": self._columns.names,
            "ranks": self._ranks,
            "backtests": self._can_backtest,
        }
        super().__init__(_about=about, _users=users)
        self.selection = Selection(ids, self._on_select, self._worker.turn, self._unit, self._units)
        self.on_msg(self._on_message)

    def ask(self, query: str) -> str:
        """Ask a query, wait for the map and the ranking, and return what happened.

        Args:
            query: A question about every user.

        Returns:
            The sentence below the map.

        Raises:
            ValueError: If the query is empty; any error of the back end.
        """
        query = query.strip()
        if not query:
            example = "write a question, such as 'Will this user travel soon?'"
            raise ValueError(f"the query is empty: {example}")
        self._opened = True
        self._cancel_follow_ups()
        self._worker.run(partial(self._run, query, raise_errors=True))
        return self.sentence

    def start(self, query: str) -> None:
        """Ask a query in the background, as typing it does; it replaces a query that runs."""
        query = query.strip()
        self._opened = True
        self._cancel_follow_ups()
        on_wait = partial(
            self._set_status, busy=True, waiting=True, query=query, done=0, total=len(self._ids)
        )
        self._worker.start(partial(self._run, query), on_wait, self._show_cancelled)

    def find(self, text: str) -> tuple[str, ...]:
        """Select users by a condition on a column, by their ids, or by what they did.

        Args:
            text: A condition (`age >= 40 and city = Oslo`), else an id or how some begin, else
                words that stand in the text of an event.

        Returns:
            The ids of the users, who are now selected.
        """
        text = text.strip()
        rows = self._columns.find(text)
        found = text
        if rows is None:
            rows = find_ids(self._ids, text)
            if not len(rows) and self._find_by_event is not None:
                found = f"an event with the words {text}"
                rows = np.flatnonzero(pd.Index(self._ids).isin(self._find_by_event(text)))
        self.selection.select_rows(rows)
        users = count_noun(len(self.selection), self._unit, self._units)
        sentence = f"{users}: {found}" if len(rows) else f"Nobody: {text}"
        self._found = {"text": text, "n": len(rows), "sentence": sentence if text else ""}
        return self.selection.ids

    def color_by(self, name: str) -> None:
        """Color the map by a column of the users.

        Args:
            name: Name of the column.

        Raises:
            KeyError: There is no such column.
        """
        if name not in self._columns.names:
            known = ", ".join(self._columns.names) or "none"
            raise KeyError(f"no column {name!r} to color by: choose one of {known}")
        self._column = self._columns.pack(name)

    @property
    def queries_asked(self) -> tuple[str, ...]:
        """The queries asked so far, oldest first."""
        return tuple(entry.query for entry in self._entries if entry.query)

    @property
    def points(self) -> pd.DataFrame:
        """The points on the map: `user, query, x, y, trust`."""
        entry = self._entry
        return pd.DataFrame(columns=POINT_COLUMNS) if entry is None else entry.points.copy()

    @property
    def shift(self) -> pd.DataFrame:
        """How far each user moved, farthest first: `user, from_query, to_query, residual ...`."""
        entry = self._entry
        if entry is None or entry.shift is None:
            return pd.DataFrame(columns=SHIFT_COLUMNS)
        return entry.shift.sort_values(
            "residual", ascending=False, kind="stable", ignore_index=True
        )

    @property
    def ranking(self) -> pd.DataFrame:
        """The users of the query that is shown, the nearest to a yes first: `user, score, answer`.

        No rows if the query cannot rank them, or was not asked for a ranking.
        """
        return self._rankings.frame(self._entry.query if self._entry else "")

    @property
    def sentence(self) -> str:
        """What the query that is shown did, in words."""
        if self._entry is None:
            return ""
        warning = self._entry.picture["warning"]
        return self._entry.sentence or warning or self._rankings.sentence(self._entry.query)

    def result_card(self, text: str = "") -> ResultCard:
        """Make a card of what is shown.

        Args:
            text: A remark of your own.

        Returns:
            The card; save it with `card.save(path)`.

        Raises:
            ValueError: If there is no map yet.
        """
        entry = self._entry
        if entry is None:
            raise ValueError("there is no map yet: ask something, then keep it")
        rows = self.selection.rows
        facts: dict[str, Any] = {"n": len(self._ids), "unit": self._unit, "units": self._units}
        if self._provenance:
            facts |= self._provenance(shift=entry.shift)
        facts |= self._rankings.card_facts(entry, rows, with_backtest=self._can_backtest)
        if entry.shift is not None:
            facts["compared_with"] = entry.picture["from"] or "no query"
        marked, meaning = self._rankings.marked_users(entry, rows)
        if entry.caption:
            facts["map"] = f"{entry.caption} Diamonds {meaning}."
        image = self._map_image(entry, marked)
        return ResultCard.from_facts(facts, image, query=entry.query or "no query", text=text)

    @property
    def _entry(self) -> MapEntry | None:
        """The entry of the history that is shown."""
        return self._entries[self._at] if self._entries else None

    @property
    def _can_backtest(self) -> bool:
        return self._ranks and self._backtest_backend is not None

    def _summary(self) -> str:
        query = self._entry.query if self._entry else self._query
        users = count_noun(len(self._ids), self._unit, self._units)
        return f"QueryLens({users}, query={query!r})"

    def _html(self) -> str:
        entry = self._entry
        if entry is None:
            return static_page(self._about["title"], [f"{self!r}: run the cell to open the map."])
        rows = []
        if entry.shift is not None:
            rows.append([self._unit, "residual", "neighbours kept"])
            for row in self.shift.head(10).itertuples():
                neighbors_kept = getattr(row, "neighbours_kept", np.nan)
                rows.append([row.user, f"{row.residual:.2f}", f"{neighbors_kept:.0%}"])
        warning = entry.picture["warning"] if entry.sentence else ""
        lines = [f"Query: {entry.query}", self.sentence, warning, entry.caption]
        return static_page(self._about["title"], lines, self._map_image(entry), rows)

    @staticmethod
    def _map_image(entry: MapEntry, marked: np.ndarray | None = None) -> str:
        """Draw the map of an entry; marked are the movers, unless other users are named."""
        places = np.frombuffer(entry.picture["after"], dtype=np.float32).reshape(-1, 2)
        moved = np.frombuffer(entry.picture["beyond"], dtype=np.uint8) > 0
        return map_image(places, moved if marked is None else marked)

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        # after the bundle: what a notebook stores must not depend on how fast the map is there
        self._open()
        return bundle

    def _open(self) -> None:
        """Ask the first query, once, when the view is first shown."""
        if not self._opened:
            self._opened = True
            self._worker.start(partial(self._run, self._query))

    # Messages of the browser

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; long work goes to a worker, so the kernel can hear Cancel."""
        kind = message.get("type")
        query = str(message.get("query", ""))
        if kind == "open":
            self._open()
        elif kind == "ask" and query.strip():
            self.send({"type": "received", "nth": message.get("nth")})
            self.start(query)
        elif kind == "cancel":
            self._cancel()
        elif kind == "go" and self._entries:
            self._go(int(message.get("at", 0)))
        elif kind == "select":
            rows = np.frombuffer(buffers[0], dtype=np.int32) if buffers else []
            self.selection.select_rows(rows, message.get("mode", "replace"))
        elif kind == "find":
            self.find(str(message.get("text", "")))
        elif kind == "color" and message.get("name") in self._columns.names:
            self.color_by(message["name"])
        elif kind == "events":
            self._send_events(message.get("rows", ()))
        elif kind == "save_card" and self._entry and not self._status.get("busy"):
            self._save_card()
        elif kind == "backtest" and self._can_backtest and self._entry and self._entry.query:
            self._backtest_worker.start(partial(self._run_backtest, self._entry.query))
        elif kind == "user":
            row = int(message.get("user", -1))
            if 0 <= row < len(self._ids):
                self._user_worker.start(partial(self._run_user, row))

    def _on_select(self, rows: np.ndarray) -> None:
        with self._guard:
            self._selected = rows.tobytes()

    def _send_events(self, rows: Sequence[int]) -> None:
        """Send the events of the users the browser asked for."""
        known = [row for row in rows[: 2 * MAX_LISTED] if 0 <= row < len(self._ids)]
        self._recent = {"rows": known, "texts": [self._texts[row] for row in known]}

    def _save_card(self) -> None:
        """Save a result card beside the notebook, and say where."""
        try:
            path = self.result_card().save(unused_path("result", "html"))
            self._set_status(saved=f"Kept: {path.name}, beside this notebook.")
        except Exception as error:
            words = f"No result card: {error_message(error)}"
            log.exception(words)
            self._set_status(error=words, saved=words)

    def _cancel(self) -> None:
        self._worker.cancel()
        self._backtest_worker.cancel()
        if self._status.get("busy"):
            self._set_status(at_once=True, **self._status | {"cancelling": True})

    def _cancel_follow_ups(self) -> None:
        """Cancel a ranking or backtest that runs; leave a map that is being made alone."""
        self._backtest_worker.cancel()
        if self._ranking.get("busy"):
            self._worker.cancel()

    # Asking a query: runs in a worker

    def _run(self, query: str, stop: Event, raise_errors: bool = False) -> None:
        """Ask a query, show what comes and keep it; if it fails, the last good map returns."""
        entry = self._entry
        again = entry is not None and query == entry.query
        if again and self._is_complete(entry):
            self._show()
            return
        previous = None
        if entry is not None:
            previous = entry.previous if again else entry.query or None
        self._set_status(busy=True, query=query, done=0, total=len(self._ids))
        try:
            with closing(self._backend(query, previous)) as updates:
                updates = iter(updates)
                entry, ranking_update = self._follow_map(query, previous, updates, stop)
                if entry is None:
                    self._show_cancelled()
                    return
                begins = None if ranking_update is None else str(ranking_update.message or "")
                self._keep(entry, begins)
                if ranking_update is not None:
                    self._follow_ranking(query, chain([ranking_update], updates), stop)
            is_ranked = query in self._rankings and not stop.is_set()
            if self._backtests_unasked and is_ranked and not raise_errors:
                self._run_backtest(query, stop)
        except Exception as error:
            log.exception("asking %r failed", query)
            message = error_message(error)
            words = f"“{query}” could not be asked: {message}" if query else f"No map: {message}"
            self._show(redraw=False, error=words)
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._show(redraw=False, note="Interrupted. The map is as it was.")
            raise

    def _is_complete(self, entry: MapEntry) -> bool:
        """Whether asking the query of this entry again would bring nothing new."""
        return not self._ranks or not entry.query or entry.query in self._rankings

    def _follow_map(
        self, query: str, previous: str | None, updates: Iterator, stop: Event
    ) -> tuple[MapEntry | None, Any]:
        """Show the progress and the maps of one query.

        Returns the last map (None if cancelled) and the first update about the ranking, if any.
        """
        entry = None
        ranking_update = None
        for update in updates:
            if stop.is_set():
                return None, None
            if "ranking" in update.data:
                ranking_update = update
                break
            self._set_status(busy=True, query=query, done=update.done, total=update.total)
            if update.data.get("points") is not None:
                refines = entry is not None
                entry = self._read_update(query, previous, update)
                self._draw(entry, refines)
                self._provisional = True
        if stop.is_set():
            return None, None
        if entry is None:
            raise ValueError("the model gave no map")
        return entry, ranking_update

    def _follow_ranking(self, query: str, updates: Iterator, stop: Event) -> None:
        """Show the ranking of a query whose map is kept; a failure leaves the map."""
        try:
            for update in updates:
                if stop.is_set():
                    break
                if update.data.get("ranking") is not None:
                    self._rankings.add(query, update.data)
                    self._show_ranking(query)
            else:
                if self._ranking.get("busy"):
                    raise ValueError("the model gave no ranking")
        except Exception as error:
            log.exception("no ranking of %r", query)
            self._ranking = {"query": query, "order": f"No ranking: {error_message(error)}"}
        finally:
            if self._ranking.get("busy"):  # stopped
                self._show_ranking(query)

    def _read_update(self, query: str, previous: str | None, update) -> MapEntry:
        """Read an update that has a map into what the view keeps and the browser draws."""
        points = update.data["points"]
        shift = update.data.get("shift")
        names = list(dict.fromkeys(points["query"]))
        last = query if query in names else names[-1]
        others = [name for name in names if name != last]
        first = others[0] if others else last
        if first == last:  # the opening map, or a query against itself: nobody can have moved
            shift = None
        sentence = str(update.message or "")
        caption = str(update.caption or "")
        before = self._places(points, first)
        after = self._places(points, last)
        trust = pd.Series(1.0, index=list(self._ids))
        if "trust" in points:
            trust = after["trust"].fillna(1)
        picture = {
            "from": str(first),
            "to": query,
            "before": float_bytes(before[["x", "y"]]),
            "after": float_bytes(after[["x", "y"]]),
            "trust": float_bytes(trust),
            "sentence": sentence,
            "caption": caption,
            "warning": str(update.warning or ""),
            "shifted": shift is not None,
            **pack_shift(self._ids, shift, self._row_of_backend),
        }
        return MapEntry(query, previous, points, shift, sentence, caption, picture)

    def _places(self, points: pd.DataFrame, query: str) -> pd.DataFrame:
        """Return the points under one query, in the order of the users."""
        part = points[points["query"] == query].drop_duplicates("user", keep="last")
        return part.set_index("user").reindex(list(self._ids))

    def _keep(self, entry: MapEntry, ranking_begins: str | None) -> None:
        """Put a map into the history and show it.

        `ranking_begins` is what is said while the users are ranked; None if they are not.
        """
        with self._guard, self.hold_sync():
            if self._entry is not None and self._entry.query == entry.query:
                self._entries[self._at] = entry
            else:
                self._entries = [*self._entries, entry][-self._history_size :]
                self._at = len(self._entries) - 1
            self._provisional = False
            self._show(redraw=False, ranking_begins=ranking_begins)

    def _go(self, at: int) -> None:
        """Show another entry of the history."""
        with self._guard:
            self._at = min(max(at, 0), len(self._entries) - 1)
            self._show()

    def _show(self, redraw: bool = True, ranking_begins: str | None = None, **status) -> None:
        """Send what is kept and the status to the browser.

        Without `redraw` the map is sent only if another one is on the screen; for `ranking_begins`
        see `_keep`.
        """
        with self._guard, self.hold_sync():
            entry = self._entry
            if entry and (redraw or self._provisional):
                self._draw(entry)
            self._provisional = False
            if entry:
                self._show_ranking(entry.query, ranking_begins)
            queries = [entry.query for entry in self._entries]
            self._history = {"queries": queries, "at": self._at}
            self._set_status(**status)

    def _show_cancelled(self) -> None:
        suffix = "The map is as it was." if self._entry else ""
        self._show(redraw=False, note=f"Cancelled. {suffix}".strip())

    def _show_ranking(self, query: str, begins: str | None = None) -> None:
        """Send the ranking and the backtest of a query, as far as they are known."""
        if begins is None:
            self._ranking = self._rankings.packed(query)
        else:
            self._ranking = {"query": query, "busy": True, "order": begins}
        self._backtest = self._rankings.packed_backtest(query)

    def _draw(self, entry: MapEntry, refines: bool = False) -> None:
        """Send a map; the browser moves users straight to a map that `refines` the one before."""
        with self._guard:
            turn = self._picture.get("turn", 0) + 1
            self._picture = {**entry.picture, "turn": turn, "refines": refines}

    def _run_backtest(self, query: str, stop: Event) -> None:
        """Backtest the ranking of a query, and show how far it is and what was found."""
        try:
            if not self._rankings.has_backtest(query):
                self._follow_backtest(query, stop)
            self._backtest = self._rankings.packed_backtest(query)
        except Exception as error:
            log.exception("no backtest of %r", query)
            words = f"No backtest: {error_message(error)}"
            self._backtest = {"query": query, "words": words}

    def _follow_backtest(self, query: str, stop: Event) -> None:
        with closing(self._backtest_backend(query)) as updates:
            for update in updates:
                if stop.is_set():
                    return
                result = update.data.get("backtest")
                if result is not None:
                    self._rankings.add_backtest(query, result, update.message)
                    continue
                self._backtest = {"query": query, "busy": True, "words": str(update.message)}

    def _run_user(self, row: int, stop: Event) -> None:
        """Show one user's events, marked for the query that is shown, and then the answer."""
        query = self._entry.query if self._entry else self._query
        about = {"user": row, "query": query}
        if self._timeline_of is not None:
            self._timeline = about | self._read_timeline(row, query)
        if self._answer_user is not None and query and not stop.is_set():
            self._run_answer(row, about)

    def _read_timeline(self, row: int, query: str) -> dict:
        try:
            return pack_timeline(self._timeline_of(self._ids[row], query))
        except Exception as error:
            log.exception("no timeline of %r for %r", self._ids[row], query)
            return {"error": f"No timeline: {error_message(error)}"}

    def _run_answer(self, row: int, about: dict) -> None:
        """Have one user's answer generated, and show it."""
        self._answer = {**about, "busy": True}
        try:
            text = str(self._answer_user(self._ids[row], about["query"]))
            self._answer = {**about, "text": text}
        except Exception as error:
            log.exception("answering %r for %r failed", about["query"], self._ids[row])
            self._answer = {**about, "error": f"No answer: {error_message(error)}"}


class RankingStore:
    """Rankings and backtests by query, the newest ones, and what a result card says about them.

    Args:
        ids: The users, in the order of the view.
        unit: The word for a user.
        units: Its plural.
        size: How many are kept.
    """

    def __init__(self, ids: tuple[str, ...], unit: str, units: str, size: int):
        self._ids = ids
        self._unit = unit
        self._units = units
        self._size = size
        self._rankings: dict[str, Ranking] = {}
        self._backtests: dict[str, Any] = {}

    def __contains__(self, query: str) -> bool:
        return query in self._rankings

    def add(self, query: str, data: Mapping) -> None:
        """Keep the ranking of a query and its sentences, from the data of an update."""
        packed = pack_ranking(self._ids, data)
        frame = data["ranking"]
        table = frame.set_index("user").reindex(list(self._ids)).rename_axis("user").reset_index()
        table["score"] = pd.to_numeric(table["score"])
        scores = None
        if "score" in packed:
            scores = table["score"].fillna(-np.inf).to_numpy(float)
        self._rankings[query] = Ranking(table, scores, packed)
        forget_oldest(self._rankings, self._size)

    def add_backtest(self, query: str, result, words: str) -> None:
        """Keep the backtest of a query, and how the back end puts it into words."""
        self._backtests[query] = (result, words)
        forget_oldest(self._backtests, self._size)

    def has_backtest(self, query: str) -> bool:
        """Whether the backtest of a query is kept."""
        return query in self._backtests

    def packed(self, query: str) -> dict:
        """Return what the browser reads of the ranking of a query."""
        ranking = self._rankings.get(query)
        return {"query": query} if ranking is None else {"query": query, **ranking.packed}

    def sentence(self, query: str) -> str:
        """Return what is said of the ranking of a query, empty if it was not ranked."""
        packed = self.packed(query)
        return " ".join(packed[name] for name in RANKING_TEXTS if packed.get(name))

    def packed_backtest(self, query: str) -> dict:
        """Return what the browser reads of the backtest of a query."""
        _, words = self._backtests.get(query, (None, ""))
        return {"query": query, "words": words}

    def frame(self, query: str) -> pd.DataFrame:
        """Return the ranking of a query, the nearest to a yes first: `user, score, answer`."""
        ranking = self._rankings.get(query)
        if ranking is None or ranking.scores is None:
            return pd.DataFrame(columns=RANKING_COLUMNS)
        frame = ranking.frame.dropna(subset="score")
        frame = frame[[name for name in RANKING_COLUMNS if name in frame]]
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def card_facts(self, entry: MapEntry, rows: np.ndarray, with_backtest: bool) -> dict:
        """Return what a result card says about a query.

        Args:
            entry: The query and its map.
            rows: The selected users.
            with_backtest: Whether rankings can be backtested.

        Returns:
            Facts by name. The ranking is the result if most users moved, else the movers are.
        """
        ranking = self._rankings.get(entry.query)
        ranked = ranking is not None and ranking.scores is not None
        backtest, backtest_words = self._backtests.get(entry.query, (None, "not run"))
        warning = entry.picture["warning"]
        facts: dict[str, Any] = {}
        if ranked and self._leads(entry):  # that they moved tells nobody apart
            facts["sentence"] = f"{ranking.packed['order']} {warning}".strip()
            if entry.sentence:
                facts["who_moved"] = entry.sentence
            if backtest is not None and backtest.right is not None:
                facts |= self._backtest_facts(backtest)
        else:
            facts["sentence"] = f"{entry.sentence} {warning}".strip()
        selected = count_noun(len(rows), self._unit, self._units)
        if ranked:
            facts["order"] = self.sentence(entry.query)
            if len(rows):
                share = beaten_share(ranking.scores, rows)
                selected += f", on average ranked above {share:.0%} of all"
        if ranked and with_backtest:
            facts["backtest"] = backtest_words
        if len(rows):
            facts["selected"] = selected
        return facts

    @staticmethod
    def _leads(entry: MapEntry) -> bool:
        """Whether the ranking is the result of a query, not who moved."""
        return not entry.sentence or entry.moved_share > MOST_MOVED_SHARE

    def _backtest_facts(self, backtest) -> dict:
        asked = f"asked as of {backtest.cutoff} (chance: 0.5)"
        return {
            "metric": f"pairs of {self._units} in the right order, {asked}",
            "n": backtest.n,
            "value": backtest.right,
            "low": backtest.low,
            "high": backtest.high,
        }

    def marked_users(self, entry: MapEntry, rows: np.ndarray) -> tuple[np.ndarray | None, str]:
        """Choose the users that the map of a result card marks.

        Args:
            entry: The query and its map.
            rows: The selected users.

        Returns:
            Which users are marked (None: those that moved), and what a mark means.
        """
        ranking = self._rankings.get(entry.query)
        ranked = ranking is not None and ranking.scores is not None
        if not (ranked and self._leads(entry)):
            return None, "moved beyond the noise floor"
        marked = np.zeros(len(self._ids), bool)
        if len(rows):
            marked[rows] = True
            return marked, f"are the selected {self._units}"
        count = max(int(TOP_SHARE * len(marked)), 1)
        marked[np.argsort(-ranking.scores)[:count]] = True
        return marked, "are the tenth that ranks first"


def with_columns(
    frame: pd.DataFrame, ids: Sequence[str], columns: pd.DataFrame | None
) -> pd.DataFrame:
    """Return the frame of the users with further columns, matched by id.

    Args:
        frame: One row per user.
        ids: The ids, in the order of the frame.
        columns: One row per user, index the ids; a name that is taken is called "(label)".
    """
    frame = frame.reset_index(drop=True)
    if columns is None:
        return frame
    columns = columns.set_axis(columns.index.map(str)).reindex(ids).reset_index(drop=True)
    taken = {name: f"{name} (label)" for name in columns if name in frame}
    return frame.join(columns.rename(columns=taken))


def rows_in_view(ids: Sequence[str], backend_ids: Sequence[str] | None) -> np.ndarray | None:
    """Return the view's row of each user of the back end, -1 for users the view does not have.

    Args:
        ids: The users, in the order of the view.
        backend_ids: The users, in the order of the back end (None: the same order).

    Returns:
        Row numbers, or None if both have the same order.
    """
    if backend_ids is None or tuple(map(str, backend_ids)) == tuple(ids):
        return None
    row_of = {user: row for row, user in enumerate(ids)}
    return np.array([row_of.get(str(user), -1) for user in backend_ids], dtype=np.int64)


def beaten_share(scores: np.ndarray, rows: np.ndarray) -> float:
    """Return the mean share of the other users that score lower than the users in `rows`."""
    lower = np.searchsorted(np.sort(scores), scores[rows])
    return float((lower / max(len(scores) - 1, 1)).mean())


def forget_oldest(store: dict, size: int) -> None:
    """Remove the entries that were added first until `size` are left."""
    while len(store) > size:
        del store[next(iter(store))]
