"""The prompt tuning view: tune a soft prompt while you watch, and see what it gained."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from threading import Event, RLock
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Dict

from widgets.base import (
    View,
    Worker,
    closing,
    count_noun,
    error_message,
    log,
    read_static,
    unit_words,
)
from widgets.static_html import BLUE, INK, VERMILION, static_page, svg_image

# a slip of the keyboard should not cost a night
MAXIMA = {"vectors": 64, "steps": 5_000, "seed": 2**31 - 1}
MINIMA = {"vectors": 1, "steps": 1, "seed": 0}
PAPER_DEFAULTS = {"vectors": 6, "steps": 500, "seed": 0}
MIN_TIMED_STEPS = 3  # steps after which the time of a step is believed
MAX_SLUG_LENGTH = 40  # characters
HISTORY_COLUMNS = ["step", "loss", "valid"]
RESULT_COLUMNS = ["measure", "before", "after", "gain", "low", "high"]
MEASURE_NAMES = {"auc": "AUC", "ks": "KS", "silhouette": "silhouette"}
VERDICTS = {1: "beyond chance", 0: "within chance", -1: "a loss"}


@dataclass(frozen=True)
class TuningForm:
    """What the form asks for: teach a label to a query, with so many vectors, in so many steps."""

    label: str
    query: str
    vectors: int
    steps: int
    seed: int


@dataclass(frozen=True)
class TuningRun:
    """One tuning that was kept, and what came of it."""

    form: TuningForm
    step: int
    best: int
    seconds: float
    prompt: Any
    history: pd.DataFrame
    result: pd.DataFrame
    sentence: str
    unit: str = "user"
    units: str = "users"

    @property
    def caption(self) -> str:
        """How it was tuned and judged, in words."""
        form = self.form
        vectors = count_noun(form.vectors, "vector", "vectors")
        steps = count_noun(form.steps, "step", "steps")
        if self.step < form.steps:
            steps = f"ended after step {self.step} of {form.steps}"
        outcome = "no step helped: the prompt of step 0 was kept"
        if self.best:
            outcome = f"the prompt of step {self.best} was kept"
        words = f"{vectors}, {steps}, {self.seconds:.0f} s, seed {form.seed}; {outcome}."
        n = self.result.attrs.get("n")
        if n:
            users = count_noun(n, f"held-out {self.unit}", f"held-out {self.units}")
            users += f" ({self.result.attrs['positives']:,} of them yes)"
            words += f" Judged on {users} by the same linear probe before and after."
        return words


class PromptTuningView(View):
    """Teach a question what a label means by it, and see what that gains on held-out users.

    Args:
        backend: Called as `backend(query, label, vectors=, steps=, seed=, stop=)`; yields updates
            with `done` and `total` (in steps), `message` (empty while it steps) and a dict `data`:
            `history`, `best`, `prompt` and, in the last one, `result`, a frame `measure, before,
            after, gain, low, high`. If `stop()` is true it ends and keeps the best prompt so far;
            closing the iterator cancels the work. Attributes that are used if there are any:
            `defaults`, `labels`, `queries`, `unit` and `units`, and `save`, called as
            `save(prompt, folder)`.
        labels: The label columns to choose from (default: `backend.labels`).
        label: The one the form opens with (default: the first).
        query: The query the form opens with.
        steps: Number of steps (default: of `backend.defaults`, else the paper's 500).
        turn: `selection.turn` of a view that asks the same model, which serves one at a time.

    Example:
        >>> from types import SimpleNamespace
        >>> result = pd.DataFrame([("auc", 0.7, 0.8, 0.1, 0.05, 0.15)], columns=RESULT_COLUMNS)
        >>> history = pd.DataFrame([(0, float("nan"), 0.7)], columns=HISTORY_COLUMNS)
        >>> data = {"history": history, "best": 0, "prompt": "p", "result": result}
        >>> update = SimpleNamespace(done=1, total=1, message="Better.", data=data)
        >>> view = PromptTuningView(lambda query, label, **how: iter([update]), labels=["Takeout"])
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
    _saved = Dict().tag(sync=True)  # folder, note, error

    def __init__(
        self,
        backend: Callable[..., Iterator],
        labels: Sequence[str] = (),
        label: str = "",
        query: str = "",
        steps: int | None = None,
        turn: RLock | None = None,
    ):
        self._backend = backend
        self._unit, self._units = unit_words(backend)
        self._save_prompt = getattr(backend, "save", None)
        labels = labels if len(labels) else getattr(backend, "labels", ())
        self._labels = [str(name) for name in labels]
        if not self._labels:
            hint = "pass labels=[...], the names of label columns"
            raise ValueError(f"0 labels to choose from, at least 1 is needed: {hint}")
        defaults = PAPER_DEFAULTS | getattr(backend, "defaults", {})
        self._guard = RLock()
        self._worker = Worker(turn)
        self._stop_and_keep = Event()
        self._runs: list[TuningRun] = []
        self._seconds_per_step: float | None = None
        about = {
            "title": "Prompt lab",
            "labels": self._labels,
            "saves": self._save_prompt is not None,
            "minima": MINIMA,
            "maxima": MAXIMA,
            "queries": [str(query) for query in getattr(backend, "queries", ())],
            "paper": defaults.get("paper", PAPER_DEFAULTS),
        }
        super().__init__(_about=about)
        form = {
            "label": label or self._labels[0],
            "query": query,
            "vectors": defaults["vectors"],
            "steps": defaults["steps"] if steps is None else steps,
            "seed": 0,
        }
        self._form = asdict(self._checked_form(form))
        self.on_msg(self._on_message)

    def tune(self, label: str, query: str = "", **numbers: int) -> str:
        """Tune and judge, wait, and return what was gained.

        Args:
            label: A label column.
            query: The query that is tuned.
            numbers: `vectors`, `steps`, `seed` (default: as the form has them).

        Returns:
            The sentence below the table.
        """
        form = self._checked_form(self._form | {"label": label, "query": query} | numbers)
        self._worker.run(partial(self._run, form, raise_errors=True))
        return self.sentence

    @property
    def prompt(self) -> Any:
        """The soft prompt that was kept last, to ask with as with a query; None before any."""
        return self._last_run.prompt if self._last_run else None

    @property
    def history(self) -> pd.DataFrame:
        """The curve of the last tuning that was kept: `step, loss, valid`."""
        run = self._last_run
        return run.history.copy() if run else pd.DataFrame(columns=HISTORY_COLUMNS)

    @property
    def result(self) -> pd.DataFrame:
        """What it gained on held-out users: `measure, before, after, gain, low, high`."""
        run = self._last_run
        return run.result.copy() if run else pd.DataFrame(columns=RESULT_COLUMNS)

    @property
    def sentence(self) -> str:
        """What it gained, in words."""
        return self._last_run.sentence if self._last_run else ""

    def save(self, folder: str) -> Any:
        """Save the last prompt in a folder, and return where it is."""
        if self._save_prompt is None:
            raise ValueError("this lab was given no way to save")
        if self.prompt is None:
            raise ValueError("no prompt to save yet: tune one")
        return self._save_prompt(self.prompt, str(folder))

    @property
    def _last_run(self) -> TuningRun | None:
        return self._runs[-1] if self._runs else None

    def _summary(self) -> str:
        labels = count_noun(len(self._labels), "label", "labels")
        run = self._last_run
        if run is None:
            return f"PromptTuningView({labels})"
        return f"PromptTuningView({labels}, tuned on {run.form.label!r}: {self.sentence})"

    def _html(self) -> str:
        run = self._last_run
        title = self._about["title"]
        if run is None:
            return static_page(title, [f"{self!r}: run the cell to open the form."])
        rows = [["on held-out users", "before", "after", "gain", "95 %", ""]]
        for row in result_rows(run.result):
            numbers = [row["before"], row["after"], row["gain"], row["interval"]]
            rows.append([row["name"], *numbers, row["verdict"]])
        asked = f"Label {run.form.label}, question: {run.form.query or 'none'}"
        image = curve_image(run.history, run.best)
        return static_page(title, [asked, self.sentence, run.caption], image, rows)

    def _checked_form(self, form: dict) -> TuningForm:
        """Return a form, and refuse one that asks for what there is not."""
        label = str(form["label"])
        if label not in self._labels:
            raise ValueError(f"no label {label!r}: there are {', '.join(self._labels)}")
        numbers = {}
        for name in MAXIMA:
            text = str(form[name]).strip()
            low = MINIMA[name]
            high = MAXIMA[name]
            if not text.isdigit() or not low <= int(text) <= high:
                hint = f"give a whole number from {low} to {high:,}"
                raise ValueError(f"{name} is {text or 'empty'}: {hint}")
            numbers[name] = int(text)
        return TuningForm(label, str(form["query"]).strip(), **numbers)

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; tuning goes to a worker, so the kernel can hear Stop."""
        kind = message.get("type")
        if kind == "tune" and not self._status.get("busy"):
            self._start(message)
        elif kind == "stop":
            self._end(self._stop_and_keep.set, "stopping")
        elif kind == "cancel":
            self._end(self._worker.cancel, "cancelling")
        elif kind == "save":
            self._save(str(message.get("folder", "")).strip())

    def _start(self, message: dict) -> None:
        """Tune as the browser's form says."""
        values = {name: message[name] for name in self._form if name in message}
        try:
            form = self._checked_form(self._form | values)
        except ValueError as error:
            self._show_status(error=f"Not started: {error_message(error)}")
            return
        self._worker.start(partial(self._run, form))

    def _end(self, act: Callable[[], None], name: str) -> None:
        """Stop or cancel a tuning that runs, and show that it will end."""
        with self._guard:  # the worker may be reporting its end just now
            if self._status.get("busy"):
                act()
                self._show_status(at_once=True, **self._status | {name: True})

    def _run(self, form: TuningForm, stop: Event, raise_errors: bool = False) -> None:
        """Tune, show what comes and keep it; if it fails, the last good result returns."""
        self._stop_and_keep.clear()
        self._form = asdict(form)
        self._show_status(busy=True, done=0, total=form.steps, message="Beginning")
        try:
            run = self._follow(form, stop)
            if run:
                self._runs.append(run)
                self._show()
            else:
                returned = " What was there before is back." if self._runs else ""
                self._show(note=f"Cancelled, nothing was kept.{returned}")
        except Exception as error:
            log.exception("tuning on %r failed", form.label)
            self._show(error=f"Tuning on “{form.label}” failed: {error_message(error)}")
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._show(note="Interrupted, nothing was kept.")
            raise

    def _follow(self, form: TuningForm, stop: Event) -> TuningRun | None:
        """Draw the curve as it grows; return what came of it, or None if it was cancelled."""
        began = time.monotonic()
        first_step = None  # and when it was taken
        update = None
        updates = self._backend(
            form.query,
            form.label,
            vectors=form.vectors,
            steps=form.steps,
            seed=form.seed,
            stop=self._stop_and_keep.is_set,
        )
        with closing(updates):
            for update in updates:
                if stop.is_set():
                    return None
                history = update.data.get("history")
                if first_step is None and history is not None:
                    first_step = (update.done, time.monotonic())
                if first_step is not None and not update.message:
                    self._time_steps(*first_step, update.done)
                seconds_left = None
                if first_step is not None and self._seconds_per_step:
                    seconds_left = (form.steps - update.done) * self._seconds_per_step
                self._draw(history, update.data.get("best", 0), form)
                self._show_status(
                    at_once=bool(update.message),
                    busy=True,
                    done=update.done,
                    total=form.steps,
                    seconds_left=seconds_left,
                    message=update.message,
                )
        if stop.is_set():
            return None
        if update is None or update.data.get("result") is None:
            raise ValueError("the tuning ended without a result")
        data = update.data
        return TuningRun(
            form,
            step=int(update.done),
            best=int(data["best"]),
            seconds=time.monotonic() - began,
            prompt=data["prompt"],
            history=data["history"],
            result=data["result"],
            sentence=str(update.message),
            unit=self._unit,
            units=self._units,
        )

    def _time_steps(self, first_step: int, began: float, step: int) -> None:
        """Measure the seconds of a step once there were enough of them."""
        steps = step - first_step
        if steps >= MIN_TIMED_STEPS:
            self._seconds_per_step = (time.monotonic() - began) / steps

    def _save(self, folder: str) -> None:
        """Save from the browser; what goes wrong is said beside the button."""
        try:
            if not folder:
                raise ValueError("name a folder for it")
            self._saved = {"folder": folder, "note": f"Saved in {self.save(folder)}"}
        except Exception as error:
            log.exception("saving to %r failed", folder)
            self._saved = {"folder": folder, "error": f"Not saved: {error_message(error)}"}

    def _show(self, **status) -> None:
        """Send the last good run and the status to the browser."""
        with self._guard, self.hold_sync():
            run = self._last_run
            self._curve = {}
            self._saved = {}
            if run:
                self._draw(run.history, run.best, run.form)
                self._result = {
                    "rows": result_rows(run.result),
                    "sentence": run.sentence,
                    "caption": run.caption,
                    "label": run.form.label,
                    "query": run.form.query,
                    "folder": f"out/prompt-{slug(run.form.label)}",
                }
            self._show_status(**status)

    def _draw(self, history: pd.DataFrame | None, best: int, form: TuningForm) -> None:
        """Send a curve, unless the browser has it."""
        with self._guard:
            if history is None:
                self._curve = {}
                return
            known_steps = len(self._curve.get("step", ()))
            if len(history) == known_steps and self._curve["form"] == asdict(form):
                return
            self._curve = {
                "step": history["step"].tolist(),
                "loss": numbers_or_none(history["loss"]),
                "valid": numbers_or_none(history["valid"]),
                "best": best,
                "steps": form.steps,
                "form": asdict(form),
            }

    def _show_status(self, at_once: bool = False, **status) -> None:
        """Set the status line; what was pressed stays while the tuning runs."""
        with self._guard:
            pressed = {}
            if status.get("busy"):
                for name in ("stopping", "cancelling"):
                    if name in self._status:
                        pressed[name] = self._status[name]
            about = {"seconds_per_step": self._seconds_per_step, **pressed, **status}
            self._set_status(at_once, **about)


def numbers_or_none(values: pd.Series) -> list[float | None]:
    """Return numbers as JSON holds them, None for those that are missing."""
    return [None if np.isnan(value) else float(value) for value in values]


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
        side = 0
        if row.low > 0:
            side = 1
        elif row.high < 0:
            side = -1
        low = format_share(row.low, "+")
        high = format_share(row.high, "+")
        rows.append(
            {
                "name": MEASURE_NAMES.get(row.measure, str(row.measure)),
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
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:MAX_SLUG_LENGTH] or "label"


def curve_image(history: pd.DataFrame, best: int, width: int = 520, height: int = 220) -> str:
    """Draw the validation loss, the kept step marked.

    Args:
        history: The curve: `step, loss, valid`.
        best: The kept step.
        width: In pixels.
        height: In pixels.

    Returns:
        HTML of an image.
    """
    steps = history["step"].to_numpy(float)
    losses = history["valid"].to_numpy(float)
    xs = 40 + steps / max(steps[-1], 1) * (width - 60)
    drop = max(losses.max() - losses.min(), 1e-9)
    ys = 24 + (losses.max() - losses) / drop * (height - 60)
    line = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in zip(xs, ys, strict=True))
    best_row = int(np.flatnonzero(steps == best)[0])
    start = f"validation loss {losses[0]:.3f} at step 0"
    words = f"{start}, least {losses.min():.3f} at step {best}"
    body = (
        f'<path d="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>'
        f'<path d="M{xs[best_row]:.0f} {ys[best_row] - 6:.0f}l6 6l-6 6l-6-6z" fill="{VERMILION}"/>'
        f'<text x="40" y="{height - 8}" fill="{INK}">{escape(words)}</text>'
    )
    return svg_image(body, words, width, height)
