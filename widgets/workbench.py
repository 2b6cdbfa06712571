"""The workbench: all views on one screen, of the same users, with one selection and one session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

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
        layout: Further arguments of `ipywidgets.VBox`.
    """

    def __init__(self, backend, query: str = "", session: str | Path | None = None, **layout):
        self._backend = backend
        self._session_path = Path(session) if session else None
        ids = tuple(backend.frame["user"].astype(str))
        stored = read_session(self._session_path, ids) if self._session_path else {}
        self._earlier_queries = stored.get("queries", [])
        self._guard = RLock()

        self.lens = self._make_lens(query)
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
        self.matrix = QueryMatrixView(
            backend.matrix,
            selection=self.selection,
            on_pick=self.lens.start,
        )
        self.attention = AttentionView(backend.attention, backend.frame, selection=self.selection)
        self.tuning = None
        if backend.tuning is not None:
            self.tuning = PromptTuningView(backend.tuning, turn=self.selection.turn)
        self.clusters = None

        self._worker = Worker(self.selection.turn)
        self._comparing = False
        self._compare_note = ipywidgets.Label(HINT)
        self._compare_note.add_class("bench-said")
        self._compare_button = ipywidgets.Button(
            description="Compare clusters", tooltip="of the last two queries"
        )
        self._compare_button.on_click(self._on_compare)
        head = ipywidgets.HBox([self._compare_button, self._compare_note])
        self._cluster_page = ipywidgets.VBox([head])

        pages = self._pages()
        self.titles = ("Users", *pages)
        self.lens.add_class("bench-lens")
        for number, page in enumerate(pages.values(), 1):
            page.add_class("bench-page").add_class(f"bench-page-{number}")
        screen = ipywidgets.Box([self.lens, *pages.values()]).add_class("bench-screen")
        # a session from before there were tours is nobody's first use
        seen = not session or bool(stored.get("toured", stored))
        self._tour = Tour(self.titles, seen=seen)
        super().__init__(children=[self._tour, screen], **layout)
        self.add_class("bench")
        self._restore(stored)
        if self._session_path:
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
        queries = [*self._earlier_queries, *self.lens.queries_asked]
        self._earlier_queries = list(dict.fromkeys(queries))
        stored = {
            "format": FORMAT,
            "queries": self._earlier_queries,
            "chosen": list(self.selection.ids),
            "named": {name: list(group.ids) for name, group in self.panel.named.items()},
            "toured": self._tour.seen,
            "deck": self._stored_matrix(),
        }
        with self._guard:
            return atomic_write(self._session_path, json.dumps(stored, indent=1) + "\n")

    # The views

    def _make_lens(self, query: str) -> QueryLens:
        """Make the lens; earlier queries are suggested first, and the last one is asked again."""
        earlier = self._earlier_queries
        queries = [*reversed(earlier), *self._backend.lens.queries]
        queries = list(dict.fromkeys(queries))
        if not query and earlier:
            query = earlier[-1]
        return QueryLens(self._backend.frame, self._backend.lens, query=query, queries=queries)

    def _pages(self) -> dict[str, Any]:
        """Return the pages of the panel, by title; the lens has the one before them."""
        pages = {
            "Group": ipywidgets.VBox([self.panel, self.retention]),
            "Attention": self.attention,
            "Matrix": self.matrix,
            "Clusters": self._cluster_page,
        }
        if self.tuning is not None:
            pages["Tune"] = self.tuning
        return pages

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
        self.clusters.selection.observe(lambda rows: self.selection.select_rows(rows))
        self._cluster_page.children = [*self._cluster_page.children, self.clusters]

    # The session

    def _stored_matrix(self) -> dict:
        """Return the matrix as a session keeps it; of a group of the back end only the name."""
        known = self._backend.matrix.groups
        groups: dict[str, list[str] | None] = {}
        for name, group in self.matrix.groups.items():
            groups[name] = list(group.ids)
            if name in known and groups[name] == list(known[name]):
                groups[name] = None
        return {"queries": list(self.matrix.queries), "groups": groups}

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
        known = self._backend.matrix.groups
        groups = {}
        for name, ids in matrix["groups"].items():
            if ids is None:
                ids = known.get(name)
            if ids is not None:
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
        views = [self.lens, self.panel, self.matrix, self.attention, self.clusters, self.tuning]
        pages = [view.to_html().data for view in views if view is not None]
        data["text/plain"] = repr(self)
        data["text/html"] = "".join(pages)
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
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        matrix = stored.get("deck", {"queries": [], "groups": {}})
        groups = [stored["chosen"], *stored["named"].values()]
        groups += [ids or [] for ids in matrix["groups"].values()]
        users = {user for group in groups for user in group}
        is_readable = stored["format"] == FORMAT
        for text in (*stored["queries"], *matrix["queries"], *users):
            if not isinstance(text, str):
                raise TypeError(f"{text!r} is no question or user id")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        hint = "name another file, or remove it"
        raise ValueError(f"{path} is no session ({why}): {hint}") from error
    if not is_readable:
        formats = f"a session of format {stored['format']}, this is {FORMAT}"
        raise ValueError(f"{path} is {formats}: name another file, or remove it")
    strangers = sorted(users - set(ids))
    if strangers:
        who = f"{strangers[0]!r} is not among these {len(ids):,}"
        raise ValueError(f"{path} is of other users ({who}): name another file")
    return stored
