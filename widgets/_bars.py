"""Paired bars, as numbers for the browser and as a drawing that needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from widgets.base import INK, MOVED, STILL, still_image

VALUES = ("group", "group_low", "group_high", "rest", "rest_low", "rest_high")
CHOSEN, QUIET = "#0072B2", "#5f6873"  # the first is Okabe and Ito's blue
KINDS = {"text": "event", "number": "median"}  # what these rows show
DRAWN = 8  # rows of the still picture
NAMED = 36  # characters of a name in a sentence or picture
WIDTH, NAME, PITCH = 640, 250, 40  # pixels: of the picture, of the names, from row to row


def figures(row: Mapping) -> dict:
    """Make one row of a frame fit to be sent: plain numbers, None for what is not known, words as text."""
    out = {}
    for name, value in row.items():
        if isinstance(value, bool | np.bool_):
            out[str(name)] = bool(value)
        elif isinstance(value, int | float | np.number):
            out[str(name)] = float(value) if np.isfinite(value) else None
        else:
            out[str(name)] = str(value)
    return out


def figure(row: Mapping, side: str) -> str:
    """Write a share as a percentage and a number as one.

    Example:
        >>> figure({"kind": "text", "group": 0.254}, "group"), figure({"kind": "number", "group": 1234.0}, "group")
        ('25 %', '1,234')
    """
    value = row[side]
    if value is None or not np.isfinite(value):
        return ""
    if row["kind"] != "number":
        return f"{value:.0%}".replace("%", " %")
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def told(frame: pd.DataFrame, n: int, total: int) -> str:
    """Say how many are chosen and what sets them apart, no more than passes for more than chance."""
    if not n:
        return "Nobody is chosen."
    start = f"{n:,} of {total:,} users chosen."
    if not len(frame):
        return f"{start} There is nobody to compare them with." if n == total else start
    sure = frame[frame["beyond_chance"].astype(bool)] if "beyond_chance" in frame else frame
    if not len(sure):
        return f"{start} Of {len(frame):,} things compared, none sets them apart beyond chance."
    parts = [f"{_called(row)} {figure(row, 'group')} against {figure(row, 'rest')}" for row in sure.head(3).to_dict("records")]
    return f"{start} What sets them apart most: {'; '.join(parts)}."


def _called(row: Mapping) -> str:
    name = _short(str(row["name"]))
    return f"“{name}”" if row["kind"] == "text" else name


def _short(name: str) -> str:
    return name[:NAMED] + "…" * (len(name) > NAMED)


def bars(rows: Sequence[Mapping]) -> str:
    """Draw the first rows as paired bars with whiskers, an <img>; nothing when there are none."""
    parts = []
    for place, row in enumerate(rows[:DRAWN]):
        top, number = 34 + place * PITCH, row["kind"] == "number"
        highs = [row.get(name) or 0 for name in ("group_high", "rest_high", "group", "rest")]
        scale = (WIDTH - NAME - 90) / (max(highs) or 1 if number else 1)
        kind = KINDS.get(row["kind"], str(row["kind"])) + ", within chance" * (row.get("beyond_chance") is False)
        words = f'<text y="{top + 12}">{escape(_called(row))}</text>'
        words += f'<text y="{top + 26}" fill="{QUIET}" font-size="11">{escape(kind)}</text>'
        parts += [words, _bar(row, "group", CHOSEN, top + 3, scale), _bar(row, "rest", STILL, top + 16, scale)]
    key = f'<rect x="{NAME}" y="9" width="10" height="10" fill="{CHOSEN}"/><text x="{NAME + 16}" y="18">chosen</text>'
    key += f'<rect x="{NAME + 76}" y="9" width="10" height="10" fill="{STILL}"/><text x="{NAME + 92}" y="18">the rest</text>'
    return _drawing([key, *parts], 40 + len(rows[:DRAWN]) * PITCH, "What sets the chosen apart from the rest") if parts else ""


def dots(rows: Sequence[Mapping]) -> str:
    """Draw the first questions with their AUC, its interval, and the line that luck reaches, an <img>; nothing without rows."""
    if not rows:
        return ""
    pitch, height = 24, 34 + 24 * len(rows[:DRAWN])

    def x(auc: float) -> float:
        return NAME + (WIDTH - NAME - 60) * (min(max(auc, 0.5), 1) - 0.5) / 0.5

    parts = []
    if (chance := rows[0].get("chance")) is not None:
        parts.append(f'<text x="{x(chance):.1f}" y="18" text-anchor="middle">luck {chance:.2f}</text>')
        parts.append(f'<path d="M{x(chance):.1f} 26V{height - 6}" stroke="{MOVED}" stroke-dasharray="4 3"/>')
    for place, row in enumerate(rows[:DRAWN]):
        y = 42 + pitch * place
        parts.append(f'<text y="{y}">{escape(_short(str(row["query"])))}</text>')
        parts.append(
            f'<path d="M{x(row["auc_low"]):.1f} {y - 4}H{x(row["auc_high"]):.1f}" stroke="{CHOSEN}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x(row["auc"]):.1f}" cy="{y - 4}" r="4" fill="{CHOSEN}"/>')
        parts.append(f'<text x="{WIDTH - 20}" y="{y}" text-anchor="end">{row["auc"]:.2f}</text>')
    return _drawing(parts, height, "Which question tells the chosen from the rest: AUC")


def _drawing(parts: Sequence[str], height: int, alt: str) -> str:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<g transform="translate(8)">{"".join(parts)}</g></svg>'
    )
    return still_image(svg, alt, WIDTH, height)


def _bar(row: Mapping, side: str, colour: str, y: int, scale: float) -> str:
    value, low, high = ((row.get(f"{side}{end}") or 0) * scale for end in ("", "_low", "_high"))
    whisker = f'<path d="M{NAME + low:.1f} {y + 5}H{NAME + high:.1f}" stroke="{INK}"/>' if high else ""
    words = f'<text x="{NAME + max(value, high) + 6:.1f}" y="{y + 9}" font-size="11">{figure(row, side)}</text>'
    faint = ' opacity=".45"' * (row.get("beyond_chance") is False)
    return f'<rect x="{NAME}" y="{y}" width="{max(value, 0):.1f}" height="10" fill="{colour}"{faint}/>{whisker}{words}'
