"""The selection panel: who is selected, what sets them apart, and which question tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from threading import Event, RLock
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Dict, List

from widgets.base import (
    GROUP_OPERATIONS,
    Group,
    Selection,
    View,
    Worker,
    closing,
    combine_groups,
    count_noun,
    error_message,
    log,
    read_static,
    unused_path,
)
from widgets.packing import json_rows
from widgets.result_card import ResultCard
from widgets.static_html import BLUE, GRAY, INK, VERMILION, static_page, svg_image

MAX_LISTED = 14  # rows of the comparison; of each kind, half as many when it is looked at alone
MAX_DRAWN = 8  # rows of a picture
MAX_NAME_LENGTH = 36  # characters of a name in a sentence or picture
VALUE_COLUMNS = ["group", "group_low", "group_high", "rest", "rest_low", "rest_high"]
RANKING_COLUMNS = ["query", "auc", "auc_low", "auc_high", "chance"]
KIND_NAMES = {"text": "event", "number": "median"}  # what these rows show
QUIET = "#5f6873"
WIDTH = 640  # pixels of a picture
NAME_WIDTH = 250  # pixels of the names in it
BAR_PITCH = 40  # pixels from row to row
DOT_PITCH = 24


class SelectionPanel(View):
    """Show who is selected, what sets them apart from the rest, and which question tells them.

    Args:
        selection: The selection of a view, as `lens.selection`; the panel follows and sets it.
        describe: Called as `describe(ids)` if some users are selected but not all, returns an
            update: its `message` says how many are selected and what sets them apart;
            `data["frame"]` is a frame, the most telling row first: `kind, name, group, rest` and,
            if known, their bounds `group_low` ... `rest_high`, `beyond_chance`. Kind "number" holds
            numbers, the others shares.
        explain: Called as `explain(ids)`; yields updates with `done`, `total`, `message`, `caption`
            and a dict `data`. `data["frame"]` of the last one is a frame, best first: `query, auc,
            auc_low, auc_high, chance`. Closing the iterator cancels the work.
        export: Called as `export(ids, path, least=..., salt=...)`, writes a file.
        provenance: Called as `provenance()`, returns what a result card says about the run.
        min_users: Groups of fewer users are neither written to a file nor made into a card.
        title: The heading.

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
        describe: Callable[[tuple[str, ...]], pd.DataFrame] | None = None,
        explain: Callable[[tuple[str, ...]], Iterator] | None = None,
        export: Callable[..., Path] | None = None,
        provenance: Callable[[], dict] | None = None,
        min_users: int = 10,
        title: str = "Selection",
    ):
        self.selection = selection
        self.min_users = min_users
        self.named: dict[str, Group] = {}
        self._describe = describe
        self._explain = explain
        self._export = export
        self._provenance = provenance
        self._guard = RLock()
        self._described: tuple = ((), None)  # ids, and the update that describes them
        self._explanations: dict[tuple, Any] = {}  # by ids: the last update
        self._ranked_ids: tuple = ()  # whose ranking is shown
        self._describe_worker = Worker()
        self._explain_worker = Worker(selection.turn)
        about = {
            "title": title,
            "total": len(selection.all_ids),
            "unit": selection.unit,
            "units": selection.units,
            "min_users": min_users,
            "describes": describe is not None,
            "explains": explain is not None,
            "exports": export is not None,
        }
        super().__init__(_about=about)
        selection.observe(self._on_select)
        self.on_msg(self._on_message)
        self._on_select(selection.rows)

    @property
    def description(self) -> pd.DataFrame:
        """What sets the selected users apart, as `describe` returns it; no rows without any."""
        return self._describe_ids(self.selection.ids)[0].copy()

    @property
    def ranking(self) -> pd.DataFrame:
        """The questions that tell the selected users from the rest; no rows before `explain()`."""
        update = self._explanations.get(self.selection.ids)
        if update is None:
            return pd.DataFrame(columns=RANKING_COLUMNS)
        return update.data["frame"].copy()

    @property
    def sentence(self) -> str:
        """Who is selected and what sets them apart, in words."""
        self._describe_now()
        return self._shown["sentence"]

    def explain(self) -> str:
        """Ask which question tells the selected users apart, wait, and return what was found."""
        self._explain_worker.run(partial(self._run, self._ids_to_explain(), raise_errors=True))
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
        return self._export(self.selection.ids, Path(path), least=self.min_users, salt=salt)

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
        if len(selection) < self.min_users:
            needed = f"at least {self.min_users} are needed for a result"
            raise ValueError(f"{selection.summary} selected, {needed}: select more")
        facts = {"unit": selection.unit, "units": selection.units}
        if self._provenance:
            facts |= self._provenance()
        facts |= {"n": len(selection.all_ids), "selected": f"{len(selection):,}"}
        ranking = self.ranking
        if len(ranking):
            facts |= self._ranking_facts(ranking)
            image = dot_chart(self._ranked["rows"])
        else:
            facts |= self._description_facts(self.description)
            image = bar_chart(self._shown["rows"])
        return ResultCard.from_facts(facts, image, text=text)

    def _ranking_facts(self, ranking: pd.DataFrame) -> dict:
        best = ranking.iloc[0]
        return {
            "query": best["query"],
            "metric": "AUC out of fold, the selected against the rest",
            "value": best["auc"],
            "low": best["auc_low"],
            "high": best["auc_high"],
            "best_of": f"{len(ranking)} questions",
            "chance_line": f"{best['chance']:.2f}",
            "sentence": self._explanations[self.selection.ids].message,
        }

    def _description_facts(self, description: pd.DataFrame) -> dict:
        if not len(description):
            hint = "make the panel with describe=..., or select some but not all"
            raise ValueError(f"nothing is known of them: {hint}")
        best = description.iloc[0]
        measure = "medians" if best["kind"] == "number" else "shares"
        facts = {
            "query": "no query",
            "metric": (
                f"difference of {measure}, the selected minus the rest:"
                f" {best['kind']} {best['name']}"
            ),
            "value": best["group"] - best["rest"],
            "sentence": self.sentence,
        }
        for end in ("low", "high"):
            if end in best:
                facts[end] = best[end]
        return facts

    def _summary(self) -> str:
        return f"SelectionPanel({self.selection.summary} selected, {len(self.named)} named)"

    def _html(self) -> str:
        self._describe_now()
        ranking = self.ranking.head(10)
        table = [["question", "AUC", "95 %", "chance line"]] if len(ranking) else []
        for row in ranking.itertuples():
            interval = f"{row.auc_low:.2f} to {row.auc_high:.2f}"
            table.append([row.query, f"{row.auc:.2f}", interval, f"{row.chance:.2f}"])
        lines = [self.sentence]
        update = self._explanations.get(self.selection.ids)
        if update is not None:
            lines += [update.message, update.caption]
        for group in self.named.values():
            lines.append(f"{group.name}: {self._count(len(group.ids))}")
        return static_page(self._about["title"], lines, bar_chart(self._shown["rows"]), table)

    def _count(self, number: int) -> str:
        return count_noun(number, self.selection.unit, self.selection.units)

    def _group(self, name: str) -> Group:
        if name not in self.named:
            there = ", ".join(self.named) or "none, so save one first"
            raise KeyError(f"no group is named {name!r}: there are {there}")
        return self.named[name]

    def _show_names(self) -> None:
        self._names = [{"name": group.name, "n": len(group.ids)} for group in self.named.values()]

    # What sets the selected users apart

    def _on_select(self, rows: np.ndarray) -> None:
        """Show at once how many are selected, and what sets them apart as soon as it is known."""
        with self._guard:
            self._shown = {**self._shown, "n": len(rows), "waiting": True, "sentence": ""}
        self._describe_worker.start(self._describe_now)
        if self.selection.ids in self._explanations:
            self._ranked_ids = self.selection.ids
        self._show_ranking()

    def _describe_ids(self, ids: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
        """Describe users against the rest, as a frame and in words."""
        if self._describe is None or not 0 < len(ids) < len(self.selection.all_ids):
            empty = pd.DataFrame(columns=["kind", "name", *VALUE_COLUMNS])
            return empty, f"{self.selection.summary} selected."
        known_ids, update = self._described
        if known_ids != ids:
            update = self._describe(ids)
            self._described = (ids, update)
        return update.data["frame"], str(update.message)

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

    def _ids_to_explain(self) -> tuple[str, ...]:
        if self._explain is None:
            hint = "make it with explain=qa.GroupQueriesBackend(lens_backend.embedding_cache)"
            raise ValueError(f"this panel asks no questions: {hint}")
        return self.selection.ids

    def _run(self, ids: tuple[str, ...], stop: Event, raise_errors: bool = False) -> None:
        """Ask every question and keep the ranking; if it fails, the last one stays."""
        self._set_status(busy=True, done=0, total=1, note="Asking")
        try:
            update = self._explanations.get(ids) or self._follow(ids, stop)
            if update is None:
                self._set_status(note="Cancelled.")
                return
            self._explanations[ids] = update
            self._ranked_ids = ids
            self._set_status()
            self._show_ranking()
        except Exception as error:
            log.exception("explaining %d users failed", len(ids))
            self._set_status(error=f"No question could be found: {error_message(error)}")
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._set_status(note="Interrupted.")
            raise

    def _follow(self, ids: tuple[str, ...], stop: Event) -> Any:
        """Show the progress; return the last update, or None if it was cancelled."""
        update = None
        with closing(self._explain(ids)) as updates:
            for update in updates:
                if stop.is_set():
                    return None
                note = str(update.message)
                self._set_status(busy=True, done=update.done, total=update.total, note=note)
        if update is None or update.data.get("frame") is None:
            raise ValueError("no ranking was given")
        return update

    def _show_ranking(self) -> None:
        """Send the ranking; `current` says whether it is of the users that are selected."""
        update = self._explanations.get(self._ranked_ids)
        if update is None:
            return
        self._ranked = {
            "rows": json_rows(update.data["frame"]),
            "sentence": str(update.message),
            "caption": str(update.caption or ""),
            "n": len(self._ranked_ids),
            "current": self._ranked_ids == self.selection.ids,
        }

    # Messages of the browser

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind = message.get("type")
        try:
            if kind == "explain":
                self._explain_worker.start(partial(self._run, self._ids_to_explain()))
            elif kind == "cancel":
                self._explain_worker.cancel()
                if self._status.get("busy"):
                    self._set_status(at_once=True, **self._status | {"note": "Cancelling"})
            elif kind == "clear":
                self.selection.clear()
            elif kind in ("save", "recall", "forget"):
                self._change_names(kind, str(message.get("name", "")))
            elif kind == "combine":
                self._combine(message)
            elif kind == "export":
                self._export_beside(message)
            elif kind == "save_card":
                self._save_card()
        except Exception as error:
            log.exception("%s failed", kind)
            self._set_status(error=error_message(error))

    def _change_names(self, kind: str, name: str) -> None:
        getattr(self, kind)(name)
        self._set_status(note=f"Saved as “{name.strip()}”." if kind == "save" else "")

    def _combine(self, message: dict) -> None:
        names = [str(message[part]) for part in ("first", "how", "second")]
        group = self.combine(*names)
        self._set_status(note=f"{group.name}: {self._count(len(group.ids))}.")

    def _export_beside(self, message: dict) -> None:
        path = unused_path(self._group_name(), str(message.get("ending", "")))
        path = self.export(path, message.get("salt") or None)
        users = self._count(len(self.selection))
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
    if value is None or not np.isfinite(value):
        return ""
    if row["kind"] != "number":
        return f"{value:.0%}".replace("%", " %")
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def quoted_name(row: Mapping) -> str:
    """Return the name of a row, an event's text in quotes."""
    name = shorten(str(row["name"]))
    return f"“{name}”" if row["kind"] == "text" else name


def shorten(name: str) -> str:
    """Cut a long name and mark the cut."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}…"


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
    parts = [legend_entry(NAME_WIDTH, BLUE, "selected")]
    parts.append(legend_entry(NAME_WIDTH + 76, GRAY, "the rest"))
    for place, row in enumerate(drawn):
        y = 34 + BAR_PITCH * place
        kind = KIND_NAMES.get(row["kind"], str(row["kind"]))
        if row.get("beyond_chance") is False:
            kind += ", within chance"
        scale = bar_scale(row)
        small = f'fill="{QUIET}" font-size="11"'
        parts.append(f'<text y="{y + 12}">{escape(quoted_name(row))}</text>')
        parts.append(f'<text y="{y + 26}" {small}>{escape(kind)}</text>')
        parts.append(bar_with_whisker(row, "group", BLUE, y + 3, scale))
        parts.append(bar_with_whisker(row, "rest", GRAY, y + 16, scale))
    height = 40 + BAR_PITCH * len(drawn)
    return indented_image(parts, height, "What sets the selected apart from the rest")


def legend_entry(x: float, color: str, name: str) -> str:
    """Draw a colored square with its name."""
    square = f'<rect x="{x}" y="9" width="10" height="10" fill="{color}"/>'
    return f'{square}<text x="{x + 16}" y="18">{name}</text>'


def bar_scale(row: Mapping) -> float:
    """Return the pixels per unit of a row's bars: shares end at 1, numbers at their largest."""
    room = WIDTH - NAME_WIDTH - 90
    if row["kind"] != "number":
        return room
    values = [row.get(name) or 0 for name in ("group_high", "rest_high", "group", "rest")]
    return room / (max(values) or 1)


def bar_with_whisker(row: Mapping, side: str, color: str, y: int, scale: float) -> str:
    """Draw one bar, its interval and its number."""
    value = (row.get(side) or 0) * scale
    low = (row.get(f"{side}_low") or 0) * scale
    high = (row.get(f"{side}_high") or 0) * scale
    opacity = ' opacity=".45"' if row.get("beyond_chance") is False else ""
    size = f'width="{max(value, 0):.1f}" height="10" fill="{color}"'
    parts = [f'<rect x="{NAME_WIDTH}" y="{y}" {size}{opacity}/>']
    if high:
        line = f"M{NAME_WIDTH + low:.1f} {y + 5}H{NAME_WIDTH + high:.1f}"
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
        HTML of an image, empty if there are no rows.
    """
    if not rows:
        return ""
    drawn = rows[:MAX_DRAWN]
    height = 34 + DOT_PITCH * len(drawn)
    parts = []
    chance = rows[0].get("chance")
    if chance is not None:
        x = auc_position(chance)
        parts.append(f'<text x="{x:.1f}" y="18" text-anchor="middle">chance {chance:.2f}</text>')
        dashes = f'stroke="{VERMILION}" stroke-dasharray="4 3"'
        parts.append(f'<path d="M{x:.1f} 26V{height - 6}" {dashes}/>')
    for place, row in enumerate(drawn):
        y = 42 + DOT_PITCH * place
        low, x, high = (auc_position(row[name]) for name in ("auc_low", "auc", "auc_high"))
        interval = f"M{low:.1f} {y - 4}H{high:.1f}"
        parts.append(f'<text y="{y}">{escape(shorten(str(row["query"])))}</text>')
        parts.append(f'<path d="{interval}" stroke="{BLUE}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y - 4}" r="4" fill="{BLUE}"/>')
        end = f'x="{WIDTH - 20}" y="{y}" text-anchor="end"'
        parts.append(f"<text {end}>{row['auc']:.2f}</text>")
    return indented_image(parts, height, "Which question tells the selected from the rest: AUC")


def auc_position(auc: float) -> float:
    """Return the horizontal place of an AUC: the axis goes from 0.5 to 1."""
    share = (min(max(auc, 0.5), 1) - 0.5) / 0.5
    return NAME_WIDTH + (WIDTH - NAME_WIDTH - 60) * share


def indented_image(parts: Sequence[str], height: int, alt: str) -> str:
    """Return a drawing with a margin on its left as an image."""
    return svg_image(f'<g transform="translate(8)">{"".join(parts)}</g>', alt, WIDTH, height)
