"""The workbench: all views on one screen, of the same users, with one selection and one session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import RLock

import ipywidgets

from qanchor.widgets.attention import AttentionView
from qanchor.widgets.base import Worker, atomic_write, error_message, log
from qanchor.widgets.clusters import ClusterView
from qanchor.widgets.lens import QueryLens
from qanchor.widgets.prompt_tuning import PromptTuningView
from qanchor.widgets.query_matrix import QueryMatrixView
from qanchor.widgets.retention import RetentionView
from qanchor.widgets.selection import SelectionPanel
from qanchor.widgets.tour import Tour

FORMAT = 1
HINT = "Ask something, then press the button: see which clusters it forms, splits or merges."


class Workbench(ipywidgets.VBox):
    """All views on one screen: the map of the users stays, a panel beside it has the other views.

    The views are `lens`, `panel`, `retention`, `attention`, `matrix`, `clusters` (once compared)
    and `tuning`; all follow `selection`. The panel has the pages `titles`, first the list of the
    users and the card of one; Tab and the arrow keys reach each of them, Enter turns to it. Where
    there is no room beside the map, the panel stands under it.

    Args:
        backend: What the views ask: `qanchor.WorkbenchSession(engine, users)`, or any object with
            its attributes `frame`, `lens`, `describe`, `explain`, `export`, `provenance`,
            `retention`, `funnel`, `steps` (examples for a funnel), `matrix`, `attention`,
            `compare(before, after)` and `tuning` (None if there are no labels).
        query: Asked first.
        session: A small JSON file that keeps the queries, the selection and the named groups
            (default: nothing is kept). If it is there, the page opens as it was left. A session of
            other users is refused, and stays as it is. A new one begins with a tour of half a
            minute, which the button Tour shows again.
    """

    def __init__(self, backend, query: str = "", session: str | Path | None = None):
        self._backend = backend
        self._session_path = Path(session) if session else None
        ids = tuple(backend.frame["user"].astype(str))
        stored = read_session(self._session_path, ids) if session else {}
        self._earlier_queries = stored.get("queries", [])
        self._guard = RLock()
        self._make_views(query)
        self._make_cluster_page()
        pages = {
            "Group": ipywidgets.VBox([self.panel, self.retention]),
            "Attention": self.attention,
            "Matrix": self.matrix,
            "Clusters": self._cluster_page,
        }
        if self.tuning is not None:
            pages["Tune"] = self.tuning
        self.titles = ("Users", *pages)
        for number, page in enumerate(pages.values(), 1):
            page.add_class("bench-page").add_class(f"bench-page-{number}")
        # a session from before there were tours is nobody's first use
        seen = not session or bool(stored.get("toured", stored))
        self._tour = Tour(self.titles, seen=seen)
        screen = ipywidgets.Box([self.lens, *pages.values()])
        screen.add_class("bench-screen")
        super().__init__([self._tour, screen])
        self.add_class("bench")
        self._restore(stored)
        if session:
            self._observe_changes()

    def compare(self) -> ClusterView:
        """Compare the clusters of the last two queries, wait, and return the view of them.

        After one query only, it is compared with no query.
        """
        self._worker.run(partial(self._compare, raise_errors=True))
        return self.clusters

    def save(self) -> Path:
        """Write the session to its file; this happens after every query, selection and name.

        Returns:
            The file.

        Raises:
            ValueError: If there is no file.
        """
        if self._session_path is None:
            hint = "give Workbench(..., session='mine.json')"
            raise ValueError(f"no file to keep the session in: {hint}")
        queries = dict.fromkeys([*self._earlier_queries, *self.lens.queries_asked])
        self._earlier_queries = list(queries)
        stored = {
            "format": FORMAT,
            "queries": self._earlier_queries,
            "chosen": self.selection.ids,
            "named": {name: group.ids for name, group in self.panel.named.items()},
            "toured": self._tour.seen,
            "deck": self._stored_matrix(),
        }
        with self._guard:
            return atomic_write(self._session_path, json.dumps(stored, indent=1) + "\n")

    # The views

    def _make_views(self, query: str) -> None:
        """Make all views but the clusters, which need two queries."""
        backend = self._backend
        self.lens = self._make_lens(query)
        self.lens.add_class("bench-lens")
        self.selection = self.lens.selection
        self.panel = SelectionPanel(
            self.selection,
            backend.describe,
            backend.explain,
            backend.export,
            backend.provenance,
        )
        self.retention = RetentionView(
            self.selection, backend.retention, backend.funnel, backend.steps
        )
        self.matrix = QueryMatrixView(backend.matrix, self.selection, self.lens.start)
        self.attention = AttentionView(backend.attention, backend.frame, selection=self.selection)
        self.tuning = None
        if backend.tuning is not None:
            self.tuning = PromptTuningView(backend.tuning, turn=self.selection.turn)

    def _make_lens(self, query: str) -> QueryLens:
        """Make the lens; earlier queries are suggested first, and the last one is asked again."""
        earlier = self._earlier_queries[::-1]
        if not query and earlier:
            query = earlier[0]
        backend = self._backend.lens
        queries = dict.fromkeys([*earlier, *backend.queries])
        return QueryLens(self._backend.frame, backend, queries=list(queries), query=query)

    def _make_cluster_page(self) -> None:
        """Make the page of the clusters; `compare` puts their view on it."""
        self.clusters = None
        self._comparing = False
        self._worker = Worker(self.selection.turn)
        self._compare_note = ipywidgets.Label(HINT)
        self._compare_note.add_class("bench-said")
        self._compare_button = ipywidgets.Button(
            description="Compare clusters", tooltip="of the last two queries"
        )
        self._compare_button.on_click(self._on_compare)
        head = ipywidgets.HBox([self._compare_button, self._compare_note])
        self._cluster_page = ipywidgets.VBox([head])

    # Clusters

    def _on_compare(self, _button) -> None:
        if not self._comparing:
            self._worker.start(self._compare)

    def _compare(self, _stop, raise_errors: bool = False) -> None:
        """Compare the clusters of the last two queries and show them."""
        queries = ["", *self.lens.queries_asked]
        if len(queries) < 2:
            self._compare_note.value = HINT
            return
        before, after = queries[-2:]
        self._comparing = True
        self._compare_note.value = "Clustering ..."
        try:
            self._show_clusters(self._backend.compare(before, after))
            self._compare_note.value = f"{before or 'nothing asked'} → {after}"
        except Exception as error:
            log.exception("comparing %r with %r failed", before, after)
            self._compare_note.value = f"No clusters: {error_message(error)}"
            if raise_errors:
                raise
        finally:
            self._comparing = False

    def _show_clusters(self, comparison: Mapping) -> None:
        if self.clusters is not None:
            self.clusters.show(comparison)
            return
        self.clusters = ClusterView(comparison, self._backend.frame)
        self.clusters.selection.observe(self.selection.select_rows)
        self._cluster_page.children += (self.clusters,)

    # The session

    def _stored_matrix(self) -> dict:
        """Return the matrix as a session keeps it; of a group of the back end only the name."""
        known = self._backend.matrix.groups
        groups = {}
        for name, group in self.matrix.groups.items():
            groups[name] = group.ids
            if group.ids == tuple(known.get(name, ())):
                groups[name] = None
        return {"queries": self.matrix.queries, "groups": groups}

    def _restore(self, stored: dict) -> None:
        """Set the groups, the selection and the matrix of a session."""
        for name, ids in stored.get("named", {}).items():
            self.selection.ids = ids
            self.panel.save(name)
        self.selection.ids = stored.get("chosen", [])
        self.selection.forget_changes()
        matrix = stored.get("deck")
        if matrix is None:
            return
        groups = {}
        known = self._backend.matrix.groups
        for name, ids in matrix["groups"].items():
            ids = ids or known.get(name)
            if ids:
                groups[name] = ids
        self.matrix.set_matrix(matrix["queries"], groups)

    def _observe_changes(self) -> None:
        """Save the session whenever something changes that it keeps."""
        self.selection.observe(self._save_quietly)
        self.lens.observe(self._save_quietly, "_history")
        self.panel.observe(self._save_quietly, "_names")
        self.matrix.observe(self._save_quietly, "_picture")
        self._tour.observe(self._save_quietly, "seen")

    def _save_quietly(self, _change) -> None:
        try:
            self.save()
        except OSError as error:  # a full disk must not stop the work
            log.warning("the session was not kept: %s", error)

    def __repr__(self) -> str:
        users = self.selection.count(len(self.selection.all_ids))
        titles = ", ".join(self.titles)
        return f"Workbench({users}: {titles})"

    def _repr_mimebundle_(self, **kwargs):
        data = super()._repr_mimebundle_(**kwargs)
        html = ""
        for view in (
            self.lens,
            self.panel,
            self.matrix,
            self.attention,
            self.clusters,
            self.tuning,
        ):
            if view is not None:
                html += view.to_html().data
        data["text/plain"] = repr(self)
        data["text/html"] = html
        return data


def read_session(path: Path, ids: tuple[str, ...]) -> dict:
    """Read a session of these users.

    Args:
        path: The file.
        ids: The users.

    Returns:
        What it keeps; empty if there is no file.

    Raises:
        ValueError: If the file is no session, of another format, or of other users.
    """
    if not path.exists():
        return {}
    hint = "name another file"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored["format"]
        users = stored_users(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no session ({why}): {hint}, or remove it") from error
    if version != FORMAT:
        formats = f"a session of format {version}, this is {FORMAT}"
        raise ValueError(f"{path} is {formats}: {hint}, or remove it")
    strangers = users.difference(ids)
    if strangers:
        who = f"{min(strangers)!r} is not among these {len(ids):,}"
        raise ValueError(f"{path} is of other users ({who}): {hint}")
    return stored


def stored_users(stored: dict) -> set[str]:
    """Return the users that a session names; what is no session raises."""
    matrix = stored.get("deck", {"queries": [], "groups": {}})
    named = stored["named"].values()
    columns = filter(None, matrix["groups"].values())
    users = set().union(stored["chosen"], *named, *columns)
    queries = [*stored["queries"], *matrix["queries"]]
    for text in (*queries, *users):
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no question or user id")
    return users
