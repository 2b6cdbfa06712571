"""The retention view: how long users stay after their first day, and how far they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

from traitlets import Dict

from qanchor.widgets.base import Ids, Selection, View, Worker, attempt, read_static
from qanchor.widgets.packing import json_rows
from qanchor.widgets.static_html import static_page

TITLE = "Over time"
ARROW = " -> "  # between the steps of a funnel
SIDES = {"group": "selected", "rest": "the rest", "all": "all"}


class RetentionView(View):
    """Show how many users stay period by period, and how many go how far, the selected beside the
    rest; of all users while none are selected.

    Args:
        selection: The selection of a view, as `lens.selection`; this view follows it.
        retention: Called as `retention(ids)`, `ids` None for all users; returns an update whose
            `message` is a sentence and `data["frame"]` a frame `side, period, users, active, share,
            low, high`, with `period_days` in its `attrs`.
        funnel: Called as `funnel(ids, steps)`; likewise, with `step` in place of `period`.
        steps: What a funnel may be of, as examples.

    Example:
        >>> from types import SimpleNamespace
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"side": ["all"], "period": [0], "share": [1.0]})
        >>> update = SimpleNamespace(message="All came.", data={"frame": frame})
        >>> selection = Selection(("a", "b"), lambda rows: None)
        >>> view = RetentionView(selection, lambda ids: update, lambda ids, steps: update)
        >>> view.show_retention(), view
        ('All came.', RetentionView(0 of 2 users selected))
    """

    _esm = read_static("geometry.mjs", "dom.mjs", "kernel.mjs", "retention.mjs")
    _css = read_static("lens.css", "selection.css", "retention.css")
    _about = Dict().tag(sync=True)  # title and examples of steps: never changes
    _curve = Dict().tag(sync=True)  # rows, sentence, days, error
    _steps = Dict().tag(sync=True)  # rows, sentence, text, error
    _status = Dict().tag(sync=True)  # busy

    def __init__(
        self,
        selection: Selection,
        retention: Callable,
        funnel: Callable,
        steps: Sequence[str] = (),
    ):
        self.selection = selection
        self._retention = retention
        self._funnel = funnel
        self._funnel_steps: list[str] = []
        about = {"title": TITLE, "sides": SIDES, "steps": list(steps), "units": selection.units}
        super().__init__(_about=about)
        self._funnel_worker = Worker()
        selection.observe(self._on_select)
        self._on_select(selection.rows)

    def show_retention(self) -> str:
        """Show the retention of the selected users, and return it in words."""
        self._curve = self._count_retention()
        return self._curve["sentence"]

    def show_funnel(self, steps: Sequence[str]) -> str:
        """Show how many of the selected users did several things, each after the one before.

        Args:
            steps: The things, in order.

        Returns:
            The funnel in words.
        """
        self._steps = self._count_funnel(list(steps))
        return self._steps["sentence"]

    def _count_retention(self) -> dict:
        """Count the retention of the selected users; return what the browser reads."""
        update = self._retention(self._ids)
        frame = update.data["frame"]
        days = frame.attrs.get("period_days", 1)
        return {"rows": json_rows(frame), "sentence": update.message, "days": days}

    def _count_funnel(self, steps: list[str]) -> dict:
        """Count a funnel of the selected users; return what the browser reads."""
        update = self._funnel(self._ids, steps)
        self._funnel_steps = steps
        rows = json_rows(update.data["frame"])
        return {"rows": rows, "sentence": update.message, "text": ARROW.join(steps)}

    @property
    def _ids(self) -> Ids | None:
        """The selected users; None if none or all are."""
        ids = self.selection.ids
        if not ids or len(ids) == len(self.selection.all_ids):
            return None
        return ids

    def _on_select(self, _rows) -> None:
        self._worker.start(self._follow)

    def _follow(self, stop: Event) -> None:
        """Show the users that are selected now."""
        curve = attempt(self._count_retention, "It could not be counted")
        if not stop.is_set():
            self._curve = curve
        if self._funnel_steps and not stop.is_set():
            self._run_funnel(self._funnel_steps, stop)

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        if message.get("type") == "funnel":
            steps = read_steps(message["text"])
            job = partial(self._run_funnel, steps)
            self._funnel_worker.start(job)

    def _run_funnel(self, steps: list[str], _stop: Event) -> None:
        """Show a funnel, or why there is none."""
        count = partial(self._count_funnel, steps)
        found = attempt(count, "No funnel")
        self._steps = {"text": ARROW.join(steps), **found}

    def _summary(self) -> str:
        return f"RetentionView({self.selection.summary} selected)"

    def _html(self) -> str:
        if not self._curve:
            self._follow(Event())
        lines = []
        for part in (self._curve, self._steps):
            sentence = part.get("sentence")
            lines.append(sentence or part.get("error"))
        table = [["period", "side", "users", "active", "share"]]
        for row in self._curve.get("rows", []):
            side = SIDES[row["side"]]
            share = f"{row['share']:.0%}"
            table.append([row["period"], side, row["users"], row["active"], share])
        return static_page(TITLE, lines, table=table)


def read_steps(text: str) -> list[str]:
    """Return the steps of a funnel that was typed with -> between them or, without any, commas.

    Example:
        >>> read_steps("view, pay"), read_steps("a train ticket, receipt -> pay")
        (['view', 'pay'], ['a train ticket, receipt', 'pay'])
    """
    between = "->" if "->" in text else ","
    steps = map(str.strip, text.split(between))
    return list(filter(None, steps))
