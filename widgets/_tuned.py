"""Tunings for the browser and for paper: what was asked, what came of it, its table in words, its curve as a picture."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

CALLED = {"auc": "AUC", "ks": "KS", "silhouette": "silhouette"}


@dataclass(frozen=True)
class Form:
    """What is asked for: teach the label to the query, with so many vectors, in so many steps."""

    label: str
    query: str
    vectors: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Run:
    """One tuning that was kept, and what came of it."""

    form: Form
    step: int
    best: int
    seconds: float
    prompt: Any
    history: pd.DataFrame
    result: pd.DataFrame
    sentence: str

    @property
    def caption(self) -> str:
        """Say how it was tuned and judged."""
        short = self.step < self.form.steps
        ended = f"ended after step {self.step} of {self.form.steps}" if short else f"{self.form.steps} steps"
        kept = f"the prompt of step {self.best} was kept" if self.best else "no step helped: the prompt of step 0 was kept"
        about = f"{self.form.vectors} vectors, {ended}, {self.seconds:.0f} s, seed {self.form.seed}; {kept}."
        n, yes = self.result.attrs.get("n"), self.result.attrs.get("positives")
        judge = f" Judged on {n:,} held-out users ({yes:,} of them yes) by the same linear probe before and after." if n else ""
        return about[0].upper() + about[1:] + judge


def table(result: pd.DataFrame) -> list[dict]:
    """Put the result in words and numbers, one row a measure; a gain whose interval holds zero is none."""
    rows = []
    for row in result.itertuples():
        side = 1 if row.low > 0 else -1 if row.high < 0 else 0
        told = {"name": CALLED.get(row.measure, str(row.measure)), "before": figure(row.before), "after": figure(row.after)}
        told |= {"gain": figure(row.gain, "+"), "interval": f"{figure(row.low, '+')} to {figure(row.high, '+')}", "side": side}
        told |= {"verdict": ("within chance", "beyond chance", "a loss")[side]}
        rows.append(told | {"at": [float(row.low), float(row.gain), float(row.high)]})
    return rows


def figure(value: float, sign: str = "") -> str:
    """Write a share to three places, without its leading zero: .712, with sign "+": +.040 or −.040."""
    return f"{value:{sign}.3f}".replace("-", "−").replace("0.", ".", 1)


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "label"


def still_curve(history: pd.DataFrame, best: int, width: int = 520, height: int = 220) -> str:
    """Draw the validation loss as an <img> that needs no script, the kept step marked."""
    xs, ys = history["step"].to_numpy(float), history["valid"].to_numpy(float)
    span, rise = max(xs[-1], 1), max(ys.max() - ys.min(), 1e-9)
    at = [(40 + x / span * (width - 60), 24 + (ys.max() - y) / rise * (height - 60)) for x, y in zip(xs, ys, strict=True)]
    x, y = at[int(np.flatnonzero(xs == best)[0])]
    line = "M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in at)
    told = f"validation loss {ys[0]:.3f} at step 0, least {ys.min():.3f} at step {best}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/><path d="{line}" fill="none" stroke="#0072B2" stroke-width="2"/>'
        f'<path d="M{x:.0f} {y - 6:.0f}l6 6l-6 6l-6-6z" fill="#D55E00"/>'
        f'<text x="40" y="{height - 8}" fill="#2b3440">{escape(told)}</text></svg>'
    )
    code = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(told)}" width="{width}" height="{height}" src="data:image/svg+xml;base64,{code}">'
