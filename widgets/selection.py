"""The selection panel: who is selected, what sets them apart, and which question tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
from qanchor.widgets.static_html import BLUE, GRAY, INK, VERMILION, static_page, svg_image, truncate

TITLE = "Selection"
MIN_USERS = 10  # groups of fewer are neither written to a file nor made into a card
MAX_LISTED = 14  # rows of the comparison; of each kind, half as many when it is looked at alone
MAX_DRAWN = 8  # rows of a picture
MAX_NAME_LENGTH = 37  # characters of a name in a sentence or picture
DESCRIPTION_COLUMNS = ["kind", "name", "group", "group_low", "group_high"]
DESCRIPTION_COLUMNS += ["rest", "rest_low", "rest_high"]
RANKING_COLUMNS = ["query", "auc", "auc_low", "auc_high", "chance"]
SIDES = (("group", BLUE, "selected"), ("rest", GRAY, "the rest"))
KIND_NAMES = {"text": "event", "number": "median"}  # what these rows show
QUIET = "#5f6873"
WIDTH = 640  # pixels of a picture
NAME_WIDTH = 250  # pixels of the names in it
LEGEND_PITCH = 76  # pixels from one entry of the legend to the next
BAR_PITCH = 40  # pixels from row to row
SIDE_PITCH = 13  # pixels between the two bars of a row
DOT_PITCH = 24


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
        provenance: Called as `provenance()`, returns what a result card says about the run.

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
        provenance: Callable[[], dict] | None = None,
    ):
        self.selection = selection
        self.named: dict[str, Group] = {}
        self._describe = describe
        self._explain = explain
        self._export = export
        self._provenance = provenance
        self._described: Ids = ()  # those that `_description` is about
        self._description = None  # an update
        self._explanations: dict[Ids, Any] = {}  # the last update
        self._ranked_ids: Ids = ()  # whose ranking is shown
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
        self._worker.run(partial(self._run, self._ids_to_explain(), raise_errors=True))
        return self._explanations[self.selection.ids].message

    def save(self, name: str) -> Group:
        """Keep the selected users under a name; a name that is taken is replaced.

        Args:
            name: The name.

        Returns:
            The group.
        """
        name = str(name).strip()
        if not name:
            raise ValueError("the name is empty: write one, such as 'travellers'")
        self.named[name] = Group(name, self.selection.ids)
        self._show_names()
        return self.named[name]

    def recall(self, name: str) -> None:
        """Select the users of a named group."""
        self.selection.ids = self._group(name).ids

    def forget(self, name: str) -> None:
        """Drop a name; the users stay as they are."""
        del self.named[self._group(name).name]
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
        group = combine_groups(self._group(first), how, self._group(second))
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
        facts = {"unit": selection.unit, "units": selection.units}
        if self._provenance:
            facts |= self._provenance()
        facts |= {"n": len(selection.all_ids), "selected": f"{len(selection):,}"}
        if self._explanation is not None:
            facts |= self._ranking_facts()
            image = dot_chart(self._ranked["rows"])
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
        table = []
        update = self._explanation
        if update is not None:
            lines += [update.message, update.caption]
            table.append(["question", "AUC", "95 %", "chance line"])
            for row in update.data["frame"].head(10).itertuples():
                auc = f"{row.auc:.2f}"
                interval = f"{row.auc_low:.2f} to {row.auc_high:.2f}"
                chance = f"{row.chance:.2f}"
                table.append([row.query, auc, interval, chance])
        for group in self.named.values():
            users = self.selection.count(len(group.ids))
            lines.append(f"{group.name}: {users}")
        image = bar_chart(self._shown["rows"])
        return static_page(TITLE, lines, image, table)

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
        if self.selection.ids in self._explanations:
            self._ranked_ids = self.selection.ids
        self._show_ranking()

    def _describe_ids(self, ids: Ids) -> tuple[pd.DataFrame, str]:
        """Describe users against the rest, as a frame and in words."""
        if self._describe is None or not 0 < len(ids) < len(self.selection.all_ids):
            nothing = pd.DataFrame(columns=DESCRIPTION_COLUMNS)
            return nothing, f"{self.selection.summary} selected."
        if self._described != ids:
            self._description = self._describe(ids)
            self._described = ids
        return self._description.data["frame"], self._description.message

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
                "rows": json_rows(rows_to_send(frame)),
                "of": len(frame),
                "waiting": False,
            }

    # Which question tells them

    def _ids_to_explain(self) -> Ids:
        if self._explain is None:
            hint = "make it with explain=qa.GroupQueriesBackend(lens_backend.embedding_cache)"
            raise ValueError(f"this panel asks no questions: {hint}")
        return self.selection.ids

    def _run(self, ids: Ids, stop: Event, raise_errors: bool = False) -> None:
        """Ask every question and keep the ranking; if it fails, the last one stays."""
        self._set_status(busy=True, done=0, total=1, note="Asking")
        with self._showing_failure("No question could be found", raise_errors):
            if ids not in self._explanations:
                self._explanations[ids] = self._follow(ids, stop)
            self._ranked_ids = ids
            self._set_status()
            self._show_ranking()

    def _follow(self, ids: Ids, stop: Event) -> Any:
        """Show the progress; return the last update."""
        update = None
        with closing(self._explain(ids)) as updates:
            for update in until_cancelled(updates, stop):
                note = update.message
                self._set_status(busy=True, done=update.done, total=update.total, note=note)
        if update is None or "frame" not in update.data:
            raise ValueError("no ranking was given")
        return update

    def _show_ranking(self) -> None:
        """Send the ranking; `current` says whether it is of the users that are selected."""
        update = self._explanations.get(self._ranked_ids)
        if update is None:
            return
        self._ranked = {
            "rows": json_rows(update.data["frame"]),
            "sentence": update.message,
            "caption": update.caption,
            "n": len(self._ranked_ids),
            "current": self._ranked_ids == self.selection.ids,
        }

    # Messages of the browser

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind = message.get("type")
        try:
            if kind == "explain":
                self._worker.start(partial(self._run, self._ids_to_explain()))
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
        path = self.export(path, message.get("salt") or None)
        users = self.selection.count(len(self.selection))
        self._set_status(note=f"Written: {path.name}, {users}, beside this notebook.")

    def _save_card(self) -> None:
        path = unused_path(f"result {self._group_name()}", "html")
        path = self.result_card().save(path)
        self._set_status(note=f"Kept: {path.name}, beside this notebook.")

    def _group_name(self) -> str:
        """Return the name of the selected users, if they have one, else how many they are."""
        ids = self.selection.ids
        for group in self.named.values():
            if group.ids == ids:
                return group.name
        return f"group of {len(ids)}"


def rows_to_send(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the first rows of a description, and the first ones of each kind."""
    first = frame.head(MAX_LISTED)
    first_of_kind = frame.groupby("kind", sort=False).head(MAX_LISTED // 2)
    return frame.loc[first.index.union(first_of_kind.index)]


def format_value(row: Mapping, side: str) -> str:
    """Write a share as a percentage and a number as one.

    Example:
        >>> format_value({"kind": "text", "group": 0.254}, "group")
        '25 %'
        >>> format_value({"kind": "number", "group": 1234.0}, "group")
        '1,234'
    """
    value = row[side]
    if value is None:
        return ""
    if row["kind"] != "number":
        percentage = f"{value:.0%}"
        return percentage.replace("%", " %")
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bar_chart(rows: Sequence[Mapping]) -> str:
    """Draw the first rows of a description as paired bars with whiskers.

    Args:
        rows: As `json_rows` returns them.

    Returns:
        HTML of an image, empty if there are no rows.
    """
    if not rows:
        return ""
    drawn = rows[:MAX_DRAWN]
    parts = []
    for place, (_, color, name) in enumerate(SIDES):
        x = NAME_WIDTH + LEGEND_PITCH * place
        parts.append(f'<rect x="{x}" y="9" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 16}" y="18">{name}</text>')
    for place, row in enumerate(drawn):
        y = 34 + BAR_PITCH * place
        name = escape(truncate(row["name"], MAX_NAME_LENGTH))
        if row["kind"] == "text":
            name = f"“{name}”"
        kind = escape(KIND_NAMES.get(row["kind"], row["kind"]))
        if not row["beyond_chance"]:
            kind += ", within chance"
        parts.append(f'<text y="{y + 12}">{name}</text>')
        parts.append(f'<text y="{y + 26}" fill="{QUIET}" font-size="11">{kind}</text>')
        y += 3
        for side, color, _ in SIDES:
            parts.append(bar_with_whisker(row, side, color, y))
            y += SIDE_PITCH
    height = 40 + BAR_PITCH * len(drawn)
    return indented_image(parts, height, "What sets the selected apart from the rest")


def bar_with_whisker(row: Mapping, side: str, color: str, y: int) -> str:
    """Draw one bar, its interval and its number; shares end at 1, numbers at their largest."""
    scale = WIDTH - NAME_WIDTH - 90  # pixels
    if row["kind"] == "number":
        largest = max(row["group_high"] or 0, row["rest_high"] or 0)
        scale /= largest or 1
    value = scale * (row[side] or 0)
    low = scale * (row[f"{side}_low"] or 0)
    high = scale * (row[f"{side}_high"] or 0)
    opacity = "" if row["beyond_chance"] else ' opacity=".45"'
    size = f'width="{max(value, 0):.1f}" height="10" fill="{color}"'
    parts = [f'<rect x="{NAME_WIDTH}" y="{y}" {size}{opacity}/>']
    if high:
        start = NAME_WIDTH + low
        end = NAME_WIDTH + high
        line = f"M{start:.1f} {y + 5}H{end:.1f}"
        parts.append(f'<path d="{line}" stroke="{INK}"/>')
    x = NAME_WIDTH + max(value, high) + 6
    number = format_value(row, side)
    parts.append(f'<text x="{x:.1f}" y="{y + 9}" font-size="11">{number}</text>')
    return "".join(parts)


def dot_chart(rows: Sequence[Mapping]) -> str:
    """Draw the first questions with their AUC, its interval, and the line that chance reaches.

    Args:
        rows: As `json_rows` returns them.

    Returns:
        HTML of an image.
    """
    drawn = rows[:MAX_DRAWN]
    height = 34 + DOT_PITCH * len(drawn)
    chance = rows[0]["chance"]
    x = auc_position(chance)
    parts = [
        f'<text x="{x:.1f}" y="18" text-anchor="middle">chance {chance:.2f}</text>',
        f'<path d="M{x:.1f} 26V{height - 6}" stroke="{VERMILION}" stroke-dasharray="4 3"/>',
    ]
    for place, row in enumerate(drawn):
        y = 42 + DOT_PITCH * place
        x = auc_position(row["auc"])
        low = auc_position(row["auc_low"])
        high = auc_position(row["auc_high"])
        interval = f"M{low:.1f} {y - 4}H{high:.1f}"
        name = escape(truncate(row["query"], MAX_NAME_LENGTH))
        end = f'x="{WIDTH - 20}" y="{y}" text-anchor="end"'
        parts.append(f'<text y="{y}">{name}</text>')
        parts.append(f'<path d="{interval}" stroke="{BLUE}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y - 4}" r="4" fill="{BLUE}"/>')
        parts.append(f"<text {end}>{row['auc']:.2f}</text>")
    return indented_image(parts, height, "Which question tells the selected from the rest: AUC")


def auc_position(auc: float) -> float:
    """Return the horizontal place of an AUC: the axis goes from 0.5 to 1."""
    share = 2 * np.clip(auc, 0.5, 1) - 1
    return NAME_WIDTH + (WIDTH - NAME_WIDTH - 60) * share


def indented_image(parts: Sequence[str], height: int, alt: str) -> str:
    """Return a drawing with a margin on its left as an image."""
    drawing = "".join(parts)
    return svg_image(f'<g transform="translate(8)">{drawing}</g>', alt, WIDTH, height)
