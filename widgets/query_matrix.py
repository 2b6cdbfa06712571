"""The query matrix: questions against groups of users, a cell for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from threading import Event, RLock

import numpy as np
import pandas as pd
from traitlets import Dict

from widgets.base import (
    Group,
    Selection,
    View,
    Worker,
    closing,
    count_noun,
    error_message,
    log,
    read_static,
    unit_words,
)
from widgets.packing import json_rows
from widgets.static_html import BLUE, GRAY, INK, static_page, svg_image, truncate

MAX_SIDE = 12  # questions, and groups: more cannot be read on one page
HINT = (
    "Press “Ask all questions” to put every question to every user, and see which question tells "
    "which group."
)
NEEDED_COLUMNS = ("query", "group", "n", "auc")
SIGNIFICANCE_COLUMNS = {  # by measure: whether a cell is beyond chance
    "auc": "beyond_chance",
    "yes_score": "yes_score_beyond",
    "ratio": "ratio_beyond",
}
NEUTRAL = {"auc": 0.5, "yes_score": 0.5, "ratio": 1.0}
NAME_WIDTH = 300  # pixels of the questions in the picture
CELL_WIDTH = 58  # pixels
ROW_HEIGHT = 28  # pixels
MAX_QUERY_LENGTH = 44  # characters of a question in the picture
MAX_GROUP_LENGTH = 9  # characters of a group's name there


@dataclass
class MatrixResult:
    """The matrix of one update, and what is said about it.

    `names` are the questions and groups that the words are about; None while rows are missing, or
    after a group has changed.
    """

    frame: pd.DataFrame | None = None
    sentence: str = ""
    caption: str = ""
    reads: dict | None = None
    names: tuple[str, ...] | None = None


class QueryMatrixView(View):
    """Put questions to groups of users: a row per question, a column per group.

    Args:
        backend: Called as `backend(queries, groups)`; yields updates with `done`, `total`,
            `message`, `caption` and a dict `data`. `data["frame"]`, of the rows so far, has `query,
            group, n, auc` and, if there are any, `auc_low, auc_high, chance, beyond_chance`,
            `yes_score, yes_score_beyond`, `ratio, ratio_beyond`; `data["reads"]` says how to read
            each measure. Closing the iterator cancels the work. It has `ids`, `queries` and
            `groups` (ids by name) and, if there are any, `least`, `unit` and `units`.
        selection: The selection of another view: a click on a cell selects its group there
            (default: a selection of its own).
        on_pick: Called with the question when a cell or a question is clicked.

    Example:
        >>> from types import SimpleNamespace
        >>> class Backend:
        ...     ids, queries, groups = ("a", "b", "c"), ("Why?",), {"some": ("a",)}
        ...
        ...     def __call__(self, queries, groups):
        ...         frame = pd.DataFrame({"query": queries, "group": "some", "n": 1, "auc": 0.75})
        ...         update = SimpleNamespace(done=1, total=1, message="Told.", caption="")
        ...         update.data = {"frame": frame}
        ...         yield update
        >>> view = QueryMatrixView(Backend())
        >>> view.ask(), view
        ('Told.', QueryMatrixView(1 question x 1 group, 1 of 1 cells beyond chance))
    """

    _esm = read_static("geometry.mjs", "dom.mjs", "kernel.mjs", "query_matrix.mjs")
    _css = read_static("lens.css", "query_matrix.css")
    _about = Dict().tag(sync=True)  # title, total, min_users, units, hint: never changes
    _picture = Dict().tag(sync=True)  # queries, groups, cells, measures, orders, sentence, whole
    _status = Dict().tag(sync=True)  # busy, done, total, note, error
    _selected = Dict().tag(sync=True)  # n, group: how many are selected, and the group that this is

    def __init__(
        self,
        backend: Callable[[list[str], dict], Iterator],
        selection: Selection | None = None,
        on_pick: Callable[[str], None] | None = None,
    ):
        self._backend = backend
        self._on_pick = on_pick
        self.min_users = int(getattr(backend, "least", 1))
        if selection is None:  # an empty selection is false, too
            ids = tuple(str(user) for user in backend.ids)
            selection = Selection(ids, lambda rows: None, None, *unit_words(backend))
        self.selection = selection
        self._guard = RLock()
        self._worker = Worker(selection.turn)
        self._complete: MatrixResult | None = None  # the last matrix that was whole
        self._partial: MatrixResult | None = None  # the matrix that is on its way
        self._queries: tuple[str, ...] = ()
        self._groups: dict[str, Group] = {}
        unit, units = unit_words(backend)
        about = {
            "title": "Matrix",
            "total": len(selection.all_ids),
            "min_users": self.min_users,
            "unit": unit,
            "units": units,
            "hint": HINT,
            "picks": on_pick is not None,
        }
        super().__init__(_about=about)
        self.set_matrix(backend.queries, backend.groups)
        self.selection.observe(self._on_select)
        self.on_msg(self._on_message)
        self._on_select(self.selection.rows)

    @property
    def queries(self) -> tuple[str, ...]:
        """The questions of the matrix."""
        return self._queries

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by name."""
        return dict(self._groups)

    @property
    def table(self) -> pd.DataFrame:
        """The matrix as it is shown, one row per question and group; no rows before `ask()`."""
        shown = self._shown_frame()
        if shown is None:
            return pd.DataFrame(columns=list(NEEDED_COLUMNS))
        return shown.reset_index(drop=True)

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        return self._picture["sentence"]

    def ask(self) -> str:
        """Put all questions to all users, wait, and return what was found."""
        self._worker.run(partial(self._run, raise_errors=True))
        return self.sentence

    def set_matrix(
        self,
        queries: Iterable[str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Set other questions, other groups, or both; what is known of them stays on the page.

        Args:
            queries: The questions (default: as they are).
            groups: Ids by name (default: as they are).

        Raises:
            KeyError: If a user is unknown.
            ValueError: If there are too many, one is empty, or a group is too small or too large.
        """
        new_queries = self._queries
        if queries is not None:
            new_queries = tuple(dict.fromkeys(str(query).strip() for query in queries))
        new_groups = self._groups
        if groups is not None:
            new_groups = {}
            for name, ids in groups.items():
                name = str(name).strip()
                new_groups[name] = self._checked_group(name, getattr(ids, "ids", ids))
        check_size("questions", new_queries)
        check_size("groups", new_groups)
        with self._guard:
            changed = [name for name, old in self._groups.items() if new_groups.get(name) != old]
            for result in (self._complete, self._partial):
                if changed and result is not None and result.frame is not None:
                    result.names = None
                    result.frame = result.frame[~result.frame["group"].isin(changed)]
            self._queries = new_queries
            self._groups = new_groups
            self._show()

    def add_query(self, query: str) -> None:
        """Put one more question into the matrix."""
        self.set_matrix(queries=[*self._queries, query])

    def remove_query(self, query: str) -> None:
        """Take a question out of the matrix."""
        if query not in self._queries:
            there = ", ".join(self._queries) or "none"
            raise KeyError(f"no question “{query}” in the matrix: there are {there}")
        self.set_matrix(queries=[other for other in self._queries if other != query])

    def add_group(self, name: str, ids: Iterable[str] | None = None) -> Group:
        """Make a column of some users.

        Args:
            name: Its name; a group of that name is replaced.
            ids: The users (default: those that are selected).

        Returns:
            The group.
        """
        ids = self.selection.ids if ids is None else tuple(ids)
        self.set_matrix(groups={**self._groups, name: ids})
        return self._groups[str(name).strip()]

    def remove_group(self, name: str) -> None:
        """Take a group out of the matrix; the users stay as they are."""
        if name not in self._groups:
            there = ", ".join(self._groups) or "none"
            raise KeyError(f"no group is named “{name}”: there are {there}")
        others = {other: group for other, group in self._groups.items() if other != name}
        self.set_matrix(groups=others)

    def _checked_group(self, name: str, ids: Iterable[str]) -> Group:
        """Return a group, and refuse unknown users and groups that are too small or too large."""
        group = Group(name, tuple(dict.fromkeys(str(user) for user in ids)))
        everyone = set(self.selection.all_ids)
        for user in group.ids:
            if user not in everyone:
                view = f"the {len(everyone):,} of this view"
                raise KeyError(f"group {name!r}: user {user!r} is not among {view}")
        inside = len(group.ids)
        outside = len(everyone) - inside
        if min(inside, outside) < max(self.min_users, 1):
            words = self._about["unit"], self._about["units"]
            counts = f"{count_noun(inside, *words)} in it, {outside:,} outside"
            needed = f"at least {self.min_users} of each are needed"
            hint = "select more" if inside < outside else "select fewer"
            raise ValueError(f"group {name!r}: {counts}, {needed}: {hint}")
        return group

    def _shown_frame(self) -> pd.DataFrame | None:
        """Return the rows on their way and the kept ones, without what is no longer in the
        matrix.
        """
        frames = []
        for result in (self._partial, self._complete):
            if result is not None and result.frame is not None:
                frames.append(result.frame)
        if not frames:
            return None
        frame = pd.concat(frames, ignore_index=True).drop_duplicates(["query", "group"])
        in_matrix = frame["query"].isin(self._queries) & frame["group"].isin(list(self._groups))
        return frame[in_matrix]

    def _show(self, **status) -> None:
        """Send the matrix to the browser, and the status, if one is given."""
        with self._guard, self.hold_sync():
            frame = self._shown_frame()
            result = self._complete or self._partial or MatrixResult()
            groups = {name: group.ids for name, group in self._groups.items()}
            picture = pack_matrix(frame, self._queries, groups)
            names = self._complete.names if self._complete else None
            in_matrix = {*self._queries, *self._groups}
            is_described = bool(names) and set(names) <= in_matrix  # the words are of what is shown
            cells = len(self._queries) * len(self._groups)
            whole = frame is not None and len(frame) == cells > 0
            self._picture = {
                **picture,
                "sentence": result.sentence if is_described else "",
                "caption": result.caption if is_described else "",
                "reads": dict(result.reads or {}),
                "whole": whole,
            }
            if status:
                self._set_status(**status)

    def _summary(self) -> str:
        queries = count_noun(len(self._queries), "question", "questions")
        size = f"{queries} x {count_noun(len(self._groups), 'group', 'groups')}"
        frame = self._shown_frame()
        if frame is None or frame.empty:
            return f"QueryMatrixView({size}, not asked yet)"
        significant = int(is_significant(frame).sum())
        return f"QueryMatrixView({size}, {significant} of {len(frame)} cells beyond chance)"

    def _html(self) -> str:
        picture = self._picture
        title = self._about["title"]
        if not picture["measures"]:
            return static_page(title, [f"{self!r}: run the cell to ask.", *picture["queries"]])
        legend = (
            "Brackets: within chance. An arrow: the group leans more to yes (↑) or less (↓) than "
            "the others."
        )
        reads = picture["reads"].get("auc", "")
        lines = [picture["sentence"], reads, picture["caption"], legend]
        return static_page(title, lines, matrix_image(picture), matrix_rows(picture))

    def _on_select(self, rows: np.ndarray) -> None:
        """Tell the browser how many users are selected, and the name of the group that this is."""
        ids = set(self.selection.ids)
        with self._guard:
            name = ""
            for group in self._groups.values():
                if set(group.ids) == ids:
                    name = group.name
                    break
            self._selected = {"n": len(rows), "group": name}

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind = str(message.get("type") or "")
        query = str(message.get("query") or "")
        name = str(message.get("name") or "")
        try:
            if kind == "ask":
                self._worker.start(self._run)
            elif kind == "cancel":
                self._worker.cancel()
                if self._status.get("busy"):
                    self._set_status(at_once=True, **self._status | {"note": "Cancelling"})
            elif kind in ("add_query", "remove_query"):
                getattr(self, kind)(query)
                self._after_change(added=kind == "add_query")
            elif kind in ("add_group", "remove_group"):
                getattr(self, kind)(name)
                self._after_change(added=kind == "add_group")
            elif kind == "cell":
                self._pick_cell(query, name)
        except Exception as error:
            log.exception("%s failed", kind)
            self._set_status(at_once=True, **self._status | {"error": error_message(error)})

    def _after_change(self, added: bool) -> None:
        """Ask again: what is known takes no time, and the chance lines are those of the matrix."""
        self._on_select(self.selection.rows)
        if added or self._complete or self._status.get("busy"):
            self._worker.start(self._run)

    def _pick_cell(self, query: str, name: str) -> None:
        if name:
            self.selection.ids = self._groups[name].ids
        if query and self._on_pick:
            self._on_pick(query)

    def _run(self, stop: Event, raise_errors: bool = False) -> None:
        """Ask all questions row by row and keep it; if it fails, the last whole matrix stays."""
        queries = list(self._queries)
        groups = {name: group.ids for name, group in self._groups.items()}
        self._set_status(busy=True, done=0, total=1, note="Asking")
        try:
            if not queries or not groups:
                size = f"{len(queries)} questions, {len(groups)} groups"
                raise ValueError(f"{size}: at least one of each is needed")
            result = self._follow(queries, groups, stop)
            if result is None:
                self._drop_partial()
                suffix = " The matrix is as it was." if self._complete else ""
                self._show(note=f"Cancelled.{suffix}")
                return
            with self._guard:
                self._complete = result
                self._partial = None
            self._show(note="")
        except Exception as error:
            log.exception("asking %d questions failed", len(queries))
            self._drop_partial()
            self._show(error=f"The questions could not be asked: {error_message(error)}")
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._drop_partial()
            self._show(note="Interrupted.")
            raise

    def _drop_partial(self) -> None:
        """Drop the rows of a matrix that was broken off, unless they are all there is."""
        with self._guard:
            if self._complete:
                self._partial = None

    def _follow(self, queries: list[str], groups: dict, stop: Event) -> MatrixResult | None:
        """Show each row as it comes; return the whole matrix, or None if it was cancelled."""
        result = MatrixResult()
        rows = 0
        with closing(self._backend(queries, groups)) as updates:
            for update in updates:
                if stop.is_set():
                    return None
                message = str(update.message)
                caption = str(update.caption or "")
                result = MatrixResult(None, message, caption, update.data.get("reads"))
                frame = update.data.get("frame")
                if frame is not None:
                    result.frame = checked_matrix(frame)
                    if len(frame) != rows:
                        rows = len(frame)
                        self._partial = result
                        self._show()
                self._set_status(busy=True, done=update.done, total=update.total, note=message)
        if stop.is_set():
            return None
        if result.frame is None:
            raise ValueError("no matrix was given")
        result.names = (*queries, *groups)
        return result


def check_size(what: str, names: Iterable[str]) -> None:
    """Refuse a matrix that is too large or has an empty question or group."""
    names = list(names)
    if len(names) > MAX_SIDE:
        raise ValueError(f"{len(names)} {what}, the matrix holds {MAX_SIDE}: take one out first")
    if "" in names:
        example = "'Will this user travel soon?' or 'travellers'"
        raise ValueError(f"one of the {what} is empty: write it, such as {example}")


def checked_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a matrix with questions and groups as text, and refuse one that is not whole."""
    missing = [name for name in NEEDED_COLUMNS if name not in frame]
    if missing:
        columns = ", ".join(map(str, frame))
        hint = "give all of query_group_matrix"
        raise ValueError(f"the matrix has no column {missing[0]!r} (it has {columns}): {hint}")
    frame = frame.assign(query=frame["query"].astype(str), group=frame["group"].astype(str))
    if frame.duplicated(["query", "group"]).any():
        rows = f"{len(frame):,} rows, some question and group stand twice"
        raise ValueError(f"{rows}: give one row each")
    return frame


def pack_matrix(
    frame: pd.DataFrame | None, queries: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict:
    """Pack the cells row by row.

    Args:
        frame: One row per question and group, or None.
        queries: The rows.
        groups: The columns: ids by name.

    Returns:
        `cells` (None where nothing is known), `measures`, and `orders`: rows and columns so that
        like colors stand side by side, by measure.
    """
    known = {}
    measures = []
    if frame is not None:
        for row in json_rows(frame):
            known[row["query"], row["group"]] = row
        measures = [measure for measure in SIGNIFICANCE_COLUMNS if measure in frame]
    cells = [[known.get((query, name)) for name in groups] for query in queries]
    return {
        "queries": list(queries),
        "groups": [{"name": name, "n": len(ids)} for name, ids in groups.items()],
        "cells": cells,
        "measures": measures,
        "orders": {measure: similarity_order(cells, measure) for measure in measures},
    }


def similarity_order(cells: list[list[dict | None]], measure: str) -> dict:
    """Order rows and columns so that neighbors are alike (optimal leaf order).

    Args:
        cells: The cells, row by row.
        measure: By which value.

    Returns:
        Numbers of the `rows` and `columns`, as they were given while cells are missing.
    """
    rows = list(range(len(cells)))
    columns = list(range(len(cells[0]))) if cells else []
    missing = any(cell is None for row in cells for cell in row)
    if not rows or not columns or missing:
        return {"rows": rows, "columns": columns}
    values = pd.DataFrame([[cell[measure] for cell in row] for row in cells], dtype=float)
    table = values.fillna(NEUTRAL[measure]).to_numpy()
    return {"rows": leaf_order(table), "columns": leaf_order(table.T)}


def leaf_order(table: np.ndarray) -> list[int]:
    """Return the rows of a table in optimal leaf order, the larger values first."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(table) < 3:
        return list(range(len(table)))
    order = leaves_list(linkage(table, "average", optimal_ordering=True))
    excess = table[order].max(axis=1) - table.mean()
    half = len(order) // 2
    if excess[:half].sum() < excess[-half:].sum():
        order = order[::-1]
    return order.tolist()


def is_significant(frame: pd.DataFrame, measure: str = "auc") -> pd.Series:
    """Say which cells are beyond chance; all, where that was not worked out."""
    column = SIGNIFICANCE_COLUMNS[measure]
    if column in frame:
        return frame[column].astype(bool)
    return pd.Series(True, index=frame.index)


def matrix_rows(picture: dict) -> list[list[str]]:
    """Write the matrix in rows of words: the AUC, in brackets within chance, and an arrow."""
    head = ["question"]
    head += [f"{group['name']} (n={group['n']:,})" for group in picture["groups"]]
    rows = [head]
    for query, cells in zip(picture["queries"], picture["cells"], strict=True):
        rows.append([query, *(cell_words(cell) for cell in cells)])
    return rows


def cell_words(cell: dict | None) -> str:
    """Write one cell in words."""
    if cell is None or cell["auc"] is None:
        return ""
    text = f"{cell['auc']:.2f}"
    if not cell.get("beyond_chance", True):
        text = f"({text})"
    if cell.get("yes_score_beyond") and cell.get("yes_score") is not None:
        text += " ↑" if cell["yes_score"] > 0.5 else " ↓"
    return text


def matrix_image(picture: dict) -> str:
    """Draw the matrix: the AUC, colored where it is beyond chance.

    Args:
        picture: As `pack_matrix` returns it.

    Returns:
        HTML of an image, empty if nothing is known.
    """
    groups = picture["groups"]
    queries = picture["queries"]
    if not picture["measures"]:
        return ""
    parts = []
    for column, group in enumerate(groups):
        x = NAME_WIDTH + CELL_WIDTH * (column + 0.5)
        name = escape(truncate(group["name"], MAX_GROUP_LENGTH))
        middle = f'x="{x}" text-anchor="middle"'
        parts.append(f'<text y="26" {middle}>{name}</text>')
        parts.append(f'<text y="42" {middle} fill="{GRAY}">{group["n"]:,}</text>')
    for row, query in enumerate(queries):
        y = 52 + ROW_HEIGHT * row
        name = escape(truncate(query, MAX_QUERY_LENGTH))
        parts.append(f'<text x="8" y="{y + 18}">{name}</text>')
        for column, cell in enumerate(picture["cells"][row]):
            if cell is not None and cell["auc"] is not None:
                parts.append(cell_image(cell, NAME_WIDTH + CELL_WIDTH * column, y))
    width = NAME_WIDTH + CELL_WIDTH * len(groups) + 16
    height = 64 + ROW_HEIGHT * len(queries)
    return svg_image("".join(parts), "AUC by question and group", width, height)


def cell_image(cell: dict, x: float, y: float) -> str:
    """Draw one cell, as SVG elements."""
    strength = 0.0
    if cell.get("beyond_chance", True):
        strength = min(max(cell["auc"] - 0.5, 0) * 2.5, 1)
    ink = GRAY
    if strength > 0.6:
        ink = "#fff"
    elif strength:
        ink = INK
    size = f'width="{CELL_WIDTH - 2}" height="{ROW_HEIGHT - 2}"'
    color = f'fill="{BLUE}" fill-opacity="{strength:.2f}"'
    middle = f'x="{x + CELL_WIDTH / 2}" y="{y + 18}" text-anchor="middle"'
    return (
        f'<rect x="{x + 1}" y="{y}" {size} {color}/>'
        f'<text {middle} fill="{ink}">{cell["auc"]:.2f}</text>'
    )
