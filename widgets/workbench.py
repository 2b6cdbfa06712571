"""The workbench: all views on one page, of the same users, with one selection and one session."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from threading import RLock

import ipywidgets

from widgets.base import Worker, log, plain, write_whole
from widgets.attention import AttentionLedger
from widgets.clusters import ClusterLedger
from widgets.lens import QueryLens
from widgets.query_matrix import ShiftMatrix
from widgets.prompt_tuning import PromptLab
from widgets.selection import SelectionPanel
from widgets.tour import Tour

FORMAT = 1
HINT = "Ask something on the page Ask, then press the button: who stands together before and after it, and who went where."


class Workbench(ipywidgets.VBox):
    """Have everything on one page: ask, look at a group, at many groups, at the attention, at the clusters, and tune.

    desk      what the views ask: `qanchor.Desk(engine, users)`, or any object with its attributes.
    query     asked first. session: a small JSON file that keeps the queries, the choice of users and the named groups; if it
              is there, the page opens as it was left. A session of other users is refused, and stays as it is. A new one
              begins with a tour of half a minute, which the button Tour shows again.
    The views: `lens, panel, deck, attention, clusters (once compared), lab`; all follow `selection`. They stand on the pages
    `titles`; Tab and the arrow keys reach each of them, Enter turns to it.
    """

    def __init__(self, desk, query: str = "", session: str | Path | None = None, **rest):
        kept = read_session(Path(session), tuple(desk.frame["user"].astype(str))) if session else {}
        asked = self._earlier = kept.get("queries", [])
        again = list(dict.fromkeys([*reversed(asked), *getattr(desk.ask, "queries", ())]))
        self._desk, self._session, self._guard = desk, Path(session) if session else None, RLock()
        self.lens = QueryLens(desk.frame, desk.ask, query=query or (asked[-1] if asked else ""), queries=again)
        self.selection, self.clusters = self.lens.selection, None
        can = {name: getattr(desk, name, None) for name in ("describe", "explain", "export", "facts")}
        self.panel = SelectionPanel(self.selection, **can)
        deck = getattr(desk, "deck", None)
        self.deck = ShiftMatrix(deck, selection=self.selection, pick=self.lens.start) if deck is not None else None
        self.attention = AttentionLedger(desk.look, desk.frame, selection=self.selection)
        self.lab = PromptLab(desk.tune, turn=self.selection.turn) if getattr(desk, "tune", None) else None
        self._worker, self._said, self._comparing = Worker(self.selection.turn), ipywidgets.Label(HINT), False
        self._said.add_class("bench-said")
        self._button = ipywidgets.Button(description="Compare clusters", tooltip="of the last two queries")
        self._button.on_click(lambda _: self._comparing or self._worker.start(self._compare))
        self._book = ipywidgets.VBox([ipywidgets.HBox([self._button, self._said])])
        pages = {"Ask": self.lens, "Group": self.panel, "Deck": self.deck, "Attention": self.attention}
        pages |= {"Clusters": self._book, "Tune": self.lab}
        pages = {name: view for name, view in pages.items() if view is not None}
        tabs = ipywidgets.Tab(children=list(pages.values()), titles=list(pages))
        self.titles, self._tour = tabs.titles, Tour(tabs.titles, seen=not session or bool(kept.get("toured", kept)))
        ipywidgets.jslink((self._tour, "page"), (tabs, "selected_index"))
        super().__init__(children=[self._tour, tabs], **rest)
        self.add_class("bench")
        self._restore(kept)

    def compare(self) -> ClusterLedger:
        """Compare the clusters of the last two queries (of one: with no question asked), wait, and show them."""
        self._worker.run(partial(self._compare, aloud=True))
        return self.clusters

    def _compare(self, _stop, aloud: bool = False) -> None:
        asked = ["", *self.lens.queries_asked]
        if len(asked) < 2:
            self._said.value = HINT
            return
        before, after = asked[-2:]
        self._comparing, self._said.value = True, "Clustering ..."
        try:
            told = self._desk.compare(before, after)
            if self.clusters is None:
                self.clusters = ClusterLedger(told, self._desk.frame)
                self.clusters.selection.observe(lambda rows: self.selection.take(rows))
                self._book.children = [*self._book.children, self.clusters]
            else:
                self.clusters.show(told)
            self._said.value = f"{before or 'nothing asked'} → {after}"
        except Exception as error:
            log.exception("comparing %r with %r failed", before, after)
            self._said.value = f"No clusters: {plain(error)}"
            if aloud:
                raise
        finally:
            self._comparing = False

    def save(self) -> Path:
        """Keep the session in its file; it is kept by itself whenever something was asked, chosen or named."""
        if self._session is None:
            raise ValueError("no file to keep the session in: give Workbench(..., session='mine.json')")
        queries = self._earlier = list(dict.fromkeys([*self._earlier, *self.lens.queries_asked]))
        named = {name: list(group.ids) for name, group in self.panel.named.items()}
        told = {"format": FORMAT, "queries": queries, "chosen": list(self.selection.ids), "named": named}
        told["toured"] = self._tour.seen
        if self._undealt:
            told["deck"] = self._undealt
        if self.deck:  # a group that the desk gives is known by its name
            usual = {name: tuple(ids) for name, ids in self._desk.deck.groups.items()}
            groups = {
                name: None if usual.get(name) == group.ids else list(group.ids) for name, group in self.deck.groups.items()
            }
            told["deck"] = {"queries": list(self.deck.queries), "groups": groups}
        with self._guard:
            return write_whole(self._session, json.dumps(told, indent=1) + "\n")

    def _restore(self, kept: dict) -> None:
        for name, ids in kept.get("named", {}).items():
            self.selection.ids = ids
            self.panel.save(name)
        self.selection.ids = kept.get("chosen", [])
        self._undealt = None if self.deck else kept.get("deck")  # a desk without a deck leaves it as it was
        if self.deck and "deck" in kept:
            usual, groups = self._desk.deck.groups, kept["deck"]["groups"]
            known = {name: usual.get(name) if ids is None else ids for name, ids in groups.items()}
            self.deck.deal(kept["deck"]["queries"], {name: ids for name, ids in known.items() if ids is not None})
        if self._session:
            self.selection.observe(self._keep)
            self.lens.observe(self._keep, "_history")
            self.panel.observe(self._keep, "_names")
            self._tour.observe(self._keep, "seen")
            if self.deck:
                self.deck.observe(self._keep, "_picture")

    def _keep(self, _change) -> None:
        try:
            self.save()
        except OSError as error:  # a full disk must not stop the work
            log.warning("the session was not kept: %s", error)

    def __repr__(self) -> str:
        return f"Workbench({len(self.selection.everyone):,} users: {', '.join(self.titles)})"

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        views = (self.lens, self.panel, self.deck, self.attention, self.clusters, self.lab)
        stills = (view.still().data for view in views if view is not None)
        data |= {"text/plain": repr(self), "text/html": "".join(stills)}
        return bundle


def read_session(path: Path, ids: tuple[str, ...]) -> dict:
    """Read a session that fits these users; nothing is there yet: an empty one."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        deck = kept.get("deck", {"queries": [], "groups": {}})
        groups = [kept["chosen"], *kept["named"].values(), *(ids or [] for ids in deck["groups"].values())]
        listed = all(isinstance(group, list) and all(isinstance(user, str) for user in group) for group in groups)
        if not listed:
            raise TypeError("a group is no list of user ids")
        wrong = kept["format"] != FORMAT or not all(isinstance(query, str) for query in [*kept["queries"], *deck["queries"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no session ({type(error).__name__}: {error}): name another file, or remove it") from error
    if wrong:
        raise ValueError(f"{path} is a session of format {kept['format']}, this is {FORMAT}: name another file, or remove it")
    if strangers := sorted({user for group in groups for user in group} - set(ids)):
        raise ValueError(f"{path} is of other users ({strangers[0]!r} is not among these {len(ids):,}): name another file")
    return kept
