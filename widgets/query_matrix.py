"""The shift matrix: a deck of questions against groups of users, a cell for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Event, RLock

import numpy as np
import pandas as pd
from traitlets import Dict

from widgets.base import Selection, View, Worker, closing, log, plain, script, still_page
from widgets._grid import beyond, checked_matrix, heat, packed, table
from widgets._named import Group

MOST = 12  # questions, and groups: more cannot be read on one page
HINT = "Press “Ask the deck” to put every question to every user: which question tells which group is then seen at a glance."


class ShiftMatrix(View):
    """Put a deck of questions to groups of users: a row a question, a column a group, a cell what the one does to the other.

    ask        called as `ask(queries, groups)`; yields updates `{"done", "total", "sentence", "caption", "frame", "reads"}`.
               The frame, of the rows so far, has `query, group, n, auc`, and if there are any: `auc_low, auc_high, chance,
               beyond_chance`, `lean, lean_beyond`, `ratio, ratio_beyond` (see `qanchor.shift_matrix`). Closing it cancels.
    queries    the deck (default: `ask.queries`). groups: ids by name (default: `ask.groups`).
    selection  of another view: a click on a cell chooses its group there (default: its own, of `ask.ids`).
    pick       called as `pick(query)` when a cell or a question is clicked.

    Example:
        >>> class Asker:
        ...     ids, queries, groups = ("a", "b", "c"), ("Why?",), {"some": ("a",)}
        ...     def __call__(self, queries, groups):
        ...         frame = pd.DataFrame({"query": queries, "group": "some", "n": 1, "auc": 0.75})
        ...         yield {"done": 1, "total": 1, "sentence": "Told.", "frame": frame}
        >>> view = ShiftMatrix(Asker())
        >>> view.ask(), view
        ('Told.', ShiftMatrix(1 question x 1 group, 1 of 1 cells beyond luck))
    """

    _esm = script("geometry.mjs", "dom.mjs", "kernel.mjs", "query_matrix.mjs")
    _css = script("lens.css", "query_matrix.css")
    _about = Dict().tag(sync=True)  # title, total, least, most, unit, hint: never changes
    _picture = Dict().tag(sync=True)  # queries, groups, cells, measures, alike, sentence, caption, reads, whole
    _status = Dict().tag(sync=True)  # busy, done, total, note, error
    _chosen = Dict().tag(sync=True)  # n, group: who is chosen, and the group that this is

    def __init__(
        self,
        ask: Callable[[list[str], dict], Iterator[dict]],
        queries: Sequence[str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
        selection: Selection | None = None,
        pick: Callable[[str], None] | None = None,
        title: str = "Deck",
    ):
        self._asker, self._pick, self.least = ask, pick, int(getattr(ask, "least", 1))
        # an empty choice is false, too
        self.selection = Selection(tuple(map(str, ask.ids)), lambda rows: None) if selection is None else selection
        self._guard, self._worker = RLock(), Worker(self.selection.turn)
        self._kept: dict = {}  # the last update that was whole
        self._now: dict = {}  # the update on its way
        unit = str(getattr(ask, "unit", "user"))
        about = {"title": title, "total": len(self.selection.everyone), "least": self.least, "most": MOST, "unit": unit}
        super().__init__(_about={**about, "hint": HINT, "picks": pick is not None})
        self._queries: tuple[str, ...] = ()
        self._groups: dict[str, Group] = {}
        self.deal(
            getattr(ask, "queries", ()) if queries is None else queries,
            getattr(ask, "groups", {}) if groups is None else groups,
        )
        self.selection.observe(self._follow)
        self.on_msg(self._heard)
        self._follow(self.selection.rows)

    @property
    def queries(self) -> tuple[str, ...]:
        """Name the questions of the deck."""
        return self._queries

    @property
    def groups(self) -> dict[str, Group]:
        """Give the groups by name."""
        return dict(self._groups)

    @property
    def frame(self) -> pd.DataFrame:
        """Give the matrix as it is shown, one row a question and group; no rows before `ask()`."""
        shown = self._merged()
        return pd.DataFrame(columns=["query", "group", "n", "auc"]) if shown is None else shown.reset_index(drop=True)

    @property
    def sentence(self) -> str:
        """Say in words what the deck told."""
        return self._picture["sentence"]

    def ask(self) -> str:
        """Put the deck to everybody, wait, and give the sentence that says what was found."""
        self._worker.run(partial(self._work, aloud=True))
        return self.sentence

    def deal(self, queries: Iterable[str] | None = None, groups: Mapping[str, Iterable[str]] | None = None) -> None:
        """Lay another deck, other groups, or both; what is known of them stays on the page."""
        asked = self._queries if queries is None else tuple(dict.fromkeys(str(query).strip() for query in queries))
        named = self._groups
        if groups is not None:
            named = {
                str(name).strip(): self._checked(str(name).strip(), getattr(ids, "ids", ids)) for name, ids in groups.items()
            }
        for what, some in (("questions", asked), ("groups", named)):
            if len(some) > MOST:
                raise ValueError(f"{len(some)} {what}, the deck holds {MOST}: take one out first")
            if "" in some:
                raise ValueError(f"one of the {what} is empty: write it, such as 'Will this user travel soon?' or 'travellers'")
        with self._guard:
            stale = {name for name, group in self._groups.items() if named.get(name) != group}
            for told in (self._kept, self._now):
                if stale and told.get("frame") is not None:
                    told.pop("of", None)
                    told["frame"] = told["frame"][~told["frame"]["group"].isin(stale)]
            self._queries, self._groups = asked, named
            self._show()

    def add(self, query: str) -> None:
        """Put one more question into the deck."""
        self.deal(queries=[*self._queries, query])

    def drop(self, query: str) -> None:
        """Take a question out of the deck."""
        if query not in self._queries:
            raise KeyError(f"no question “{query}” in the deck: there are {', '.join(self._queries) or 'none'}")
        self.deal(queries=[other for other in self._queries if other != query])

    def name(self, name: str, ids: Iterable[str] | None = None) -> Group:
        """Make a group of some users (default: those chosen) under a name; a name that is taken is given to them anew."""
        self.deal(groups={**self._groups, name: self.selection.ids if ids is None else tuple(ids)})
        return self._groups[str(name).strip()]

    def forget(self, name: str) -> None:
        """Take a group out; the users stay as they are."""
        if name not in self._groups:
            raise KeyError(f"no group is named “{name}”: there are {', '.join(self._groups) or 'none'}")
        self.deal(groups={other: group for other, group in self._groups.items() if other != name})

    def _checked(self, name: str, ids: Iterable[str]) -> Group:
        group, everyone = Group(name, tuple(dict.fromkeys(map(str, ids)))), set(self.selection.everyone)
        if strangers := [user for user in group.ids if user not in everyone]:
            raise KeyError(f"group {name!r}: user {strangers[0]!r} is not among the {len(everyone):,} of this view")
        inside, outside = len(group.ids), len(everyone) - len(group.ids)
        if min(inside, outside) < max(self.least, 1):
            told = f"group {name!r}: {inside:,} users in it, {outside:,} outside, at least {self.least} of each are needed"
            raise ValueError(f"{told}: choose {'more' if inside < outside else 'fewer'}")
        return group

    def _merged(self) -> pd.DataFrame | None:
        """Lay what is on its way over what was there, and leave out what is no longer in the deck."""
        parts = [told["frame"] for told in (self._now, self._kept) if told.get("frame") is not None]
        if not parts:
            return None
        frame = pd.concat(parts, ignore_index=True).drop_duplicates(["query", "group"])
        return frame[frame["query"].isin(self._queries) & frame["group"].isin(list(self._groups))]

    def _show(self, **status) -> None:
        """Bring the matrix and the status to the browser."""
        with self._guard, self.hold_sync():
            frame, last = self._merged(), self._kept or self._now
            picture = packed(frame, self._queries, {name: group.ids for name, group in self._groups.items()})
            told = self._kept.get("of", ())
            keeps = told and set(told) <= {*self._queries, *self._groups}  # nothing that the words are of was taken out
            words = {name: str(last.get(name) or "") for name in ("sentence", "caption")} if keeps else {}
            whole = frame is not None and len(frame) == len(self._queries) * len(self._groups) > 0
            told = {"sentence": "", "caption": "", **words, "reads": dict(last.get("reads") or {}), "whole": whole}
            self._picture = {**picture, **told}
            if status:
                self._tell(**status)

    def _words(self) -> str:
        of = f"{_many(len(self._queries), 'question')} x {_many(len(self._groups), 'group')}"
        frame = self._merged()
        if frame is None or frame.empty:
            return f"ShiftMatrix({of}, not asked yet)"
        return f"ShiftMatrix({of}, {int(beyond(frame).sum())} of {len(frame)} cells beyond luck)"

    def _still(self) -> str:
        picture = self._picture
        if not picture["measures"]:
            return still_page(self._about["title"], [f"{self!r}: run the cell to ask.", *picture["queries"]])
        how = "Brackets: within luck. An arrow: the group leans more to yes (↑) or less (↓) than the others."
        lines = [picture["sentence"], picture["reads"].get("auc", ""), picture["caption"], how]
        return still_page(self._about["title"], lines, heat(picture), table(picture))

    def _follow(self, rows: np.ndarray) -> None:
        ids = set(self.selection.ids)
        with self._guard:
            same = [name for name, group in self._groups.items() if len(group.ids) == len(ids) and ids == set(group.ids)]
            self._chosen = {"n": len(rows), "group": same[0] if same else ""}

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind, query, name = (str(message.get(part) or "") for part in ("type", "query", "name"))
        try:
            if kind == "ask":
                self._worker.start(self._work)
            elif kind == "cancel":
                self._worker.cancel()
                if self._status.get("busy"):
                    self._tell(at_once=True, **self._status | {"note": "Cancelling"})
            elif kind in ("add", "drop", "name", "forget"):
                getattr(self, kind)(query if kind in ("add", "drop") else name)
                self._follow(self.selection.rows)
                if kind in ("add", "name") or self._kept or self._status.get("busy"):
                    self._worker.start(
                        self._work
                    )  # what is known already takes no time; the chance lines are those of the deck
            elif kind == "cell":
                self._choose(query, name)
        except Exception as error:
            log.exception("%s failed", kind)
            self._tell(at_once=True, **self._status | {"error": plain(error)})

    def _choose(self, query: str, name: str) -> None:
        if name:
            self.selection.ids = self._groups[name].ids
        if query and self._pick:
            self._pick(query)

    def _work(self, stop: Event, aloud: bool = False) -> None:
        """Ask the deck row by row, and keep it; on Cancel or an error the last whole matrix stays."""
        queries, groups = list(self._queries), {name: group.ids for name, group in self._groups.items()}
        self._tell(busy=True, done=0, total=1, note="Asking")
        try:
            if not queries or not groups:
                raise ValueError(f"{len(queries)} questions, {len(groups)} groups: at least one of each is needed")
            last = self._listen(queries, groups, stop)
            with self._guard:
                self._kept, self._now = (self._kept, self._rest()) if last is None else (last, {})
            self._show(note="" if last else f"Cancelled.{' The matrix is as it was.' if self._kept else ''}")
        except Exception as error:
            log.exception("asking a deck of %d questions failed", len(queries))
            self._now = self._rest()
            self._show(error=f"The deck could not be asked: {plain(error)}")
            if aloud:
                raise
        except BaseException:  # an interrupted cell
            self._now = self._rest()
            self._show(note="Interrupted.")
            raise

    def _rest(self) -> dict:
        """Keep the rows of a deck that was broken off only while there is no whole matrix."""
        return {} if self._kept else self._now

    def _listen(self, queries: list[str], groups: dict, stop: Event) -> dict | None:
        """Follow the updates, each new row shown as it comes; give the last, or None if it was cancelled."""
        updates, last, rows = self._asker(queries, groups), {}, 0
        with closing(updates):
            for update in updates:
                if stop.is_set():
                    return None
                last = dict(update)
                if last.get("frame") is not None:
                    last["frame"] = checked_matrix(last["frame"])
                    if len(last["frame"]) != rows:
                        rows, self._now = len(last["frame"]), last
                        self._show()
                self._tell(busy=True, done=int(last["done"]), total=int(last["total"]), note=str(last["sentence"]))
        if stop.is_set():
            return None
        if last.get("frame") is None:
            raise ValueError("no matrix was given")
        return last | {"of": (*queries, *groups)}


def _many(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
