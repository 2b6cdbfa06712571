"""The prompt lab: pick a label, tune a soft prompt while you watch, stop and keep, and see what it gained on other users."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from threading import Event, RLock
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Dict

from widgets.base import View, Worker, closing, log, plain, script, still_page
from widgets._tuned import Form, Run, slug, still_curve, table

MOST = {"vectors": 64, "steps": 5_000, "seed": 2**31 - 1}  # a slip of the keyboard should not cost a night
LEAST = {"vectors": 1, "steps": 1, "seed": 0}
MEASURED = 3  # steps after which the time of a step is believed
BLANK = {"vectors": 6, "steps": 500, "seed": 0}
COLUMNS = ["measure", "before", "after", "gain", "low", "high"]


class PromptLab(View):
    """Teach a question what labels mean by it: tune a soft prompt, watch it learn, and see what it gains on held-out users.

    ask      called as `ask(query, label, vectors=, steps=, seed=, stop=)`; yields updates `{"step", "steps", "history", "best",
             "prompt", "result", "sentence"}`, the last with a result: frame `measure, before, after, gain, low, high`. `stop()`
             true ends the tuning and keeps the best so far; closing the iterator cancels.
    labels   the columns to choose from (default: `ask.labels`). save: called as `save(prompt, folder)` (default: `ask.save`).
    label, query, vectors, steps, seed   what the form opens with (defaults: `ask.defaults`, else the paper's 6 and 500).
    turn     `selection.turn` of a view that asks the same model: it serves one of them at a time.

    Example:
        >>> found = pd.DataFrame([("auc", 0.7, 0.8, 0.1, 0.05, 0.15)], columns=COLUMNS)
        >>> curve = pd.DataFrame([(0, float("nan"), 0.7)], columns=["step", "loss", "valid"])
        >>> update = {"step": 1, "steps": 1, "history": curve, "best": 0, "prompt": "p", "result": found, "sentence": "Better."}
        >>> lab = PromptLab(lambda query, label, **how: iter([update]), labels=["Takeout"])
        >>> lab.tune("Takeout", "Will they order?"), lab.prompt, lab
        ('Better.', 'p', PromptLab(1 label, tuned on 'Takeout': Better.))
    """

    _esm = script("dom.mjs", "kernel.mjs", "prompt_tuning.mjs")
    _css = script("lens.css", "prompt_tuning.css")
    _about = Dict().tag(sync=True)  # title, labels, queries, limits, the paper's numbers: never changes
    _form = Dict().tag(sync=True)  # label, query, vectors, steps, seed
    _status = Dict().tag(sync=True)  # busy, done, total (steps), left, each, words, note, error, stopping, cancelling
    _curve = Dict().tag(sync=True)  # step, loss, valid, best, steps
    _result = Dict().tag(sync=True)  # rows, sentence, caption, label, query, folder
    _saved = Dict().tag(sync=True)  # folder, note, error

    def __init__(
        self,
        ask: Callable[..., Iterator[dict]],
        labels: Sequence[str] = (),
        label: str = "",
        query: str = "",
        vectors: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        save: Callable[[Any, str], Any] | None = None,
        title: str = "Prompt lab",
        turn: RLock | None = None,
    ):
        self._asker, self._keeper = ask, save or getattr(ask, "save", None)
        self._labels = [str(name) for name in (labels if len(labels) else getattr(ask, "labels", ()))]
        if not self._labels:
            raise ValueError("0 labels to choose from, at least 1 is needed: pass labels=[...], the names of label columns")
        usual = BLANK | getattr(ask, "defaults", {})
        chosen = {"vectors": vectors, "steps": steps, "seed": seed}
        form = {k: usual[k] if v is None else v for k, v in chosen.items()}
        self._guard, self._worker, self._enough = RLock(), Worker(turn), Event()
        self._runs: list[Run] = []
        self._each: float | None = None  # seconds a step
        about = {"title": title, "labels": self._labels, "saves": self._keeper is not None, "least": LEAST, "most": MOST}
        about |= {"queries": [str(q) for q in getattr(ask, "queries", ())], "paper": usual.get("paper", BLANK)}
        super().__init__(_about=about)
        self._form = asdict(self._checked({"label": label or self._labels[0], "query": query, **form}))
        self.on_msg(self._heard)

    def tune(self, label: str, query: str = "", **how: int) -> str:
        """Tune and judge here and now, and give the sentence that says what was gained; how: vectors, steps, seed."""
        form = self._checked(self._form | {"label": label, "query": query} | how)
        self._worker.run(partial(self._work, form, aloud=True))
        return self.sentence

    @property
    def prompt(self) -> Any:
        """Give the soft prompt that was kept last, to ask with as with a query; None before any."""
        return self._last.prompt if self._last else None

    @property
    def history(self) -> pd.DataFrame:
        """Give the curve of the last tuning that was kept: `step, loss, valid`."""
        return self._last.history.copy() if self._last else pd.DataFrame(columns=["step", "loss", "valid"])

    @property
    def result(self) -> pd.DataFrame:
        """Give what the last one gained on held-out users: `measure, before, after, gain, low, high`."""
        return self._last.result.copy() if self._last else pd.DataFrame(columns=COLUMNS)

    @property
    def sentence(self) -> str:
        """Say in words what the last one gained."""
        return self._last.sentence if self._last else ""

    def save(self, folder: str) -> Any:
        """Keep the last prompt in a folder; gives where."""
        if self.prompt is None or self._keeper is None:
            raise ValueError("no prompt to save yet: tune one" if self._keeper else "this lab was given no way to save")
        return self._keeper(self.prompt, str(folder))

    @property
    def _last(self) -> Run | None:
        return self._runs[-1] if self._runs else None

    def _words(self) -> str:
        count = f"{len(self._labels)} label{'s' * (len(self._labels) != 1)}"
        return f"PromptLab({count}" + (f", tuned on {self._last.form.label!r}: {self.sentence})" if self._last else ")")

    def _still(self) -> str:
        if self._last is None:
            return still_page(self._about["title"], [f"{self!r}: run the cell to open the form."])
        head = ["on held-out users", "before", "after", "gain", "95 %", ""]
        rows = [[r["name"], r["before"], r["after"], r["gain"], r["interval"], r["verdict"]] for r in table(self._last.result)]
        asked = f"Label {self._last.form.label}, question: {self._last.form.query or 'none'}"
        lines = [asked, self.sentence, self._last.caption]
        return still_page(self._about["title"], lines, still_curve(self._last.history, self._last.best), [head, *rows])

    def _checked(self, form: dict) -> Form:
        """Refuse a form that asks for what there is not."""
        label = str(form["label"])
        if label not in self._labels:
            raise ValueError(f"no label {label!r}: there are {', '.join(self._labels)}")
        numbers = {}
        for name, most in MOST.items():
            text = str(form[name]).strip()
            if not text.isdigit() or not LEAST[name] <= int(text) <= most:
                raise ValueError(f"{name} is {text or 'empty'}: give a whole number from {LEAST[name]} to {most:,}")
            numbers[name] = int(text)
        return Form(label, str(form["query"]).strip(), **numbers)

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks; tuning goes to a worker, so the kernel stays free to hear Stop and Cancel."""
        kind = message.get("type")
        if kind == "tune" and not self._status.get("busy"):
            try:
                form = self._checked(self._form | {k: message[k] for k in self._form if k in message})
            except ValueError as error:
                self._say(error=f"Not started: {plain(error)}")
            else:
                self._worker.start(partial(self._work, form))
        elif kind in ("stop", "cancel"):
            with self._guard:  # the worker may be telling its end just now
                if self._status.get("busy"):
                    self._enough.set() if kind == "stop" else self._worker.cancel()
                    self._say(at_once=True, **self._status | {"stopping" if kind == "stop" else "cancelling": True})
        elif kind == "save":
            self._keep(str(message.get("folder", "")).strip())

    def _work(self, form: Form, stop: Event, aloud: bool = False) -> None:
        """Tune, show what comes, and keep it; on Cancel or an error the last good result returns."""
        self._enough.clear()
        self._form = asdict(form)
        self._say(busy=True, done=0, total=form.steps, words="Beginning")
        try:
            run = self._listen(form, stop)
            if run:
                self._runs.append(run)
                self._show()
            else:
                self._show(note=f"Cancelled, nothing was kept.{' What was there before is back.' * bool(self._runs)}")
        except Exception as error:
            log.exception("tuning on %r failed", form.label)
            self._show(error=f"Tuning on “{form.label}” failed: {plain(error)}")
            if aloud:
                raise
        except BaseException:  # an interrupted cell
            self._show(note="Interrupted, nothing was kept.")
            raise

    def _listen(self, form: Form, stop: Event) -> Run | None:
        """Follow the updates of one tuning, the curve drawn as it grows; give what came of it, None if it was cancelled."""
        how = {"vectors": form.vectors, "steps": form.steps, "seed": form.seed, "stop": self._enough.is_set}
        began, first, last = time.monotonic(), None, None
        updates = self._asker(form.query, form.label, **how)
        with closing(updates):
            for last in updates:
                if stop.is_set():
                    return None
                step, now = int(last["step"]), time.monotonic()
                first = (step, now) if first is None and last["history"] is not None else first
                if first and step - first[0] >= MEASURED and not last["sentence"]:
                    self._each = (now - first[1]) / (step - first[0])
                self._draw(last["history"], last["best"], form)
                left = self._each and first and (form.steps - step) * self._each
                words = last["sentence"]
                self._say(at_once=bool(words), busy=True, done=step, total=form.steps, left=left, words=words)
        if stop.is_set():
            return None
        if last is None or last["result"] is None:
            raise ValueError("the tuning ended without a result")
        kept = (last["prompt"], last["history"], last["result"], str(last["sentence"]))
        return Run(form, int(last["step"]), int(last["best"]), time.monotonic() - began, *kept)

    def _keep(self, folder: str) -> None:
        """Save from the browser; what goes wrong is said beside the button."""
        try:
            if not folder:
                raise ValueError("name a folder for it")
            self._saved = {"folder": folder, "note": f"Saved in {self.save(folder)}"}
        except Exception as error:
            log.exception("saving to %r failed", folder)
            self._saved = {"folder": folder, "error": f"Not saved: {plain(error)}"}

    def _show(self, **status) -> None:
        """Bring the last good run and the status to the browser."""
        with self._guard, self.hold_sync():
            last = self._last
            self._curve, self._saved = {}, {}
            if last:
                self._draw(last.history, last.best, last.form)
                told = {"sentence": last.sentence, "caption": last.caption, "label": last.form.label, "query": last.form.query}
                self._result = {"rows": table(last.result), **told, "folder": f"out/prompt-{slug(last.form.label)}"}
            self._say(**status)

    def _draw(self, history: pd.DataFrame | None, best: int, form: Form) -> None:
        with self._guard:
            if history is None:
                self._curve = {}
            elif len(history) != len(self._curve.get("step", ())) or self._curve["of"] != asdict(form):
                parts = {name: [None if np.isnan(v) else float(v) for v in history[name]] for name in ("loss", "valid")}
                self._curve = {"step": history["step"].tolist(), **parts, "best": best, "steps": form.steps, "of": asdict(form)}

    def _say(self, at_once: bool = False, **status) -> None:
        """Set the status line; what was pressed stays told while the tuning runs."""
        with self._guard:
            pressed = {k: self._status[k] for k in ("stopping", "cancelling") if status.get("busy") and k in self._status}
            self._tell(at_once, **{"each": self._each, **pressed, **status})
