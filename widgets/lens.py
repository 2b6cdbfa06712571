"""The query lens: type a question and watch the users move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Event, RLock

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

from widgets.base import Selection, View, Worker, closing, log, plain, script, still_map, still_page, vacant
from widgets._order import MOST, Order
from widgets.packing import Asked, asked, described
from widgets.result_card import ClaimCard

ARROWS = 60  # the strongest movers get an arrow; more would be hatching
LISTED = 100  # rows in the list of the most shifted
LOGGED, LEAST = 100, 5  # maps that can be walked back to: some 100 MB of 2,000 users; of very many users the fewest
HELD = 1_000_000  # places of users in these maps, some 500 MB


class QueryLens(View):
    """Ask something of every user and see who moves, how far, and beyond what mere rewording would do.

    frame     one row a user: `user`, then `events`, modality counts, `first`, `last` and `recent` where there are any.
    ask       called as `ask(query, previous)`; yields updates `{"done", "total", "points", "shift", "sentence", "caption"}`,
              and a `"warning"` where there is one. Points and shift are None until there are some; closing the iterator
              cancels the work. `ask.unit`, where there is one, is the word for a user.
    lean      called as `lean(query)` when idle; yields None, then a frame of `user` and `score`, the nearer to a yes the
              higher (default: `ask.lean`, where there is one).
    answer    called as `answer(user, query)`, gives text (default: `ask.answer`, where there is one).
    queries   suggestions (default: `ask.queries`, where there are any).
    query     asked when the view is first shown; without one the map opens before any question.
    facts     called as `facts(shift=...)`, gives what a claim card says of a result (default: `ask.facts`, if any).

    Of more than 10,000 users events come to the browser when looked at; maps of a million places can be walked back to.

    Example:
        >>> one = pd.DataFrame({"user": ["a"], "query": ["q"], "x": [0.0], "y": [0.0], "trust": [1.0]})
        >>> update = {"done": 1, "total": 1, "points": one, "shift": None, "sentence": "Nobody moved.", "caption": ""}
        >>> lens = QueryLens(pd.DataFrame({"user": ["a"]}), ask=lambda query, previous: iter([update]))
        >>> lens.ask("q"), lens
        ('Nobody moved.', QueryLens(1 user, query='q'))
    """

    _esm = script("geometry.mjs", "dom.mjs", "kernel.mjs", "dots.mjs", "gestures.mjs", "map.mjs", "lens.mjs")
    _css = script("lens.css")
    _about = Dict().tag(sync=True)  # title, suggestions: never changes
    _users = Dict().tag(sync=True)  # who they are: never changes
    _picture = Dict().tag(sync=True)  # what is on the map
    _status = Dict().tag(sync=True)  # busy, done, total, query, note, error
    _history = Dict().tag(sync=True)  # queries, at
    _selected = Bytes().tag(sync=True)  # row numbers, int32
    _lean = Dict().tag(sync=True)  # query, score, words: who is nearest to a yes
    _past = Dict().tag(sync=True)  # query, words, busy: whether such an order was right before
    _answer = Dict().tag(sync=True)  # user, query, text, busy, error
    _read = Dict().tag(sync=True)  # rows, texts: of users whose events the browser asked for

    def __init__(
        self,
        frame: pd.DataFrame,
        ask: Callable[[str, str | None], Iterator[dict]],
        answer: Callable[[str, str], str] | None = None,
        queries: Sequence[str] = (),
        query: str = "",
        title: str = "Query lens",
        facts: Callable[..., dict] | None = None,
        lean: Callable[[str], Iterator[pd.DataFrame | None]] | None = None,
    ):
        users, ids, self._texts = described(frame)
        self._logged = max(LEAST, min(LOGGED, HELD // max(len(ids), 1)))
        self._ids, self._asker, self._query = ids, ask, query.strip()
        self._reply, self._facts = answer or getattr(ask, "answer", None), facts or getattr(ask, "facts", None)
        self._unit = str(getattr(ask, "unit", "user"))
        self._log: list[Asked] = []
        self._at, self._opened, self._partial = -1, False, False
        self._guard, self._worker = RLock(), Worker()
        self._replier = Worker(self._worker.turn)  # an answer waits for a running query: the model serves one at a time
        show = (partial(setattr, self, name) for name in ("_lean", "_past"))
        ranks = lean or getattr(ask, "lean", None), getattr(ask, "look_back", None)
        self._order = Order(ids, *ranks, *show, self._worker.turn, self._logged)
        queries = [str(q) for q in (queries or getattr(ask, "queries", ()))]
        about = {"title": title, "queries": queries, "unit": self._unit, "arrows": ARROWS, "listed": LISTED, "most": MOST}
        about |= {"answers": self._reply is not None, "leans": self._order.can_rank, "looks_back": self._order.can_look_back}
        super().__init__(_about=about, _users=users)
        self.selection = Selection(ids, self._select, self._worker.turn)
        self.on_msg(self._heard)

    def ask(self, query: str) -> str:
        """Ask every user `query`, wait, and give the sentence that says what happened."""
        query = query.strip()
        if not query:
            raise ValueError("the query is empty: write a question, such as 'Will this user travel soon?'")
        self._opened = True
        self._order.cancel()
        self._worker.run(partial(self._work, query, aloud=True))
        return self.sentence

    def start(self, query: str) -> None:
        """Ask `query` beside the cell that says so, as typing it does; a query that runs gives way."""
        self._opened, query = True, query.strip()
        self._order.cancel()
        waits = partial(self._tell, busy=True, waiting=True, query=query, done=0, total=len(self._ids))
        self._worker.start(partial(self._work, query), waits, self._cancelled)

    @property
    def queries_asked(self) -> tuple[str, ...]:
        """Name the queries asked so far, oldest first."""
        return tuple(asked.query for asked in self._log if asked.query)

    @property
    def points(self) -> pd.DataFrame:
        """Give the points on the map: `user, query, x, y, trust`."""
        return self._shown.points.copy() if self._shown else pd.DataFrame(columns=["user", "query", "x", "y", "trust"])

    @property
    def shift(self) -> pd.DataFrame:
        """Give how far each user moved, the farthest first: `user, from_query, to_query, residual ...`."""
        if self._shown is None or self._shown.shift is None:
            return pd.DataFrame(columns=["user", "from_query", "to_query", "residual", "noise_floor", "beyond_noise"])
        return self._shown.shift.sort_values("residual", ascending=False, kind="stable", ignore_index=True)

    @property
    def order(self) -> pd.DataFrame:
        """Give who is nearest to a yes, the nearest first: `user, score`; nobody until the lens has found it."""
        return self._order.frame(self._shown.query if self._shown else "")

    @property
    def sentence(self) -> str:
        """Say in words what the last query did."""
        return self._shown.sentence if self._shown else ""

    def claim(self, text: str = "") -> ClaimCard:
        """Keep what is shown as a claim card, with a remark of your own."""
        if (shown := self._shown) is None:
            raise ValueError("there is no map yet: ask something, then keep it")
        facts = {"n": len(self._ids), "unit": self._unit, **(self._facts(shift=shown.shift) if self._facts else {})}
        share = 0.0 if shown.shift is None else shown.shift["beyond_noise"].mean()
        told = shown.sentence, share, shown.picture["warning"], self.selection.rows, self._unit
        facts |= self._order.facts(shown.query, *told)
        more = {"compared_with": shown.picture["from"] or "no query"} if shown.shift is not None else {}
        marked, whom = self._order.marks(shown.query, share, self.selection.rows)
        more |= {"map": f"{shown.caption} Diamonds {whom}."} if shown.caption else {}
        return ClaimCard.of({**facts, **more}, self._drawn(shown, marked), query=shown.query or "no query", text=text)

    @property
    def _shown(self) -> Asked | None:
        return self._log[self._at] if self._log else None

    def _words(self) -> str:
        query = self._shown.query if self._shown else self._query
        return f"QueryLens({len(self._ids):,} {self._unit}{'s' * (len(self._ids) != 1)}, query={query!r})"

    def _still(self) -> str:
        shown = self._shown
        if shown is None:
            return still_page(self._about["title"], [f"{self!r}: run the cell to open the map."])
        rows = []
        if shown.shift is not None:
            rows = [[self._unit, "residual", "neighbours kept"]]
            for row in self.shift.head(10).itertuples():
                rows.append([row.user, f"{row.residual:.2f}", f"{getattr(row, 'neighbours_kept', np.nan):.0%}"])
        words = [f"Query: {shown.query}", shown.sentence, shown.picture["warning"], shown.caption]
        return still_page(self._about["title"], words, self._drawn(shown), rows)

    @staticmethod
    def _drawn(shown: Asked, marked: np.ndarray | None = None) -> str:
        after = np.frombuffer(shown.picture["after"], dtype=np.float32).reshape(-1, 2)
        moved = np.frombuffer(shown.picture["beyond"], dtype=np.uint8) > 0
        return still_map(after, moved if marked is None else marked)

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        self._open()  # after the bundle: what is stored in the notebook must not depend on how fast the map is there
        return bundle

    def _open(self) -> None:
        """Begin with the first map, once, when the view is first looked at."""
        if not self._opened:
            self._opened = True
            self._worker.start(partial(self._work, self._query))

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; anything long goes to a worker, so the kernel stays free to hear Cancel."""
        kind = message.get("type")
        if kind == "open":
            self._open()
        elif kind == "ask" and str(message.get("query", "")).strip():
            self.send({"type": "heard", "nth": message.get("nth")})
            self.start(str(message["query"]))
        elif kind == "cancel":
            self._worker.cancel()
            if self._status.get("busy"):
                self._tell(at_once=True, **self._status | {"cancelling": True})
        elif kind == "go" and self._log:
            self._go(int(message.get("at", 0)))
        elif kind == "select":
            self.selection.take(np.frombuffer(buffers[0], dtype=np.int32) if buffers else [], message.get("mode", "replace"))
        elif kind == "tell":
            rows = [row for row in message.get("rows", ())[: 2 * LISTED] if 0 <= row < len(self._ids)]
            self._read = {"rows": rows, "texts": [self._texts[row] for row in rows]}
        elif kind == "keep" and self._shown and not self._status.get("busy"):
            self._file()
        elif kind == "lean" and self._order.can_rank and (shown := self._shown) and shown.query:
            self._order.rank(shown.query)
        elif kind == "look back" and self._order.can_look_back and (shown := self._shown) and shown.query:
            self._order.look_back(shown.query)
        elif kind == "answer" and self._reply and 0 <= int(message.get("user", -1)) < len(self._ids):
            self._replier.start(partial(self._write, int(message["user"])))

    def _file(self) -> None:
        try:
            told = f"Kept: {self.claim().save(vacant('claim', 'html')).name}, beside this notebook."
            self._tell(kept=told)
        except Exception as error:
            log.exception(told := f"No claim card: {plain(error)}")
            self._tell(error=told, kept=told)

    def _work(self, query: str, stop: Event, aloud: bool = False) -> None:
        """Ask, show what comes, and keep it; on Cancel or an error the last good picture returns."""
        shown = self._shown
        if shown is not None and query == shown.query:
            return self._show()
        self._tell(busy=True, query=query, done=0, total=len(self._ids))
        try:
            result = self._listen(query, shown.query or None if shown else None, stop)
            self._keep(result) if result else self._cancelled()
        except Exception as error:
            log.exception("asking %r failed", query)
            self._show(False, error=f"“{query}” could not be asked: {plain(error)}" if query else f"No map: {plain(error)}")
            if aloud:
                raise
        except BaseException:  # an interrupted cell
            self._show(False, note="Interrupted. The map is as it was.")
            raise

    def _cancelled(self) -> None:
        self._show(False, note=f"Cancelled. {'The map is as it was.' if self._shown else ''}".strip())

    def _listen(self, query: str, previous: str | None, stop: Event) -> Asked | None:
        """Follow the updates of one query, each map shown as it comes; give the last, or None if it was cancelled."""
        updates, last = self._asker(query, previous), None
        with closing(updates):
            for update in updates:
                if stop.is_set():
                    return None
                done, total = int(update.get("done", 0)), int(update.get("total", len(self._ids)))
                self._tell(busy=True, query=query, done=done, total=total)
                if update.get("points") is not None:
                    refines, last = last is not None, asked(self._ids, query, update, self._unit)
                    self._draw(last, refines=refines)
                    self._partial = True
        if stop.is_set():
            return None
        if last is None:
            raise ValueError("the model gave no map")
        return last

    def _keep(self, result: Asked) -> None:
        with self._guard:
            self._log = [*self._log, result][-self._logged :]
            self._at, self._partial = len(self._log) - 1, False
            self._show(False)

    def _go(self, at: int) -> None:
        with self._guard:
            self._at = min(max(at, 0), len(self._log) - 1)
            self._show()

    def _show(self, anew: bool = True, **status) -> None:
        """Bring the kept picture and the status to the browser; not `anew` means: only if something else is on the map."""
        with self._guard, self.hold_sync():
            if self._shown and (anew or self._partial):
                self._draw(self._shown)
            self._partial = False
            self._history = {"queries": [entry.query for entry in self._log], "at": self._at}
            self._tell(**status)

    def _draw(self, result: Asked, refines: bool = False) -> None:
        """Send a map; one that `refines` the map before is walked to directly, not from the start again."""
        with self._guard:
            self._picture = {**result.picture, "turn": self._picture.get("turn", 0) + 1, "refines": refines}

    def _write(self, row: int, stop: Event) -> None:
        """Have one user's answer generated and show it."""
        query = self._shown.query if self._shown else self._query
        told = {"user": row, "query": query}
        self._answer = {**told, "busy": True}
        try:
            self._answer = {**told, "text": str(self._reply(self._ids[row], query))}
        except Exception as error:
            log.exception("answering %r for %r failed", query, self._ids[row])
            self._answer = {**told, "error": f"No answer: {plain(error)}"}

    def _select(self, rows: np.ndarray) -> None:
        with self._guard:
            self._selected = rows.tobytes()
