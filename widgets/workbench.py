"""The workbench: all views on one page, of the same users, with one selection and one session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import ipywidgets

from widgets.attention import AttentionView
from widgets.base import Worker, atomic_write, count_noun, error_message, log
from widgets.clusters import ClusterView
from widgets.lens import QueryLens
from widgets.prompt_tuning import PromptTuningView
from widgets.query_matrix import QueryMatrixView
from widgets.selection import SelectionPanel
from widgets.tour import Tour

FORMAT = 1
HINT = (
    "Ask something on the page Ask, then press the button: who stands together before and after "
    "it, and who went where."
)


class Workbench(ipywidgets.VBox):
    """All views on one page: ask, look at groups, attention and clusters, and tune.

    The views are `lens`, `panel`, `matrix`, `attention`, `clusters` (once compared) and `tuning`;
    all follow `selection`. They stand on the pages `titles`; Tab and the arrow keys reach each of
    them, Enter turns to it.

    Args:
        backend: What the views ask: `qanchor.WorkbenchSession(engine, users)`, or any object with
            `frame`, `lens`, `attention`, `compare(before, after)` and, if there are any,
            `describe`, `explain`, `export`, `matrix`, `provenance`, `tuning`.
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
        self.panel = self._make_panel()
        self.matrix = self._make_matrix()
        self.attention = AttentionView(backend.attention, backend.frame, selection=self.selection)
        self.tuning = self._make_tuning()
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
        tabs = ipywidgets.Tab(children=list(pages.values()), titles=list(pages))
        self.titles = tabs.titles
        # a session from before there were tours is nobody's first use
        seen = not session or bool(stored.get("toured", stored))
        self._tour = Tour(tabs.titles, seen=seen)
        ipywidgets.jslink((self._tour, "page"), (tabs, "selected_index"))
        super().__init__(children=[self._tour, tabs], **layout)
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
        queries = dict.fromkeys([*self._earlier_queries, *self.lens.queries_asked])
        self._earlier_queries = list(queries)
        stored = {
            "format": FORMAT,
            "queries": self._earlier_queries,
            "chosen": list(self.selection.ids),
            "named": {name: list(group.ids) for name, group in self.panel.named.items()},
            "toured": self._tour.seen,
        }
        if self.matrix:
            stored["deck"] = self._stored_matrix()
        elif self._unused_matrix:
            stored["deck"] = self._unused_matrix
        with self._guard:
            return atomic_write(self._session_path, json.dumps(stored, indent=1) + "\n")

    # The views

    def _make_lens(self, query: str) -> QueryLens:
        """Make the lens; earlier queries are suggested first, and the last one is asked again."""
        earlier = self._earlier_queries
        suggested = getattr(self._backend.lens, "queries", ())
        queries = list(dict.fromkeys([*reversed(earlier), *suggested]))
        if not query and earlier:
            query = earlier[-1]
        return QueryLens(self._backend.frame, self._backend.lens, query=query, queries=queries)

    def _make_panel(self) -> SelectionPanel:
        names = ("describe", "explain", "export", "provenance")
        callables = {name: getattr(self._backend, name, None) for name in names}
        return SelectionPanel(self.selection, **callables)

    def _make_matrix(self) -> QueryMatrixView | None:
        backend = getattr(self._backend, "matrix", None)
        if backend is None:
            return None
        return QueryMatrixView(backend, selection=self.selection, on_pick=self.lens.start)

    def _make_tuning(self) -> PromptTuningView | None:
        backend = getattr(self._backend, "tuning", None)
        return None if backend is None else PromptTuningView(backend, turn=self.selection.turn)

    def _pages(self) -> dict[str, Any]:
        """Return the pages that there are, by title."""
        pages = {
            "Ask": self.lens,
            "Group": self.panel,
            "Matrix": self.matrix,
            "Attention": self.attention,
            "Clusters": self._cluster_page,
            "Tune": self.tuning,
        }
        return {title: view for title, view in pages.items() if view is not None}

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
        known = {name: tuple(ids) for name, ids in self._backend.matrix.groups.items()}
        groups: dict[str, list[str] | None] = {}
        for name, group in self.matrix.groups.items():
            groups[name] = None if known.get(name) == group.ids else list(group.ids)
        return {"queries": list(self.matrix.queries), "groups": groups}

    def _restore(self, stored: dict) -> None:
        """Set the groups, the selection and the matrix of a session."""
        for name, ids in stored.get("named", {}).items():
            self.selection.ids = ids
            self.panel.save(name)
        self.selection.ids = stored.get("chosen", [])
        matrix = stored.get("deck")
        self._unused_matrix = None if self.matrix else matrix  # without a matrix it stays as it was
        if self.matrix is None or matrix is None:
            return
        known = self._backend.matrix.groups
        groups = {}
        for name, ids in matrix["groups"].items():
            ids = known.get(name) if ids is None else ids
            if ids is not None:
                groups[name] = ids
        self.matrix.set_matrix(matrix["queries"], groups)

    def _observe_changes(self) -> None:
        """Save the session whenever something changes that it keeps."""
        self.selection.observe(self._save_quietly)
        self.lens.observe(self._save_quietly, "_history")
        self.panel.observe(self._save_quietly, "_names")
        self._tour.observe(self._save_quietly, "seen")
        if self.matrix:
            self.matrix.observe(self._save_quietly, "_picture")

    def _save_quietly(self, _change) -> None:
        try:
            self.save()
        except OSError as error:  # a full disk must not stop the work
            log.warning("the session was not kept: %s", error)

    def __repr__(self) -> str:
        selection = self.selection
        users = count_noun(len(selection.all_ids), selection.unit, selection.units)
        return f"Workbench({users}: {', '.join(self.titles)})"

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        views = (
            self.lens,
            self.panel,
            self.matrix,
            self.attention,
            self.clusters,
            self.tuning,
        )
        data["text/plain"] = repr(self)
        data["text/html"] = "".join(view.to_html().data for view in views if view is not None)
        return bundle


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
        groups = session_groups(stored)
        right_format = has_right_format(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        hint = "name another file, or remove it"
        raise ValueError(f"{path} is no session ({why}): {hint}") from error
    if not right_format:
        formats = f"a session of format {stored['format']}, this is {FORMAT}"
        raise ValueError(f"{path} is {formats}: name another file, or remove it")
    users = {user for group in groups for user in group}
    strangers = sorted(users - set(ids))
    if strangers:
        who = f"{strangers[0]!r} is not among these {len(ids):,}"
        raise ValueError(f"{path} is of other users ({who}): name another file")
    return stored


def session_groups(stored: dict) -> list[list[str]]:
    """Return every list of users in a session, and refuse what is none."""
    matrix = stored.get("deck", {"queries": [], "groups": {}})
    groups = [stored["chosen"], *stored["named"].values()]
    groups += [ids or [] for ids in matrix["groups"].values()]
    for group in groups:
        if not isinstance(group, list) or not all(isinstance(user, str) for user in group):
            raise TypeError("a group is no list of user ids")
    return groups


def has_right_format(stored: dict) -> bool:
    """Whether a session has the format that this version reads."""
    matrix = stored.get("deck", {"queries": []})
    queries = [*stored["queries"], *matrix["queries"]]
    return stored["format"] == FORMAT and all(isinstance(query, str) for query in queries)
