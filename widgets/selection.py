"""The selection panel: who is selected, what sets them apart, and which question tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Dict, List

from qanchor.widgets.base import (
    GROUP_OPERATIONS,
    Group,
    Ids,
    Selection,
    View,
    Worker,
    closing,
    combine_groups,
    error_message,
    log,
    read_static,
    until_cancelled,
    unused_path,
)
from qanchor.widgets.packing import json_rows
from qanchor.widgets.result_card import ResultCard
from qanchor.widgets.static_html import BLUE, GRAY, INK, static_page, svg_image, truncate

TITLE = "Selection"
MIN_USERS = 10  # groups of fewer are neither written to a file nor made into a card
MAX_LISTED = 14  # rows of the comparison that are sent, of each kind
MAX_DRAWN = 8  # rows of a picture
MAX_NAME_LENGTH = 37  # characters of a name in a sentence or picture
DESCRIPTION_COLUMNS = ["kind", "name", "group", "group_low", "group_high"]
DESCRIPTION_COLUMNS += ["rest", "rest_low", "rest_high"]
RANKING_COLUMNS = ["query", "auc", "auc_low", "auc_high", "chance"]
SIDES = (("group", BLUE, "selected"), ("rest", GRAY, "the rest"))
QUESTION_SIDES = (("auc", BLUE, "AUC"), ("chance", GRAY, "by chance"))
KIND_NAMES = {"text": "event", "number": "median"}  # what these rows show
QUIET = "#5f6873"
WIDTH = 640  # pixels of a picture
NAME_WIDTH = 250  # pixels of the names in it
LEGEND_PITCH = 76  # pixels from one entry of the legend to the next
BAR_PITCH = 40  # pixels from row to row
SIDE_PITCH = 13  # pixels between the two bars of a row


class SelectionPanel(View):
    """Show who is selected, what sets them apart from the rest, and which question tells them.

    Args:
        selection: The selection of a view, as `lens.selection`; the panel follows and sets it.
        describe: Called as `describe(ids)` if some users are selected but not all, returns an
            update: its `message` says how many are selected and what sets them apart;
            `data["frame"]` is a frame, the most telling row first: `kind, name, group, rest`, their
            bounds `group_low` ... `rest_high`, `low` and `high` (the bounds of the difference) and
            `beyond_chance`. Kind "number" holds numbers, the others shares.
        explain: Called as `explain(ids)`; yields updates with `done`, `total`, `message`, `caption`
            and a dict `data`. `data["frame"]` of the last one is a frame, best first: `query, auc,
            auc_low, auc_high, chance`. Closing the iterator cancels the work.
        export: Called as `export(ids, path, least=..., salt=...)`, writes a file.
        provenance: Called as `provenance()`, returns what a result card says about the run
            (default: nothing).

    Example:
        >>> selection = Selection(("a", "b", "c"), lambda rows: None)
        >>> panel = SelectionPanel(selection)
        >>> selection.ids = ["a", "c"]
        >>> panel.save("both"), panel
        (Group(name='both', ids=('a', 'c')), SelectionPanel(2 of 3 users selected, 1 named))
    """

    _esm = read_static("geometry.mjs", "dom.mjs", "kernel.mjs", "selection.mjs")
    _css = read_static("lens.css", "selection.css")
    _about = Dict().tag(sync=True)  # title and what the panel can do: never changes
    _shown = Dict().tag(sync=True)  # n, sentence, rows: what sets them apart
    _ranked = Dict().tag(sync=True)  # rows, sentence, caption, n, current: the questions
    _status = Dict().tag(sync=True)  # busy, done, total, note, error
    _names = List().tag(sync=True)  # name and n of each named group

    def __init__(
        self,
        selection: Selection,
        describe: Callable | None = None,
        explain: Callable[..., Iterator] | None = None,
        export: Callable[..., Path] | None = None,
        provenance: Callable[[], dict] = dict,
    ):
        self.selection = selection
        self.named: dict[str, Group] = {}
        self._describe = describe and lru_cache(maxsize=1)(describe)
        self._explain = explain
        self._export = export
        self._provenance = provenance
        self._explanations: dict[Ids, Any] = {}  # the last update
        self._describe_worker = Worker()
        about = {
            "title": TITLE,
            "total": len(selection.all_ids),
            "unit": selection.unit,
            "units": selection.units,
            "min_users": MIN_USERS,
            "describes": describe is not None,
            "explains": explain is not None,
            "exports": export is not None,
        }
        super().__init__(selection.turn, _about=about)
        selection.observe(self._on_select)
        self._on_select(selection.rows)

    @property
    def description(self) -> pd.DataFrame:
        """What sets the selected users apart, as `describe` returns it; no rows without any."""
        return self._describe_ids(self.selection.ids)[0].copy()

    @property
    def ranking(self) -> pd.DataFrame:
        """The questions that tell the selected users from the rest; no rows before `explain()`."""
        update = self._explanation
        if update is None:
            return pd.DataFrame(columns=RANKING_COLUMNS)
        return update.data["frame"].copy()

    @property
    def _explanation(self) -> Any:
        """The update that explains the selected users, None if there is none."""
        return self._explanations.get(self.selection.ids)

    @property
    def sentence(self) -> str:
        """Who is selected and what sets them apart, in words."""
        self._describe_now()
        return self._shown["sentence"]

    def explain(self) -> str:
        """Ask which question tells the selected users apart, wait, and return what was found."""
        self._worker.run(partial(self._run, self.selection.ids, raise_errors=True))
        return self._explanation.message

    def save(self, name: str) -> Group:
        """Keep the selected users under a name; a name that is taken is replaced.

        Args:
            name: The name.

        Returns:
            The group.
        """
        name = name.strip()
        if not name:
            raise ValueError("the name is empty: write one, such as 'travellers'")
        group = Group(name, self.selection.ids)
        self.named[name] = group
        self._show_names()
        return group

    def recall(self, name: str) -> None:
        """Select the users of a named group."""
        group = self._group(name)
        self.selection.ids = group.ids

    def forget(self, name: str) -> None:
        """Drop a name; the users stay as they are."""
        group = self._group(name)
        del self.named[group.name]
        self._show_names()

    def combine(self, first: str, how: str, second: str) -> Group:
        """Select what two named groups make.

        Args:
            first: The name of one.
            how: "intersect", "unite" or "subtract" (the second from the first).
            second: The name of the other.

        Returns:
            The group they make.
        """
        if how not in GROUP_OPERATIONS:
            raise ValueError(f"how is {how!r}: say {', '.join(GROUP_OPERATIONS)}")
        one = self._group(first)
        other = self._group(second)
        group = combine_groups(one, how, other)
        self.selection.ids = group.ids
        return group

    def export(self, path, salt: str | None = None) -> Path:
        """Write the selected users to a CSV or Parquet file; small groups are refused.

        Args:
            path: The file.
            salt: A secret of yours with which ids are hashed (default: they are not hashed).

        Returns:
            The path.
        """
        if self._export is None:
            hint = "make it with export=partial(qa.export_group, users)"
            raise ValueError(f"this panel cannot write files: {hint}")
        return self._export(self.selection.ids, Path(path), least=MIN_USERS, salt=salt)

    def result_card(self, text: str = "") -> ResultCard:
        """Make a card of the best question, if there is one, else of what sets the group apart.

        Args:
            text: A remark of your own.

        Returns:
            The card.

        Raises:
            ValueError: If too few users are selected, or nothing is known of them.
        """
        selection = self.selection
        if len(selection) < MIN_USERS:
            needed = f"at least {MIN_USERS} are needed for a result"
            raise ValueError(f"{selection.summary} selected, {needed}: select more")
        facts = {"unit": selection.unit, "units": selection.units, **self._provenance()}
        facts["n"] = len(selection.all_ids)
        facts["selected"] = f"{len(selection):,}"
        if self._explanation is not None:
            facts |= self._ranking_facts()
            image = ranking_chart(self._ranked["rows"])
        else:
            facts |= self._description_facts()
            image = bar_chart(self._shown["rows"])
        return ResultCard.from_facts(facts, image, text=text)

    def _ranking_facts(self) -> dict:
        """Return what a card says of the best question."""
        best = self.ranking.iloc[0]
        return {
            "query": best["query"],
            "metric": "AUC out of fold, the selected against the rest",
            "value": best["auc"],
            "low": best["auc_low"],
            "high": best["auc_high"],
            "best_of": f"{len(self.ranking)} questions",
            "chance_line": f"{best['chance']:.2f}",
            "sentence": self._explanation.message,
        }

    def _description_facts(self) -> dict:
        """Return what a card says of the most telling difference."""
        description = self.description
        if description.empty:
            hint = "make the panel with describe=..., or select some but not all"
            raise ValueError(f"nothing is known of them: {hint}")
        best = description.iloc[0]
        measure = "medians" if best["kind"] == "number" else "shares"
        difference = f"difference of {measure}, the selected minus the rest"
        return {
            "query": "no query",
            "metric": f"{difference}: {best['kind']} {best['name']}",
            "value": best["group"] - best["rest"],
            "sentence": self.sentence,
            "low": best["low"],
            "high": best["high"],
        }

    def _summary(self) -> str:
        return f"SelectionPanel({self.selection.summary} selected, {len(self.named)} named)"

    def _html(self) -> str:
        self._describe_now()
        lines = [self.sentence]
        image = bar_chart(self._shown["rows"])
        update = self._explanation
        if update is not None:
            lines += [update.message, update.caption]
            image += ranking_chart(self._ranked["rows"])
        for group in self.named.values():
            users = self.selection.count(len(group.ids))
            lines.append(f"{group.name}: {users}")
        return static_page(TITLE, lines, image)

    def _group(self, name: str) -> Group:
        if name not in self.named:
            there = ", ".join(self.named) or "none, so save one first"
            raise KeyError(f"no group is named {name!r}: there are {there}")
        return self.named[name]

    def _show_names(self) -> None:
        names = []
        for group in self.named.values():
            names.append({"name": group.name, "n": len(group.ids)})
        self._names = names

    # What sets the selected users apart

    def _on_select(self, rows: np.ndarray) -> None:
        """Show at once how many are selected, and what sets them apart as soon as it is known."""
        with self._guard:
            self._shown = {**self._shown, "n": len(rows), "waiting": True, "sentence": ""}
        self._describe_worker.start(self._describe_now)
        if self._explanation is None:
            self._ranked = {**self._ranked, "current": False}
        else:
            self._show_ranking(self.selection.ids)

    def _describe_ids(self, ids: Ids) -> tuple[pd.DataFrame, str]:
        """Describe users against the rest, as a frame and in words."""
        some_but_not_all = 0 < len(ids) < len(self.selection.all_ids)
        if self._describe is None or not some_but_not_all:
            nothing = pd.DataFrame(columns=DESCRIPTION_COLUMNS)
            return nothing, f"{self.selection.summary} selected."
        update = self._describe(ids)
        return update.data["frame"], update.message

    def _describe_now(self, stop: Event | None = None) -> None:
        """Describe the selected users and show it, unless others were selected meanwhile."""
        ids = self.selection.ids
        try:
            frame, sentence = self._describe_ids(ids)
        except Exception as error:
            log.exception("describing %d users failed", len(ids))
            self._set_status(error=f"They could not be compared: {error_message(error)}")
            return
        if stop is not None and stop.is_set():
            return
        with self._guard:
            self._shown = {
                "n": len(ids),
                "sentence": sentence,
                "rows": json_rows(frame.groupby("kind").head(MAX_LISTED)),
                "of": len(frame),
                "waiting": False,
            }

    # Which question tells them

    def _run(self, ids: Ids, stop: Event, raise_errors: bool = False) -> None:
        """Ask every question and keep the ranking; if it fails, the last one stays."""
        self._set_status(busy=True, done=0, total=1, note="Asking")
        with self._showing_failure("No question could be found", raise_errors):
            if ids not in self._explanations:
                self._explanations[ids] = self._follow(ids, stop)
            self._set_status()
            self._show_ranking(ids)

    def _follow(self, ids: Ids, stop: Event) -> Any:
        """Show the progress; return the last update."""
        if self._explain is None:
            hint = "make it with explain=qa.GroupQueriesBackend(lens_backend.embedding_cache)"
            raise ValueError(f"this panel asks no questions: {hint}")
        with closing(self._explain(ids)) as updates:
            for update in until_cancelled(updates, stop):
                note = update.message
                self._set_status(busy=True, done=update.done, total=update.total, note=note)
        return update

    def _show_ranking(self, ids: Ids) -> None:
        """Send a ranking; `current` says whether it is of the users that are selected."""
        update = self._explanations[ids]
        self._ranked = {
            "rows": json_rows(update.data["frame"]),
            "sentence": update.message,
            "caption": update.caption,
            "n": len(ids),
            "current": ids == self.selection.ids,
        }

    # Messages of the browser

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind = message.get("type")
        try:
            if kind == "explain":
                self._worker.start(partial(self._run, self.selection.ids))
            elif kind == "cancel":
                self._worker.cancel()
                self._add_to_status(note="Cancelling")
            elif kind == "clear":
                self.selection.clear()
            elif kind == "save":
                group = self.save(message["name"])
                self._set_status(note=f"Saved as “{group.name}”.")
            elif kind in ("recall", "forget"):
                getattr(self, kind)(message["name"])
                self._set_status()
            elif kind == "combine":
                group = self.combine(message["first"], message["how"], message["second"])
                users = self.selection.count(len(group.ids))
                self._set_status(note=f"{group.name}: {users}.")
            elif kind == "export":
                self._export_beside(message)
            elif kind == "save_card":
                self._save_card()
        except Exception as error:
            log.exception("%s failed", kind)
            self._set_status(error=error_message(error))

    def _export_beside(self, message: dict) -> None:
        path = unused_path(self._group_name(), message["ending"])
        salt = message.get("salt") or None
        path = self.export(path, salt)
        users = self.selection.count(len(self.selection))
        self._set_status(note=f"Written: {path.name}, {users}, beside this notebook.")

    def _save_card(self) -> None:
        path = unused_path(f"result {self._group_name()}", "html")
        card = self.result_card()
        card.save(path)
        self._set_status(note=f"Kept: {path.name}, beside this notebook.")

    def _group_name(self) -> str:
        """Return the name of the selected users, if they have one, else how many they are."""
        for group in self.named.values():
            if group.ids == self.selection.ids:
                return group.name
        return f"group of {len(self.selection)}"


def format_value(row: Mapping, side: str) -> str:
    """Write a share as a percentage, an AUC with two decimals and a number as one.

    Example:
        >>> format_value({"kind": "text", "group": 0.254}, "group")
        '25 %'
        >>> format_value({"kind": "number", "group": 1234.0}, "group")
        '1,234'
    """
    value = row[side]
    if value is None:
        return ""
    if row["kind"] == "question":
        return f"{value:.2f}"
    if row["kind"] != "number":
        percentage = f"{value:.0%}"
        return percentage.replace("%", " %")
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ranking_chart(rows: Sequence[Mapping]) -> str:
    """Draw the first questions: the AUC of each, and beside it what chance reaches."""
    questions = []
    for row in rows:
        about = {"kind": "question", "name": row["query"]}
        beyond_chance = row["auc"] > row["chance"]
        questions.append({**about, "beyond_chance": beyond_chance, **row})
    return bar_chart(questions, QUESTION_SIDES, "Which question tells the selected from the rest")


def bar_chart(
    rows: Sequence[Mapping],
    sides: Sequence[tuple[str, str, str]] = SIDES,
    alt: str = "What sets the selected apart from the rest",
) -> str:
    """Draw the first rows of a description as groups of bars with whiskers.

    Args:
        rows: As `json_rows` returns them.
        sides: Column, color and name of each bar of a row.
        alt: The text for those who do not see the image.

    Returns:
        HTML of an image, empty if there are no rows.
    """
    if not rows:
        return ""
    parts = []
    x = NAME_WIDTH
    for _, color, name in sides:
        parts.append(f'<rect x="{x}" y="9" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 16}" y="18">{name}</text>')
        x += LEGEND_PITCH
    y = 34
    for row in rows[:MAX_DRAWN]:
        parts.append(row_name(row, y))
        for place, (side, color, _) in enumerate(sides):
            bar_y = y + 3 + SIDE_PITCH * place
            parts.append(bar_with_whisker(row, side, color, bar_y))
        y += BAR_PITCH
    drawing = "".join(parts)
    indented = f'<g transform="translate(8)">{drawing}</g>'
    return svg_image(indented, alt, WIDTH, y + 6)


def row_name(row: Mapping, y: int) -> str:
    """Write the name of a row and, under it, the kind of thing that it is."""
    name = escape(truncate(row["name"], MAX_NAME_LENGTH))
    if row["kind"] == "text":
        name = f"“{name}”"
    kind = escape(KIND_NAMES.get(row["kind"], row["kind"]))
    if not row["beyond_chance"]:
        kind += ", within chance"
    return (
        f'<text y="{y + 12}">{name}</text>'
        f'<text y="{y + 26}" fill="{QUIET}" font-size="11">{kind}</text>'
    )


def bar_with_whisker(row: Mapping, side: str, color: str, y: int) -> str:
    """Draw one bar, its interval and its number; shares end at 1, numbers at their largest."""
    scale = WIDTH - NAME_WIDTH - 90  # pixels
    if row["kind"] == "number":
        largest = max(row["group_high"] or 0, row["rest_high"] or 0)
        scale /= largest or 1
    width = max(scale * (row[side] or 0), 0)
    low = scale * (row.get(f"{side}_low") or 0)
    high = scale * (row.get(f"{side}_high") or 0)
    opacity = 1 if row["beyond_chance"] else 0.45
    number = format_value(row, side)
    return (
        f'<g transform="translate({NAME_WIDTH} {y})">'
        f'<rect width="{width:.1f}" height="10" fill="{color}" opacity="{opacity}"/>'
        f'<path d="M{low:.1f} 5H{high:.1f}" stroke="{INK}"/>'
        f'<text x="{max(width, high) + 6:.1f}" y="9" font-size="11">{number}</text>'
        "</g>"
    )
