"""The query lens: ask a question about every user and watch who moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

from qanchor.widgets.base import (
    Cancelled,
    Selection,
    View,
    Worker,
    attempt,
    closing,
    count_noun,
    error_message,
    log,
    read_static,
    unit_words,
    until_cancelled,
    unused_path,
)
from qanchor.widgets.columns import UserColumns, find_ids, with_columns
from qanchor.widgets.packing import (
    RANKING_TEXTS,
    float_bytes,
    pack_ranking,
    pack_shift,
    pack_timeline,
    pack_users,
)
from qanchor.widgets.result_card import ResultCard
from qanchor.widgets.static_html import map_image, static_page

TITLE = "Query lens"
MAX_ARROWS = 60  # only the strongest movers get an arrow
MAX_LISTED = 100  # rows in the list of users
MAX_HISTORY = 100  # maps that can be walked back to: some 100 MB for 2,000 users
MIN_HISTORY = 5  # for very many users
MAX_HISTORY_POINTS = 1_000_000  # places of users in all maps of the history: some 500 MB
TOP_SHARE = 0.1  # of the ranking, marked on the map of a result card
POINT_COLUMNS = ["user", "query", "x", "y", "trust"]
SHIFT_COLUMNS = ["user", "from_query", "to_query", "toward_yes", "elsewhere", "stands_out"]
RANKING_COLUMNS = ["user", "score", "answer"]
TABLE_COLUMNS = ("x", "y", "trust", "toward_yes", "elsewhere", "stands_out", "score", "answer")


@dataclass(frozen=True)
class MapEntry:
    """One query that was asked, the map it gave, and what the browser draws of it."""

    query: str
    previous: str | None
    points: pd.DataFrame
    shift: pd.DataFrame | None
    picture: dict

    @property
    def sentence(self) -> str:
        """Who stands out, in words; empty if the ranking is the result."""
        return self.picture["sentence"]


@dataclass
class Finding:
    """What is known of the users under one query besides their map: ranking and backtest."""

    ranking: pd.DataFrame | None = None  # in the order of the users
    packed: dict = field(default_factory=dict)  # what the browser reads of it
    backtest: Any = None
    backtest_words: str = ""
    without: tuple[str, ...] = ()  # things that the query is said not to mean

    @property
    def is_ranked(self) -> bool:
        """Whether the query ranks the users: some of them score higher than others."""
        return "score" in self.packed

    @property
    def scores(self) -> np.ndarray:
        """The scores in the order of the users, -inf where unknown."""
        return self.ranking["score"].fillna(-np.inf).to_numpy(float)

    @property
    def sentence(self) -> str:
        """What is said of the ranking, empty if there is none."""
        texts = [self.packed.get(name) for name in RANKING_TEXTS]
        return " ".join(filter(None, texts))

    def leads(self, entry: MapEntry) -> bool:
        """Whether the ranking is the result of a query that gave this map, not who stands out."""
        return self.is_ranked and not entry.sentence


class QueryLens(View):
    """Ask a question about every user; see who moves and who is nearest to a yes.

    Args:
        frame: One row per user: `user` and, if known, `events`, `first`, `last` and `recent` (a
            list of texts). The map can be colored by any other column, and users found by it.
        backend: Called as `backend(query, previous)`; yields updates with `done`, `total`,
            `message`, `caption`, `warning` and a dict `data`. Closing the iterator cancels the
            work. `data["points"]` and `data["shift"]` are frames once they are known; the last map
            is kept. Without a message of that one, the ranking is what the view says. Updates that
            have `data["ranking"]` follow the last map: it is None while the users are ranked, then
            a frame `user, score, answer`, with two sentences in `data`, `interpretation` (what the
            query was interpreted as) and `order` (who ranks first), and with `meant` (records
            `text, users` of the things that it means). Attributes that are used if
            there are any: `answer` (called as `answer(user, query)`, returns text), `backtest`,
            `backtests_unasked`, `columns` (a frame of further columns, index the ids), `find`
            (called as `find(text)`, returns the ids of users who did such a thing), `ids`,
            `provenance` (called as `provenance(shift=...)`, returns what a result card says about
            the run and the result), `queries`, `rank` (there will be a ranking; called as
            `rank(query, without)` if some things are not meant), `timeline` (called as
            `timeline(user, query)`, returns a frame `time, modality, text, evidence` and, if known,
            `weight` of the events of one user, oldest first), `unit` and `units`.
        queries: Suggested queries (default: `backend.queries`).
        query: Asked when the view is first shown (default: a map before any query).

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
        "facets.mjs",
        "histogram.mjs",
        "picture.mjs",
        "lens.mjs",
    )
    _css = read_static("lens.css", "card.css")
    _about = Dict().tag(sync=True)  # title, queries, units, limits: never changes
    _users = Dict().tag(sync=True)  # who the users are: never changes
    _picture = Dict().tag(sync=True)  # what is on the map
    _status = Dict().tag(sync=True)  # busy, done, total, query, note, error
    _history = Dict().tag(sync=True)  # queries, at
    _selected = Bytes().tag(sync=True)  # row numbers, int32
    _steps = Dict().tag(sync=True)  # undo, redo: whether there is a selection to go back to
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
    ):
        users, ids, self._texts = pack_users(frame)
        self._ids = ids
        self._backend = backend
        self._query = query.strip()
        self._answer_of = getattr(backend, "answer", None)
        self._timeline_of = getattr(backend, "timeline", None)
        self._provenance = getattr(backend, "provenance", None)
        self._backtest_of = getattr(backend, "backtest", None)
        self._backtests_unasked = getattr(backend, "backtests_unasked", False)
        self._ranks = getattr(backend, "rank", None) is not None
        self._unit, self._units = unit_words(backend)
        backend_ids = [str(user) for user in getattr(backend, "ids", ids)]
        self._row_of_backend = pd.Index(ids).get_indexer(backend_ids)
        self._columns = UserColumns(with_columns(frame, ids, getattr(backend, "columns", None)))
        self._find_by_event = getattr(backend, "find", None)

        room = MAX_HISTORY_POINTS // max(len(ids), 1)
        self._history_size = max(MIN_HISTORY, min(MAX_HISTORY, room))
        self._entries: list[MapEntry] = []
        self._at = -1
        self._findings: dict[str, Finding] = {}  # of the queries in the history
        self._opened = False
        self._redraws = False  # the browser may show another map than the kept one

        about = {
            "title": TITLE,
            "queries": [str(query) for query in queries or getattr(backend, "queries", ())],
            "unit": self._unit,
            "units": self._units,
            "max_arrows": MAX_ARROWS,
            "max_listed": MAX_LISTED,
            "timelines": self._timeline_of is not None,
            "columns": self._columns.names,
            "ranks": self._ranks,
            "backtests": self._can_backtest,
        }
        super().__init__(_about=about, _users=users)
        turn = self._worker.turn  # the model serves one worker at a time
        self._user_worker = Worker(turn)
        self._backtest_worker = Worker(turn)
        self.selection = Selection(ids, self._on_select, turn, self._unit, self._units)

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
        on_cancel = partial(self._show_end, "Cancelled")
        self._worker.start(partial(self._run, query), on_wait, on_cancel)

    def find(self, text: str) -> tuple[str, ...]:
        """Select users by a condition on a column, by their ids, or by what they did.

        Args:
            text: A condition (`age >= 40 and city = Oslo`), else an id or how some begin, else
                words that stand in the text of an event.

        Returns:
            The ids of the users, who are now selected; if there are none, the selection stays.
        """
        text = text.strip()
        found = text
        try:
            rows = self._columns.find(text)
        except ValueError as error:
            self._found = {"text": text, "n": 0, "sentence": str(error)}
            return ()
        if rows is None:
            rows = find_ids(self._ids, text)
            if not len(rows) and self._find_by_event is not None:
                found = f"an event with the words {text}"
                rows = np.flatnonzero(pd.Index(self._ids).isin(self._find_by_event(text)))
        sentence = f"Nobody: {text}"
        if len(rows):
            sentence = f"{self.selection.count(len(rows))}: {found}"
            self.selection.select_rows(rows)
        self._found = {"text": text, "n": len(rows), "sentence": sentence if text else ""}
        return tuple(self._ids[row] for row in rows)

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

    def leave_out(self, things: Sequence[str]) -> str:
        """Rank again as if the query that is shown did not mean some things; the map stays.

        Args:
            things: Their labels, all that are left out from now on.

        Returns:
            What the query was interpreted as, and who ranks first.

        Raises:
            ValueError: If no ranking is shown.
        """
        if self._finding.ranking is None:
            raise ValueError("no ranking is shown: ask something first")
        self._worker.run(partial(self._run_without, self._entry.query, tuple(things)))
        return self._finding.sentence

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
        """How far each user moved: `user, from_query, to_query, residual, toward_yes ...`; first
        those whose move toward yes is farthest above their largest one elsewhere or, if the
        question was not compared with others, whose residual is largest.
        """
        entry = self._entry
        if entry is None or entry.shift is None:
            return pd.DataFrame(columns=SHIFT_COLUMNS)
        margin = entry.shift["toward_yes"] - entry.shift["elsewhere"]
        if margin.isna().all():
            margin = entry.shift["residual"]
        order = margin.sort_values(ascending=False, kind="stable").index
        return entry.shift.loc[order].reset_index(drop=True)

    @property
    def ranking(self) -> pd.DataFrame:
        """The users of the query that is shown, the nearest to a yes first: `user, score, answer`.

        No rows if the query cannot rank them, or was not asked for a ranking.
        """
        finding = self._finding
        if not finding.is_ranked:
            return pd.DataFrame(columns=RANKING_COLUMNS)
        frame = finding.ranking.dropna(subset="score")
        frame = frame[RANKING_COLUMNS]
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def table(self) -> pd.DataFrame:
        """Return all that is shown of each user.

        Returns:
            One row per user, in the order of the view: `user`, where it is on the map (`x, y,
            trust`), how far it moved (`toward_yes, elsewhere, stands_out`), `score` and `answer`,
            whether it is `selected`, and the columns that the map can be colored by.
        """
        table = pd.DataFrame({"user": self._ids})
        parts = [self.ranking]
        if self._entry is not None:
            on_map = self.points["query"] == self._entry.query
            parts = [self.points[on_map].drop(columns="query"), self.shift, *parts]
        for part in parts:
            kept = [name for name in part if name in TABLE_COLUMNS]
            table = table.join(part.set_index("user")[kept], on="user")
        table["selected"] = table["user"].isin(self.selection.ids)
        columns = self._columns.frame
        taken = {name: f"{name} (column)" for name in columns if name in table}
        return table.join(columns.rename(columns=taken))

    @property
    def sentence(self) -> str:
        """What the query that is shown did, in words."""
        entry = self._entry
        if entry is None:
            return ""
        return entry.sentence or entry.picture["warning"] or self._finding.sentence

    def result_card(self, text: str = "") -> ResultCard:
        """Make a card of what is shown: who stands out or, if that is not known, the ranking.

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
        facts: dict[str, Any] = {
            "n": len(self._ids),
            "unit": self._unit,
            "units": self._units,
        }
        if self._provenance:
            facts |= self._provenance(shift=entry.shift)
        facts |= self._result_facts(entry)
        if self._finding.is_ranked:
            facts["order"] = self._finding.sentence
            if self._can_backtest:
                facts["backtest"] = self._finding.backtest_words or "not run"
        if len(self.selection):
            facts["selected"] = self._selected_words()
        if entry.shift is not None:
            facts["compared_with"] = entry.picture["from"] or "no query"
        marked, meaning = self._marked_users(entry)
        if entry.picture["caption"]:
            facts["map"] = f"{entry.picture['caption']} Diamonds {meaning}."
        image = self._map_image(entry, marked)
        return ResultCard.from_facts(facts, image, query=entry.query or "no query", text=text)

    def _result_facts(self, entry: MapEntry) -> dict:
        """Return what a result card says first, and the number that it gives for it."""
        finding = self._finding
        warning = entry.picture["warning"]
        if not finding.leads(entry):
            return {"sentence": f"{entry.sentence} {warning}".strip()}
        facts = {"sentence": f"{finding.packed['order']} {warning}".strip()}
        backtest = finding.backtest
        if backtest is not None and backtest.right is not None:
            asked = f"asked as of {backtest.cutoff} (chance: 0.5)"
            facts |= {
                "metric": f"pairs of {self._units} in the right order, {asked}",
                "n": backtest.n,
                "value": backtest.right,
                "low": backtest.low,
                "high": backtest.high,
            }
        return facts

    def _selected_words(self) -> str:
        """Say how many users are selected and, if they are ranked, how high."""
        rows = self.selection.rows
        words = self.selection.count(len(rows))
        if self._finding.is_ranked:
            scores = self._finding.scores
            lower = np.searchsorted(np.sort(scores), scores[rows])
            share = lower.mean() / max(len(scores) - 1, 1)
            words += f", on average ranked above {share:.0%} of all"
        return words

    def _marked_users(self, entry: MapEntry) -> tuple[np.ndarray, str]:
        """Choose the users that the map of a result card marks, and say what a mark means."""
        if not self._finding.leads(entry):
            return standing_out(entry), "stand out"
        marked = np.zeros(len(self._ids), bool)
        if len(self.selection):
            marked[self.selection.rows] = True
            return marked, f"are the selected {self._units}"
        count = max(int(TOP_SHARE * len(marked)), 1)
        ranked = np.argsort(-self._finding.scores)
        marked[ranked[:count]] = True
        return marked, "are the tenth that ranks first"

    @property
    def _entry(self) -> MapEntry | None:
        """The entry of the history that is shown."""
        return self._entries[self._at] if self._entries else None

    @property
    def _finding(self) -> Finding:
        """What is known under the query that is shown."""
        return self._finding_of(self._entry.query if self._entry else "")

    def _finding_of(self, query: str) -> Finding:
        return self._findings.get(query, Finding())

    @property
    def _can_backtest(self) -> bool:
        return self._ranks and self._backtest_of is not None

    def _summary(self) -> str:
        query = self._entry.query if self._entry else self._query
        users = count_noun(len(self._ids), self._unit, self._units)
        return f"QueryLens({users}, query={query!r})"

    def _html(self) -> str:
        entry = self._entry
        if entry is None:
            return static_page(TITLE, [f"{self!r}: run the cell to open the map."])
        rows = []
        if entry.shift is not None:
            rows.append([self._unit, "toward yes", "elsewhere at most"])
            for row in self.shift.head(10).itertuples():
                rows.append([row.user, f"{row.toward_yes:.2f}", f"{row.elsewhere:.2f}"])
        warning = entry.picture["warning"] if entry.sentence else ""
        lines = [f"Query: {entry.query}", self.sentence, warning, entry.picture["caption"]]
        image = self._map_image(entry, standing_out(entry))
        return static_page(TITLE, lines, image, rows)

    @staticmethod
    def _map_image(entry: MapEntry, marked: np.ndarray) -> str:
        """Draw the map of an entry."""
        places = np.frombuffer(entry.picture["after"], dtype=np.float32)
        return map_image(places.reshape(-1, 2), marked)

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
            self.selection.follow(message, buffers)
        elif kind == "undo":
            self.selection.undo()
        elif kind == "redo":
            self.selection.redo()
        elif kind == "find":
            self.find(str(message.get("text", "")))
        elif kind == "color" and message.get("name") in self._columns.names:
            self.color_by(message["name"])
        elif kind == "without" and self._finding.ranking is not None:
            things = tuple(map(str, message.get("things", ())))
            self._worker.start(partial(self._run_without, self._entry.query, things))
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
        with self._guard, self.hold_sync():
            self._steps = self.selection.steps
            self._selected = rows.tobytes()

    def _send_events(self, rows: Sequence[int]) -> None:
        """Send the events of the users the browser asked for."""
        users = range(len(self._ids))
        known = [row for row in rows[: 2 * MAX_LISTED] if row in users]
        texts = [self._texts[row] for row in known]
        self._recent = {"rows": known, "texts": texts}

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
        self._add_to_status(cancelling=True)

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
            self._go(self._at)
            return
        previous = None
        if entry is not None:
            previous = entry.previous if again else entry.query or None
        self._set_status(busy=True, query=query, done=0, total=len(self._ids))
        failed = f"“{query}” could not be asked" if query else "No map"
        with self._showing_failure(failed, raise_errors):
            with closing(self._backend(query, previous)) as updates:
                updates = until_cancelled(updates, stop)
                entry, ranking_update = self._follow_map(query, previous, updates)
                self._keep(entry, ranking_update)
                if ranking_update is not None:
                    self._follow_ranking(query, chain([ranking_update], updates))
            if self._backtests_unasked and not raise_errors and self._is_ranked(query):
                self._run_backtest(query, stop)

    def _run_without(self, query: str, things: tuple[str, ...], stop: Event) -> None:
        """Rank again without some things, and backtest that ranking if rankings are."""
        finding = self._finding_of(query)
        finding.without = things
        finding.backtest = None
        finding.backtest_words = ""
        self._backtest = {"query": query, "words": ""}
        with closing(self._backend.rank(query, things)) as updates:
            self._follow_ranking(query, until_cancelled(updates, stop))
        if self._backtests_unasked and not stop.is_set():
            self._run_backtest(query, stop)

    def _is_complete(self, entry: MapEntry) -> bool:
        """Whether asking the query of this entry again would bring nothing new."""
        return self._is_ranked(entry.query) or not self._ranks or not entry.query

    def _is_ranked(self, query: str) -> bool:
        return self._finding_of(query).ranking is not None

    def _follow_map(self, query: str, previous: str | None, updates: Iterator) -> tuple:
        """Show the progress and the maps of one query.

        Returns the last map as an entry, and the first update about the ranking, if there is any.
        """
        entry = None
        ranking_update = None
        for update in updates:
            if "ranking" in update.data:
                ranking_update = update
                break
            self._set_status(busy=True, query=query, done=update.done, total=update.total)
            if update.data.get("points") is not None:
                refines = entry is not None
                entry = self._read_update(query, previous, update)
                self._draw(entry, refines)
                self._redraws = True
        if entry is None:
            raise ValueError("the model gave no map")
        return entry, ranking_update

    def _follow_ranking(self, query: str, updates: Iterator) -> None:
        """Show the ranking of a query whose map is kept; a failure leaves the map."""
        try:
            for update in updates:
                if update.data.get("ranking") is not None:
                    self._add_ranking(query, update.data)
                    self._show_ranking(query)
                self._replace_map(query, update)
            if self._ranking.get("busy"):
                raise ValueError("the model gave no ranking")
        except Cancelled:
            pass  # the map stays, without a ranking
        except Exception as error:
            log.exception("no ranking of %r", query)
            self._ranking = {"query": query, "order": f"No ranking: {error_message(error)}"}
        finally:
            if self._ranking.get("busy"):  # cancelled or interrupted
                self._show_ranking(query)

    def _replace_map(self, query: str, update) -> None:
        """Replace the map of a query that is kept, if an update has another one."""
        points = update.data.get("points")
        with self._guard:
            at = next((at for at, entry in enumerate(self._entries) if entry.query == query), None)
            if points is None or at is None or points is self._entries[at].points:
                return
            old = self._entries[at]
            entry = self._read_update(query, old.previous, update)
            entry.picture["sentence"] = old.sentence
            self._entries[at] = entry
            if at == self._at:
                self._draw(entry, refines=True)

    def _add_ranking(self, query: str, data: dict) -> None:
        """Keep the ranking of a query, from the data of an update."""
        frame = data["ranking"].set_index("user").reindex(list(self._ids))
        finding = self._findings.setdefault(query, Finding())
        finding.ranking = frame.rename_axis("user").reset_index()
        finding.packed = pack_ranking(finding.ranking["score"], data)
        finding.packed["without"] = list(finding.without)

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
        before = self._places(points, first)
        after = self._places(points, last)
        picture = {
            "from": str(first),
            "to": query,
            "before": float_bytes(before[["x", "y"]]),
            "after": float_bytes(after[["x", "y"]]),
            "trust": float_bytes(after["trust"].fillna(1)),
            "sentence": update.message,
            "caption": update.caption,
            "warning": update.warning,
            "shifted": shift is not None,
            **pack_shift(self._ids, shift, self._row_of_backend),
        }
        return MapEntry(query, previous, points, shift, picture)

    def _places(self, points: pd.DataFrame, query: str) -> pd.DataFrame:
        """Return the points under one query, in the order of the users."""
        part = points[points["query"] == query]
        part = part.drop_duplicates("user", keep="last").set_index("user")
        return part.reindex(index=list(self._ids), columns=["x", "y", "trust"])

    def _keep(self, entry: MapEntry, ranking_update) -> None:
        """Put a map into the history and show it, and that its ranking begins, if it does."""
        with self._guard, self.hold_sync():
            if self._entry is not None and self._entry.query == entry.query:
                self._entries[self._at] = entry
            else:
                entries = [*self._entries, entry]
                self._entries = entries[-self._history_size :]
                self._at = len(self._entries) - 1
            queries = {entry.query for entry in self._entries}
            for query in set(self._findings) - queries:
                del self._findings[query]
            self._redraws = False
            ranking = None
            if ranking_update is not None:
                ranking = {"query": entry.query, "busy": True, "order": ranking_update.message}
            self._show(ranking)

    def _go(self, at: int) -> None:
        """Show another entry of the history, and finish it if a newer query took its place."""
        with self._guard:
            self._at = min(max(at, 0), len(self._entries) - 1)
            self._redraws = True
            self._show()
            entry = self._entry
        if entry and not self._is_complete(entry) and not self._status.get("busy"):
            self.start(entry.query)

    def _show(self, ranking: dict | None = None, **status) -> None:
        """Send what is kept and the status to the browser.

        `ranking` is sent in place of the ranking that is kept, if it is given.
        """
        with self._guard, self.hold_sync():
            entry = self._entry
            if entry:
                if self._redraws:
                    self._draw(entry)
                self._show_ranking(entry.query, ranking)
            self._redraws = False
            queries = [entry.query for entry in self._entries]
            self._history = {"queries": queries, "at": self._at}
            self._set_status(**status)

    def _show_end(self, how: str) -> None:
        suffix = " The map is as it was." if self._entry else ""
        self._show(note=f"{how}.{suffix}")

    def _show_ranking(self, query: str, ranking: dict | None = None) -> None:
        """Send the ranking and the backtest of a query, as far as they are known."""
        finding = self._finding_of(query)
        packed = {"query": query, **finding.packed}
        before = self._finding_of(self._entry.picture["from"] if self._entry else "")
        if before.is_ranked:  # to tell who changed sides
            packed["score_before"] = before.packed["score"]
        self._ranking = ranking or packed
        self._backtest = {"query": query, "words": finding.backtest_words}

    def _draw(self, entry: MapEntry, refines: bool = False) -> None:
        """Send a map; the browser moves users straight to a map that `refines` the one before."""
        with self._guard:
            turn = self._picture.get("turn", 0) + 1
            self._picture = {**entry.picture, "turn": turn, "refines": refines}

    def _run_backtest(self, query: str, stop: Event) -> None:
        """Backtest the ranking of a query, and show how far it is and what was found."""
        try:
            if not self._finding_of(query).backtest:
                self._follow_backtest(query, stop)
            words = self._finding_of(query).backtest_words
        except Exception as error:
            log.exception("no backtest of %r", query)
            words = f"No backtest: {error_message(error)}"
        self._backtest = {"query": query, "words": words}

    def _follow_backtest(self, query: str, stop: Event) -> None:
        without = self._finding_of(query).without
        left_out = [without] if without else []
        with closing(self._backtest_of(query, *left_out)) as updates:
            for update in updates:
                if stop.is_set():
                    return
                if "backtest" in update.data:
                    finding = self._findings.setdefault(query, Finding())
                    finding.backtest = update.data["backtest"]
                    finding.backtest_words = update.message
                else:
                    self._backtest = {"query": query, "busy": True, "words": update.message}

    def _run_user(self, row: int, stop: Event) -> None:
        """Show one user's events, marked for the query that is shown, and then the answer."""
        query = self._entry.query if self._entry else self._query
        user = self._ids[row]
        about = {"user": row, "query": query}
        if self._timeline_of is not None:
            read = partial(self._read_timeline, user, query)
            self._timeline = about | attempt(read, "No timeline")
        if self._answer_of is not None and query and not stop.is_set():
            self._answer = about | {"busy": True}
            read = partial(self._read_answer, user, query)
            self._answer = about | attempt(read, "No answer")

    def _read_timeline(self, user: str, query: str) -> dict:
        return pack_timeline(self._timeline_of(user, query))

    def _read_answer(self, user: str, query: str) -> dict:
        return {"text": self._answer_of(user, query)}


def standing_out(entry: MapEntry) -> np.ndarray:
    """Say which users stand out, in the order of the users."""
    return np.frombuffer(entry.picture["beyond"], dtype=np.uint8) > 0
