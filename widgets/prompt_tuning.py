"""The prompt tuning view: tune a soft prompt while you watch, and see what it gained."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from threading import Event, RLock
from typing import Any

import pandas as pd
from traitlets import Dict

from qanchor.widgets.base import (
    View,
    attempt,
    closing,
    count_noun,
    error_message,
    read_static,
    unit_words,
    until_cancelled,
)
from qanchor.widgets.static_html import BLUE, INK, VERMILION, static_page, svg_image

TITLE = "Prompt lab"
WIDTH = 520  # pixels of the curve's picture
HEIGHT = 220
# a slip of the keyboard should not cost a night
MAXIMA = {"vectors": 64, "steps": 5_000, "seed": 2**31 - 1}
MINIMA = {"vectors": 1, "steps": 1, "seed": 0}
MIN_TIMED_STEPS = 3  # steps after which the time of a step is believed
MAX_SLUG_LENGTH = 40  # characters
HISTORY_COLUMNS = ["step", "loss", "valid"]
RESULT_COLUMNS = ["measure", "before", "after", "gain", "low", "high"]
MEASURE_NAMES = {"auc": "AUC", "ks": "KS", "silhouette": "silhouette"}
PRESSED = ("stopping", "cancelling")
VERDICTS = {1: "beyond chance", 0: "within chance", -1: "a loss"}


@dataclass(frozen=True)
class TuningRun:
    """One tuning that was kept: the form, the last update, and how it was tuned in words."""

    form: dict
    update: Any
    caption: str


class PromptTuningView(View):
    """Teach a question what a label means by it, and see what that gains on held-out users.

    Args:
        backend: Called as `backend(query, label, vectors=, steps=, seed=, stop=)`; yields updates
            with `done` and `total` (in steps), `message` (empty while it steps) and a dict `data`:
            `history`, `best`, `prompt` and, in the last one, `result`, a frame `measure, before,
            after, gain, low, high` whose `attrs` hold `n` and `positives`, the held-out users and
            those of them with the label. If `stop()` is true it ends and keeps the best prompt so
            far; closing the iterator cancels the work. It has `labels` (the label columns to choose
            from), `queries` (suggestions), `defaults` (`vectors` and `steps`, and both as `paper`
            has them), `save`, called as `save(prompt, folder)`, and, if users are called otherwise,
            `unit` and `units`.
        label: The label the form opens with (default: the first).
        query: The query the form opens with.
        steps: Number of steps (default: of `backend.defaults`).
        turn: `selection.turn` of a view that asks the same model, which serves one at a time.

    Example:
        >>> from types import SimpleNamespace
        >>> result = pd.DataFrame([("auc", 0.7, 0.8, 0.1, 0.05, 0.15)], columns=RESULT_COLUMNS)
        >>> result.attrs = {"n": 300, "positives": 84}
        >>> history = pd.DataFrame([(0, float("nan"), 0.7)], columns=HISTORY_COLUMNS)
        >>> data = {"history": history, "best": 0, "prompt": "p", "result": result}
        >>> update = SimpleNamespace(done=1, total=1, message="Better.", data=data)
        >>> backend = lambda query, label, **how: iter([update])
        >>> backend.labels = ["Takeout"]
        >>> backend.queries = []
        >>> backend.save = None
        >>> backend.defaults = {"vectors": 6, "steps": 60, "paper": {"vectors": 6, "steps": 500}}
        >>> view = PromptTuningView(backend)
        >>> view.tune("Takeout", "Will they order?"), view.prompt, view
        ('Better.', 'p', PromptTuningView(1 label, tuned on 'Takeout': Better.))
    """

    _esm = read_static("dom.mjs", "kernel.mjs", "prompt_tuning.mjs")
    _css = read_static("lens.css", "prompt_tuning.css")
    _about = Dict().tag(sync=True)  # title, labels, queries, limits, the paper's: never changes
    _form = Dict().tag(sync=True)  # label, query, vectors, steps, seed
    _status = Dict().tag(sync=True)  # busy, done, total, seconds_left, message, note, error
    _curve = Dict().tag(sync=True)  # step, loss, valid, best, steps
    _result = Dict().tag(sync=True)  # rows, sentence, caption, label, query, folder
    _saved = Dict().tag(sync=True)  # note, error

    def __init__(
        self,
        backend: Callable[..., Iterator],
        label: str = "",
        query: str = "",
        steps: int | None = None,
        turn: RLock | None = None,
    ):
        self._backend = backend
        self._unit, self._units = unit_words(backend)
        self._labels = list(backend.labels)
        if not self._labels:
            hint = "give users that have label columns"
            raise ValueError(f"0 labels to choose from, at least 1 is needed: {hint}")
        defaults = backend.defaults
        self._stop_and_keep = Event()
        self._last_run: TuningRun | None = None
        self._seconds_per_step: float | None = None
        about = {
            "title": TITLE,
            "labels": self._labels,
            "minima": MINIMA,
            "maxima": MAXIMA,
            "queries": list(backend.queries),
            "paper": defaults["paper"],
        }
        super().__init__(turn, _about=about)
        form = {
            "label": label or self._labels[0],
            "query": query,
            "vectors": defaults["vectors"],
            "steps": defaults["steps"] if steps is None else steps,
            "seed": 0,
        }
        self._form = self._checked_form(form)

    def tune(self, label: str, query: str = "", **numbers: int) -> str:
        """Tune and judge, wait, and return what was gained.

        Args:
            label: A label column.
            query: The query that is tuned.
            numbers: `vectors`, `steps`, `seed` (default: as the form has them).

        Returns:
            The sentence below the table.
        """
        values = {"label": label, "query": query, **numbers}
        form = self._checked_form(self._form | values)
        self._worker.run(partial(self._run, form, raise_errors=True))
        return self.sentence

    @property
    def prompt(self) -> Any:
        """The soft prompt that was kept last, to ask with as with a query; None before any."""
        return self._last_run.update.data["prompt"] if self._last_run else None

    @property
    def history(self) -> pd.DataFrame:
        """The curve of the last tuning that was kept: `step, loss, valid`."""
        return self._last_frame("history", HISTORY_COLUMNS)

    @property
    def result(self) -> pd.DataFrame:
        """What it gained on held-out users: `measure, before, after, gain, low, high`."""
        return self._last_frame("result", RESULT_COLUMNS)

    @property
    def sentence(self) -> str:
        """What it gained, in words."""
        return self._last_run.update.message if self._last_run else ""

    def save(self, folder: str) -> Any:
        """Save the last prompt in a folder, and return where it is."""
        if not folder:
            raise ValueError("name a folder for it")
        if self.prompt is None:
            raise ValueError("no prompt to save yet: tune one")
        return self._backend.save(self.prompt, str(folder))

    def _last_frame(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Return a frame of the last tuning that was kept, an empty one before any."""
        if self._last_run is None:
            return pd.DataFrame(columns=columns)
        return self._last_run.update.data[name].copy()

    def _summary(self) -> str:
        labels = count_noun(len(self._labels), "label", "labels")
        run = self._last_run
        if run is None:
            return f"PromptTuningView({labels})"
        return f"PromptTuningView({labels}, tuned on {run.form['label']!r}: {self.sentence})"

    def _html(self) -> str:
        run = self._last_run
        if run is None:
            return static_page(TITLE, [f"{self!r}: run the cell to open the form."])
        head = ["on held-out users", "before", "after", "gain", "95 %", ""]
        columns = ["name", "before", "after", "gain", "interval", "verdict"]
        rows = pd.DataFrame(result_rows(self.result))[columns]
        query = run.form["query"] or "none"
        asked = f"Label {run.form['label']}, question: {query}"
        lines = [asked, self.sentence, run.caption]
        image = curve_image(self.history, run.update.data["best"])
        return static_page(TITLE, lines, image, [head, *rows.to_numpy()])

    def _checked_form(self, form: dict) -> dict:
        """Return a form with whole numbers, and refuse one that asks for what there is not."""
        label = form["label"]
        if label not in self._labels:
            raise ValueError(f"no label {label!r}: there are {', '.join(self._labels)}")
        checked = {"label": label, "query": form["query"].strip()}
        for name, low in MINIMA.items():
            text = str(form[name]).strip()
            high = MAXIMA[name]
            if not text.isdigit() or not low <= int(text) <= high:
                hint = f"give a whole number from {low} to {high:,}"
                raise ValueError(f"{name} is {text or 'empty'}: {hint}")
            checked[name] = int(text)
        return checked

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; tuning goes to a worker, so the kernel can hear Stop."""
        kind = message.get("type")
        if kind == "tune" and not self._status.get("busy"):
            self._start(message)
        elif kind == "stop":
            self._stop_and_keep.set()
            self._add_to_status(stopping=True)
        elif kind == "cancel":
            self._worker.cancel()
            self._add_to_status(cancelling=True)
        elif kind == "save":
            folder = message["folder"].strip()
            self._saved = attempt(lambda: {"note": f"Saved in {self.save(folder)}"}, "Not saved")

    def _start(self, message: dict) -> None:
        """Tune as the browser's form says."""
        values = {name: message[name] for name in self._form if name in message}
        try:
            form = self._checked_form(self._form | values)
        except ValueError as error:
            self._set_status(error=f"Not started: {error_message(error)}")
            return
        self._worker.start(partial(self._run, form))

    def _run(self, form: dict, stop: Event, raise_errors: bool = False) -> None:
        """Tune, show what comes and keep it; if it fails, the last good result returns."""
        self._stop_and_keep.clear()
        self._form = form
        self._curve = {}
        self._set_status(busy=True, done=0, total=form["steps"], message="Beginning")
        with self._showing_failure(f"Tuning on “{form['label']}” failed", raise_errors):
            self._last_run = self._follow(form, stop)
            self._show()

    def _follow(self, form: dict, stop: Event) -> TuningRun:
        """Draw the curve as it grows; return what came of it."""
        began = time.monotonic()
        step_times = []
        update = None
        numbers = {name: form[name] for name in MINIMA}
        stops = self._stop_and_keep.is_set
        with closing(self._backend(form["query"], form["label"], **numbers, stop=stops)) as updates:
            for update in until_cancelled(updates, stop):
                if not update.message:  # a step was taken
                    step_times.append(time.monotonic())
                    self._time_steps(step_times)
                self._draw(form, update)
                self._show_progress(form, update)
        if update is None or update.data["result"] is None:
            raise ValueError("the tuning ended without a result")
        seconds = time.monotonic() - began
        return TuningRun(form, update, self._caption(form, update, seconds))

    def _time_steps(self, times: list[float]) -> None:
        """Measure the seconds of a step once there were enough of them."""
        steps = len(times) - 1
        if steps >= MIN_TIMED_STEPS:
            self._seconds_per_step = (times[-1] - times[0]) / steps

    def _show_progress(self, form: dict, update) -> None:
        seconds_left = None
        if self._seconds_per_step:
            seconds_left = (form["steps"] - update.done) * self._seconds_per_step
        self._set_status(
            at_once=bool(update.message),
            busy=True,
            done=update.done,
            total=form["steps"],
            seconds_left=seconds_left,
            message=update.message,
        )

    def _caption(self, form: dict, update, seconds: float) -> str:
        """Say how a prompt was tuned and judged."""
        vectors = count_noun(form["vectors"], "vector", "vectors")
        steps = count_noun(form["steps"], "step", "steps")
        if update.done < form["steps"]:
            steps = f"ended after step {update.done} of {form['steps']}"
        best = update.data["best"]
        kept = f"the prompt of step {best} was kept"
        outcome = kept if best else f"no step helped: {kept}"
        words = f"{vectors}, {steps}, {seconds:.0f} s, seed {form['seed']}; {outcome}."
        judged = update.data["result"].attrs
        users = count_noun(judged["n"], f"held-out {self._unit}", f"held-out {self._units}")
        positives = f"{judged['positives']:,} of them yes"
        probe = "by the same linear probe before and after"
        return f"{words} Judged on {users} ({positives}) {probe}."

    def _show(self, **status) -> None:
        """Send the last good run and the status to the browser."""
        with self._guard, self.hold_sync():
            run = self._last_run
            self._curve = {}
            self._saved = {}
            if run:
                self._draw(run.form, run.update)
                self._result = {
                    "rows": result_rows(self.result),
                    "sentence": self.sentence,
                    "caption": run.caption,
                    "label": run.form["label"],
                    "query": run.form["query"],
                    "folder": f"out/prompt-{slug(run.form['label'])}",
                }
            self._set_status(**status)

    def _show_end(self, how: str) -> None:
        returned = " What was there before is back." if self._last_run else ""
        self._show(note=f"{how}, nothing was kept.{returned}")

    def _draw(self, form: dict, update) -> None:
        """Send the curve of an update, unless the browser has it."""
        history = update.data["history"]
        known_steps = len(self._curve.get("step", ()))
        if history is None or len(history) == known_steps:
            return
        cells = history[HISTORY_COLUMNS].astype(object)
        columns = cells.where(cells.notna(), None).to_dict("list")
        with self._guard:
            self._curve = {**columns, "best": update.data["best"], "steps": form["steps"]}

    def _set_status(self, at_once: bool = False, **status) -> None:
        """Set the status line; what was pressed stays while the tuning runs."""
        with self._guard:
            pressed = {}
            if status.get("busy"):
                pressed = {name: True for name in PRESSED if name in self._status}
            about = {"seconds_per_step": self._seconds_per_step, **pressed, **status}
            super()._set_status(at_once, **about)


def result_rows(result: pd.DataFrame) -> list[dict]:
    """Write a result in words and numbers; a gain whose interval holds zero is none.

    Args:
        result: One row per measure: `measure, before, after, gain, low, high`.

    Returns:
        One dict per measure: its words, `side` (1: a gain, -1: a loss, 0: neither) and `ends`, the
        numbers low, gain and high.
    """
    rows = []
    for row in result.itertuples():
        side = int(row.low > 0) - int(row.high < 0)
        low = format_share(row.low, "+")
        high = format_share(row.high, "+")
        rows.append(
            {
                "name": MEASURE_NAMES[row.measure],
                "before": format_share(row.before),
                "after": format_share(row.after),
                "gain": format_share(row.gain, "+"),
                "interval": f"{low} to {high}",
                "side": side,
                "verdict": VERDICTS[side],
                "ends": [float(row.low), float(row.gain), float(row.high)],
            }
        )
    return rows


def format_share(value: float, sign: str = "") -> str:
    """Write a share with three digits and no leading zero.

    Example:
        >>> format_share(0.712), format_share(-0.04, "+")
        ('.712', '−.040')
    """
    return f"{value:{sign}.3f}".replace("-", "−").replace("0.", ".", 1)


def slug(label: str) -> str:
    """Return a label as part of a folder's name."""
    words = re.sub(r"[^a-z0-9]+", "-", label.lower())
    return words.strip("-")[:MAX_SLUG_LENGTH] or "label"


def curve_image(history: pd.DataFrame, best: int) -> str:
    """Draw the validation loss, the kept step marked.

    Args:
        history: The curve: `step, loss, valid`.
        best: The kept step.

    Returns:
        HTML of an image.
    """
    steps = history["step"]
    losses = history["valid"]
    least = losses.min()
    drop = max(losses.max() - least, 1e-9)
    last = max(steps.iloc[-1], 1)
    xs = 40 + (WIDTH - 60) * steps / last
    ys = 24 + (HEIGHT - 60) * (losses.max() - losses) / drop
    corners = [f"{x:.0f} {y:.0f}" for x, y in zip(xs, ys, strict=True)]
    line = "L".join(corners)
    x = xs[steps == best].iloc[0]
    y = ys[steps == best].iloc[0] - 6
    words = f"validation loss {losses[0]:.3f} at step 0, least {least:.3f} at step {best}"
    body = (
        f'<path d="M{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>'
        f'<path d="M{x:.0f} {y:.0f}l6 6l-6 6l-6-6z" fill="{VERMILION}"/>'
        f'<text x="40" y="{HEIGHT - 8}" fill="{INK}">{escape(words)}</text>'
    )
    return svg_image(body, words, WIDTH, HEIGHT)
