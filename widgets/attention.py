"""The attention ledger: where the model looks when it is asked, beside what deleting each modality really does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event, RLock

import pandas as pd
from traitlets import Dict

from widgets.base import Selection, View, Worker, closing, log, plain, script, still_page
from widgets._ledger import bars, checked_ledger, packed, table

LISTED = 40  # events of one user that can be edited, the newest
NAMED = 5_000  # ids offered while one is typed
TEXT = 2_000  # characters of an event's text


@dataclass(frozen=True)
class Shown:
    """One ledger, and what is said of it."""

    ledger: pd.DataFrame
    sentence: str = ""
    caption: str = ""
    whom: str = ""  # the one user, if it is one
    edited: dict = field(default_factory=dict)  # moved, before, after

    def picture(self) -> dict:
        """Pack it for the browser."""
        said = {"sentence": self.sentence, "caption": self.caption, "whom": self.whom, "edited": self.edited}
        return {**packed(self.ledger), **said}


class AttentionLedger(View):
    """See where the model looks: modalities as rows, the attention on each beside what deleting it does to the answer.

    ask      called as `ask(query, versus, users)`; yields updates `{"done", "total", "ledger", "sentence", "caption"}`, ledger
             None or a frame `query, layer, head_group, modality, kind, slots, weight, per_token, deletion_effect, gradient,
             disagrees, agreement` and the last two `_per_token` (-1: all layers, heads). Closing the iterator cancels.
    users    a frame with a column user, or ids (default: `ask.ids`). selection: of another view; its users can be looked at.
    frame    a ledger to show at once, with sentence and caption; alone, without ask, it is a page to read.
    events   called as `events(user)`: frame event, time, modality, text (default: `ask.events`). rerun: called as
             `rerun(query, user, drop, reword)`; yields such updates, the last with moved, before, after (default: `ask.rerun`).
    query    asked when the view is first shown, against `versus` if that is given, too.

    Example:
        >>> rows = [("q", -1, -1, name, w) for name, w in (("bill", 0.3), ("sink", 0.7))]
        >>> AttentionLedger(frame=pd.DataFrame(rows, columns=["query", "layer", "head_group", "modality", "weight"]))
        AttentionLedger(query='q', 2 rows)
    """

    _esm = script("geometry.mjs", "dom.mjs", "kernel.mjs", "events.mjs", "attention.mjs")
    _css = script("lens.css", "attention.css")
    _about = Dict().tag(sync=True)  # title, queries, users, ids, can: never changes
    _picture = Dict().tag(sync=True)  # what stands in the ledger
    _status = Dict().tag(sync=True)  # busy, done, total, words, note, error
    _events = Dict().tag(sync=True)  # user, rows, total

    def __init__(
        self,
        ask: Callable[..., Iterator[dict]] | None = None,
        users: pd.DataFrame | Sequence[str] | None = None,
        *,
        frame: pd.DataFrame | None = None,
        sentence: str = "",
        caption: str = "",
        selection: Selection | None = None,
        events: Callable[[str], pd.DataFrame] | None = None,
        rerun: Callable[..., Iterator[dict]] | None = None,
        queries: Sequence[str] = (),
        query: str = "",
        versus: str = "",
        title: str = "Attention ledger",
    ):
        if ask is None and frame is None:
            raise ValueError("neither ask nor frame is given, one is needed: pass a callable, or a ledger to show")
        ids = users["user"] if isinstance(users, pd.DataFrame) else users if users is not None else getattr(ask, "ids", ())
        self._ids, self._asker, self.selection = tuple(map(str, ids)), ask, selection
        self._list, self._redo = events or getattr(ask, "events", None), rerun or getattr(ask, "rerun", None)
        self._first, self._opened, self._partial = (query.strip(), versus.strip()), False, False
        self._shown = None if frame is None else Shown(checked_ledger(frame), sentence, caption)
        # views of one selection ask one model, which serves one at a time
        self._guard, self._worker = RLock(), Worker(getattr(selection, "turn", None))
        can = {"asks": ask is not None, "edits": self._list is not None and self._redo is not None}
        queries = [str(q) for q in (queries or getattr(ask, "queries", ()))]
        named = list(self._ids) if len(self._ids) <= NAMED else []
        about = {
            "title": title,
            "queries": queries,
            "users": len(self._ids),
            "ids": named,
            **can,
            "chooses": selection is not None,
        }
        about |= {"query": self._first[0], "versus": self._first[1]}
        super().__init__(_about=about, _picture=self._drawn())
        self.on_msg(self._heard)

    def look(self, query: str, versus: str = "", users: Sequence[str] | None = None) -> str:
        """Ask `query` (against `versus`), wait, and give the sentence that says what was seen; users: ids, default all."""
        return self._aloud(self._asked(query, versus, users))

    def rerun(self, query: str, user: str, drop: Sequence[int] = (), reword: Mapping[int, str] | None = None) -> str:
        """Drop or reword events of one user, look again, wait, and give the sentence that says what it did."""
        return self._aloud(self._changed(query, str(user), drop, reword or {}))

    @property
    def ledger(self) -> pd.DataFrame:
        """Give what is shown: one row a query, layer, head_group and row."""
        return self._shown.ledger.copy() if self._shown else pd.DataFrame(columns=["query", "layer", "head_group", "modality"])

    @property
    def sentence(self) -> str:
        """Say in words what was seen."""
        return self._shown.sentence if self._shown else ""

    @property
    def edited(self) -> dict:
        """Say what the events last dropped or reworded did: moved, and the answers before and after; empty if none were."""
        return dict(self._shown.edited) if self._shown else {}

    def _words(self) -> str:
        if self._shown is None:
            return f"AttentionLedger({len(self._ids):,} users, query={self._first[0]!r})"
        queries, rows = list(dict.fromkeys(self._shown.ledger["query"])), self._shown.ledger["modality"].nunique()
        return f"AttentionLedger(query={', versus='.join(map(repr, queries))}, {rows} rows)"

    def _still(self) -> str:
        if self._shown is None:
            return still_page(self._about["title"], [f"{self!r}: run the cell to open it."])
        names = list(dict.fromkeys(self._shown.ledger["query"]))
        asked = [f"Query: {names[0]}"] if len(names) == 1 else [f"A: {names[0]}", f"B: {names[1]}"]
        lines = [*asked, self._shown.sentence, self._shown.caption]
        return still_page(self._about["title"], lines, bars(self._shown.ledger), table(self._shown.ledger))

    def _open(self) -> None:
        """Ask the first query, once, when the view is first looked at."""
        if not self._opened:
            self._opened = True
            if self._first[0] and self._asker and self._shown is None:
                self._worker.start(partial(self._work, self._asked(*self._first)))

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; anything long goes to a worker, so the kernel stays free to hear Cancel."""
        kind = message.get("type")
        if kind == "open":
            self._open()
        elif kind == "look" and self._asker:
            self._worker.start(partial(self._work, partial(self._begin, message)))
        elif kind == "rerun" and self._redo:
            reword = {int(event): str(text) for event, text in dict(message.get("reword", {})).items()}
            drop = [int(event) for event in message.get("drop", ())]
            query, user = str(message.get("query", "")), str(message.get("user", ""))
            self._worker.start(partial(self._work, self._changed(query, user, drop, reword)))
        elif kind == "cancel":
            self._worker.cancel()
            if self._status.get("busy"):
                self._tell(at_once=True, **self._status | {"words": "Cancelling"})

    # Each of these gives a job: called, it begins the work, and gives the updates and the one user, if it is one.

    def _begin(self, message: dict):
        """Read what the browser's form says, in the worker, so that what is wrong with it is said there."""
        whom, users = message.get("whom", "all"), None
        if whom == "one":
            users = [str(message.get("user", "")).strip()]
            if not users[0]:
                raise ValueError("no user is named: type an id, or look at all users")
        elif whom == "chosen":
            users = list(self.selection.ids) if self.selection is not None else []
            if not users:
                raise ValueError("nobody is chosen: draw around some users on the map, or look at all users")
        return self._asked(str(message.get("query", "")), str(message.get("versus", "")), users)()

    def _asked(self, query: str, versus: str = "", users: Sequence[str] | None = None):
        def begin():
            if self._asker is None:
                raise ValueError("there is nothing to ask: this ledger was made from a frame, pass ask to look anew")
            if not query.strip():
                raise ValueError("the query is empty: write a question, such as 'Will this user travel soon?'")
            one = str(users[0]) if users is not None and len(users) == 1 else ""
            return self._asker(query.strip(), versus.strip() or None, users), one

        return begin

    def _changed(self, query: str, user: str, drop: Sequence[int], reword: Mapping[int, str]):
        def begin():
            if self._redo is None:
                raise ValueError("events cannot be edited here: pass rerun, or an ask that has it")
            return self._redo(query.strip(), user, drop, reword), user

        return begin

    def _aloud(self, job) -> str:
        self._opened = True
        self._worker.run(partial(self._work, job, aloud=True))
        return self.sentence

    def _work(self, job, stop: Event, aloud: bool = False) -> None:
        """Look, show what comes, and keep the last; on Cancel or an error the last good ledger returns."""
        self._tell(busy=True, done=0, total=0, words="Starting")
        kept = "The ledger is as it was." if self._shown else ""
        try:
            shown = self._listen(*job(), stop)
            if shown is None:
                self._show(note=f"Cancelled. {kept}".strip())
            else:
                self._shown, self._partial = shown, True
                self._show()
        except Exception as error:
            log.exception("looking failed")
            self._show(error=f"It could not be looked at: {plain(error)}")
            if aloud:
                raise
        except BaseException:  # an interrupted cell
            self._show(note=f"Interrupted. {kept}".strip())
            raise

    def _listen(self, updates: Iterator[dict], whom: str, stop: Event) -> Shown | None:
        """Follow the updates, each ledger shown as it comes; give the last, or None if it was cancelled."""
        last = None
        with closing(updates):
            if whom and self._list:
                self._describe(whom)
            for update in updates:
                if stop.is_set():
                    return None
                words = str(update.get("sentence") or "")
                self._tell(busy=True, done=int(update.get("done", 0)), total=int(update.get("total", 0)), words=words)
                if update.get("ledger") is not None:
                    edited = {k: update[k] for k in ("moved", "before", "after") if k in update}
                    last = Shown(checked_ledger(update["ledger"]), words, str(update.get("caption") or ""), whom, edited)
                    self._draw(last)
        if stop.is_set():
            return None
        if last is None:
            raise ValueError("the model gave no ledger")
        return last

    def _describe(self, user: str) -> None:
        """Send the events of one user that can be edited, the newest first."""
        if self._events.get("user") == user:
            return
        frame = self._list(user)
        times = pd.to_datetime(frame["time"]).dt.strftime("%Y-%m-%d %H:%M")
        listed = frame.assign(time=times, text=frame["text"].astype(str).str.slice(0, TEXT)).head(LISTED)
        rows = [[int(e), t, str(m), x] for e, t, m, x in listed[["event", "time", "modality", "text"]].itertuples(index=False)]
        self._events = {"user": user, "rows": rows, "total": len(frame)}

    def _show(self, **status) -> None:
        """Bring the kept ledger and the status to the browser; the ledger only if something else may stand there."""
        with self._guard, self.hold_sync():
            if self._partial:
                self._draw(self._shown)
            self._partial = False
            self._tell(**status)

    def _draw(self, shown: Shown | None) -> None:
        with self._guard:
            self._picture = {**self._drawn(shown), "turn": self._picture.get("turn", 0) + 1}
            self._partial = True

    def _drawn(self, shown: Shown | None = None) -> dict:
        shown = shown or self._shown
        return shown.picture() if shown else {}
