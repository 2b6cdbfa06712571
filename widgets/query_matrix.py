"""The query matrix: questions against groups of users, a cell for each pair."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Dict

from qanchor.widgets.base import (
    Group,
    Selection,
    View,
    closing,
    count_noun,
    error_message,
    log,
    read_static,
    unit_words,
    until_cancelled,
)
from qanchor.widgets.packing import json_rows
from qanchor.widgets.static_html import BLUE, GRAY, INK, static_page, svg_image, truncate

MAX_SIDE = 12  # questions, and groups: more cannot be read on one page
HINT = (
    "Press “Ask all questions” to put every question to every user, and see which question tells "
    "which group."
)
Queries = tuple[str, ...]
TITLE = "Matrix"
LEGEND = (
    "Brackets: within chance. An arrow: the group leans more to yes (↑) or less (↓) than "
    "the others."
)
TABLE_COLUMNS = ["query", "group", "n", "auc"]
NAME_WIDTH = 300  # pixels of the questions in the picture
CELL_WIDTH = 58  # pixels
ROW_HEIGHT = 28  # pixels
MAX_QUERY_LENGTH = 44  # characters of a question in the picture
MAX_GROUP_LENGTH = 9  # characters of a group's name there
NEUTRAL = {"auc": 0.5, "yes_score": 0.5, "ratio": 1.0}  # what says nothing, by measure


class QueryMatrixView(View):
    """Put questions to groups of users: a row per question, a column per group.

    Args:
        backend: Called as `backend(queries, groups)`; yields updates with `done`, `total`,
            `message`, `caption` and a dict `data`. `data["frame"]`, of the rows so far, has `query,
            group, n, auc, beyond_chance` and, if there are any, `auc_low, auc_high, chance`,
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
        ...         data = {"frame": frame.assign(beyond_chance=True), "reads": {}}
        ...         yield SimpleNamespace(done=1, total=1, message="Told.", caption="", data=data)
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
        self._min_users = getattr(backend, "least", 1)
        if selection is None:  # an empty selection is false, too
            ids = tuple(backend.ids)
            selection = Selection(ids, lambda rows: None, None, *unit_words(backend))
        self.selection = selection
        self._queries: Queries = ()
        self._groups: dict[str, Group] = {}
        self._cells: dict[tuple[str, str], tuple[Group, dict]] = {}  # by question and name
        self._reads: dict[str, str] = {}  # how to read each measure
        self._answer = None  # the update that completed the last matrix
        self._asked: tuple[Queries, dict[str, Group]] = ((), {})  # what that one is about
        about = {
            "title": TITLE,
            "total": len(selection.all_ids),
            "min_users": self._min_users,
            "unit": selection.unit,
            "units": selection.units,
            "hint": HINT,
            "picks": on_pick is not None,
        }
        super().__init__(selection.turn, _about=about)
        self.set_matrix(backend.queries, backend.groups)
        selection.observe(self._on_select)

    @property
    def queries(self) -> Queries:
        """The questions of the matrix."""
        return self._queries

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by name."""
        return dict(self._groups)

    @property
    def table(self) -> pd.DataFrame:
        """The matrix as it is shown, one row per question and group; no rows before `ask()`."""
        rows = []
        for query in self._queries:
            for name, group in self._groups.items():
                asked_group, row = self._cells.get((query, name), (None, None))
                if asked_group == group:
                    rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else TABLE_COLUMNS)

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
            stripped = [str(query).strip() for query in queries]
            new_queries = tuple(dict.fromkeys(stripped))
        new_groups = self._groups
        if groups is not None:
            new_groups = {}
            for name, ids in groups.items():
                group = self._checked_group(name, ids)
                new_groups[group.name] = group
        check_size("questions", new_queries)
        check_size("groups", new_groups)
        with self._guard:
            self._queries = new_queries
            self._groups = new_groups
            self._show()
            self._on_select(self.selection.rows)

    def add_query(self, query: str) -> None:
        """Put one more question into the matrix."""
        self.set_matrix(queries=[*self._queries, query])

    def remove_query(self, query: str) -> None:
        """Take a question out of the matrix."""
        if query not in self._queries:
            there = ", ".join(self._queries) or "none"
            raise KeyError(f"no question “{query}” in the matrix: there are {there}")
        queries = [other for other in self._queries if other != query]
        self.set_matrix(queries)

    def add_group(self, name: str, ids: Iterable[str] | None = None) -> Group:
        """Make a column of some users.

        Args:
            name: Its name; a group of that name is replaced.
            ids: The users (default: those that are selected).

        Returns:
            The group.
        """
        if ids is None:
            ids = self.selection.ids
        group = self._checked_group(name, ids)
        self.set_matrix(groups={**self._groups, group.name: group})
        return group

    def remove_group(self, name: str) -> None:
        """Take a group out of the matrix; the users stay as they are."""
        if name not in self._groups:
            there = ", ".join(self._groups) or "none"
            raise KeyError(f"no group is named “{name}”: there are {there}")
        groups = self.groups
        del groups[name]
        self.set_matrix(groups=groups)

    def _checked_group(self, name: str, ids: Group | Iterable[str]) -> Group:
        """Return a group, and refuse unknown users and groups that are too small or too large."""
        ids = getattr(ids, "ids", ids)
        unique_ids = dict.fromkeys(map(str, ids))
        group = Group(str(name).strip(), tuple(unique_ids))
        where = f"group {group.name!r}"
        everyone = self.selection.all_ids
        strangers = unique_ids.keys() - set(everyone)
        if strangers:
            stranger = min(strangers)
            view = f"the {len(everyone):,} of this view"
            raise KeyError(f"{where}: user {stranger!r} is not among {view}")
        inside = len(unique_ids)
        outside = len(everyone) - inside
        if min(inside, outside) < self._min_users:
            users = self.selection.count(inside)
            counts = f"{users} in it, {outside:,} outside"
            needed = f"at least {self._min_users} of each are needed"
            hint = "select more" if inside < outside else "select fewer"
            raise ValueError(f"{where}: {counts}, {needed}: {hint}")
        return group

    def _show(self, **status) -> None:
        """Send the matrix to the browser, and the status, if one is given."""
        with self._guard, self.hold_sync():
            words = {"sentence": "", "caption": "", "reads": self._reads}
            if self._is_answered():
                words["sentence"] = self._answer.message
                words["caption"] = self._answer.caption
            packed = pack_matrix(self.table, self._queries, self._groups)
            self._picture = packed | words
            if status:
                self._set_status(**status)

    def _show_end(self, how: str) -> None:
        suffix = " The matrix is as it was." if self._answer else ""
        self._show(note=f"{how}.{suffix}")

    def _summary(self) -> str:
        queries = count_noun(len(self._queries), "question", "questions")
        groups = count_noun(len(self._groups), "group", "groups")
        frame = self.table
        if frame.empty:
            told = "not asked yet"
        else:
            significant = frame["beyond_chance"].sum()
            told = f"{significant} of {len(frame)} cells beyond chance"
        return f"QueryMatrixView({queries} x {groups}, {told})"

    def _html(self) -> str:
        picture = self._picture
        if not picture["measures"]:
            hint = f"{self!r}: run the cell to ask."
            return static_page(TITLE, [hint, *picture["queries"]])
        reads = picture["reads"].get("auc")
        lines = [picture["sentence"], reads, picture["caption"], LEGEND]
        return static_page(TITLE, lines, matrix_image(picture), matrix_rows(picture))

    def _on_select(self, rows: np.ndarray) -> None:
        """Tell the browser how many users are selected, and the name of the group that this is."""
        ids = set(self.selection.ids)
        same = ""
        for group in self._groups.values():
            if set(group.ids) == ids:
                same = group.name
                break
        with self._guard:
            self._selected = {"n": len(rows), "group": same}

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind = message.get("type")
        query = message.get("query", "")
        name = message.get("name", "")
        try:
            if kind == "ask":
                self._worker.start(self._run)
            elif kind == "cancel":
                self._worker.cancel()
                self._add_to_status(note="Cancelling")
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
        if added or self._answer or self._status.get("busy"):
            self._worker.start(self._run)

    def _pick_cell(self, query: str, name: str) -> None:
        if name:
            self.selection.ids = self._groups[name].ids
        if query and self._on_pick:
            self._on_pick(query)

    def _run(self, stop: Event, raise_errors: bool = False) -> None:
        """Ask all questions row by row and keep it; if it fails, the last whole matrix stays."""
        queries = self._queries
        groups = self._groups
        known_cells = dict(self._cells)
        self._set_status(busy=True, done=0, total=1, note="Asking")
        with self._showing_failure("The questions could not be asked", raise_errors):
            if not queries or not groups:
                size = f"{len(queries)} questions, {len(groups)} groups"
                raise ValueError(f"{size}: at least one of each is needed")
            try:
                answer = self._follow(queries, groups, stop)
            except BaseException:
                if self._answer is not None:  # else the rows so far are all there is
                    self._cells = known_cells
                raise
            self._asked = (queries, groups)
            self._answer = answer
            self._show(note="")

    def _follow(self, queries: Queries, groups: Mapping[str, Group], stop: Event) -> Any:
        """Show each row as it comes; return the last update."""
        ids = {name: group.ids for name, group in groups.items()}
        with closing(self._backend(list(queries), ids)) as updates:
            for update in until_cancelled(updates, stop):
                if update.data["frame"] is not None:
                    self._reads = update.data["reads"]
                    for row in update.data["frame"].to_dict("records"):
                        name = row["group"]
                        self._cells[row["query"], name] = (groups[name], row)
                    self._show()
                note = update.message
                self._set_status(busy=True, done=update.done, total=update.total, note=note)
        return update

    def _is_answered(self) -> bool:
        """Whether all that the last answer is about is still in the matrix."""
        queries, groups = self._asked
        if self._answer is None or not set(queries) <= set(self._queries):
            return False
        return groups.items() <= self._groups.items()


def check_size(what: str, names: Collection[str]) -> None:
    """Refuse a matrix that is too large or has an empty question or group."""
    if len(names) > MAX_SIDE:
        raise ValueError(f"{len(names)} {what}, the matrix holds {MAX_SIDE}: take one out first")
    if "" in names:
        example = "'Will this user travel soon?' or 'travellers'"
        raise ValueError(f"one of the {what} is empty: write it, such as {example}")


def pack_matrix(frame: pd.DataFrame, queries: Sequence[str], groups: Mapping[str, Group]) -> dict:
    """Pack the cells row by row.

    Args:
        frame: One row per question and group that was asked.
        queries: The rows.
        groups: The columns, by name.

    Returns:
        `cells` (None where nothing is known), `measures`, whether all cells are known (`whole`) and
        then `orders`: rows and columns so that like colors stand side by side, by measure.
    """
    known = {}
    for cell in json_rows(frame):
        known[cell["query"], cell["group"]] = cell
    heads = []
    for name, group in groups.items():
        heads.append({"name": name, "n": len(group.ids)})
    cells = []
    for query in queries:
        row = [known.get((query, name)) for name in groups]
        cells.append(row)
    measures = []
    if known:
        measures = [measure for measure in NEUTRAL if measure in frame]
    n_cells = len(queries) * len(groups)
    whole = 0 < len(known) == n_cells
    orders = {}
    if whole:
        for measure in measures:
            orders[measure] = similarity_order(cell_values(cells, measure))
    return {
        "queries": list(queries),
        "groups": heads,
        "cells": cells,
        "measures": measures,
        "orders": orders,
        "whole": whole,
    }


def cell_values(cells: list[list[dict]], measure: str) -> np.ndarray:
    """Return one measure of all cells; what is unknown says nothing."""
    values = []
    for row in cells:
        values.append([cell[measure] for cell in row])
    table = np.array(values, dtype=float)
    unknown = np.isnan(table)
    table[unknown] = NEUTRAL[measure]
    return table


def similarity_order(table: np.ndarray) -> dict:
    """Order the rows and columns of a table so that neighbors are alike."""
    return {
        "rows": leaf_order(table),
        "columns": leaf_order(table.T),
    }


def leaf_order(table: np.ndarray) -> list[int]:
    """Return the rows of a table in optimal leaf order, the larger values first."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(table) < 3:
        return list(range(len(table)))
    tree = linkage(table, "average", optimal_ordering=True)
    order = leaves_list(tree)
    largest = table[order].max(axis=1)
    half = len(order) // 2
    first_half = largest[:half].sum()
    second_half = largest[-half:].sum()
    if first_half < second_half:
        order = order[::-1]
    return order.tolist()


def matrix_rows(picture: dict) -> list[list[str]]:
    """Write the matrix in rows of words: the AUC, in brackets within chance, and an arrow."""
    head = ["question"]
    for group in picture["groups"]:
        name = group["name"]
        n_users = group["n"]
        head.append(f"{name} (n={n_users:,})")
    rows = [head]
    for query, cells in zip(picture["queries"], picture["cells"], strict=True):
        row = [query]
        row.extend(map(cell_words, cells))
        rows.append(row)
    return rows


def cell_words(cell: dict | None) -> str:
    """Write one cell in words."""
    if cell is None or cell["auc"] is None:
        return ""
    text = f"{cell['auc']:.2f}"
    if not cell["beyond_chance"]:
        text = f"({text})"
    if cell.get("yes_score_beyond") and cell["yes_score"] is not None:
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
        number = f"{group['n']:,}"
        middle = f'x="{x}" text-anchor="middle"'
        parts.append(f'<text y="26" {middle}>{name}</text>')
        parts.append(f'<text y="42" {middle} fill="{GRAY}">{number}</text>')
    for row, query in enumerate(queries):
        y = 52 + ROW_HEIGHT * row
        name = escape(truncate(query, MAX_QUERY_LENGTH))
        parts.append(f'<text x="8" y="{y + 18}">{name}</text>')
        for column, cell in enumerate(picture["cells"][row]):
            x = NAME_WIDTH + CELL_WIDTH * column
            if cell is not None and cell["auc"] is not None:
                parts.append(cell_image(cell, x, y))
    width = NAME_WIDTH + CELL_WIDTH * len(groups) + 16
    height = 64 + ROW_HEIGHT * len(queries)
    return svg_image("".join(parts), "AUC by question and group", width, height)


def cell_image(cell: dict, x: float, y: float) -> str:
    """Draw one cell, as SVG elements."""
    strength = 0.0
    if cell["beyond_chance"]:
        strength = min(max(cell["auc"] - 0.5, 0) * 2.5, 1)
    ink = GRAY
    if strength > 0.6:
        ink = "#fff"
    elif strength:
        ink = INK
    size = f'width="{CELL_WIDTH - 2}" height="{ROW_HEIGHT - 2}"'
    color = f'fill="{BLUE}" fill-opacity="{strength:.2f}"'
    center = x + CELL_WIDTH / 2
    middle = f'x="{center}" y="{y + 18}" text-anchor="middle"'
    return (
        f'<rect x="{x + 1}" y="{y}" {size} {color}/>'
        f'<text {middle} fill="{ink}">{cell["auc"]:.2f}</text>'
    )
