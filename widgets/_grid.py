"""Pack a matrix of questions and groups for the browser, and draw it where no script may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from widgets._bars import figures
from widgets.base import INK, STILL, still_image

NEEDED = ("query", "group", "n", "auc")
BEYOND = {
    "auc": "beyond_chance",
    "lean": "lean_beyond",
    "ratio": "ratio_beyond",
}  # the measures, and whether it is more than luck
MIDDLE = {"auc": 0.5, "lean": 0.5, "ratio": 1.0}
MORE, LESS = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
NAME, CELL, PITCH = 300, 58, 28  # pixels: of the questions, of a cell, from row to row


def checked_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Give a matrix with one row a question and group, as text."""
    if missing := [name for name in NEEDED if name not in frame]:
        raise ValueError(
            f"the matrix has no column {missing[0]!r} (it has {', '.join(map(str, frame))}): give all of shift_matrix"
        )
    frame = frame.assign(query=frame["query"].astype(str), group=frame["group"].astype(str))
    if frame.duplicated(["query", "group"]).any():
        raise ValueError(f"{len(frame):,} rows, some question and group stand twice: give one row each")
    return frame


def packed(frame: pd.DataFrame | None, queries: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict:
    """Pack the cells row by row, None where nothing is known; `alike` puts rows and columns with like colours side by side."""
    rows = {} if frame is None else {(row["query"], row["group"]): figures(row) for row in frame.to_dict("records")}
    cells = [[rows.get((query, name)) for name in groups] for query in queries]
    known = [measure for measure in BEYOND if frame is not None and measure in frame]
    return {
        "queries": list(queries),
        "groups": [{"name": name, "n": len(ids)} for name, ids in groups.items()],
        "cells": cells,
        "measures": known,
        "alike": {measure: alike(cells, measure) for measure in known},
    }


def alike(cells: list[list[dict | None]], measure: str) -> dict:
    """Order rows and columns so that neighbours are alike (optimal leaf order); while cells are missing, as they were given."""
    rows, columns = list(range(len(cells))), list(range(len(cells[0]) if cells else 0))
    if not rows or not columns or any(cell is None for row in cells for cell in row):
        return {"rows": rows, "columns": columns}
    values = [[MIDDLE[measure] if cell[measure] is None else cell[measure] for cell in row] for row in cells]
    table = np.array(values)
    return {"rows": _leaves(table), "columns": _leaves(table.T)}


def _leaves(table: np.ndarray) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(table) < 3:
        return list(range(len(table)))
    order = leaves_list(linkage(table, "average", optimal_ordering=True))
    lead = table[order].max(axis=1) - table.mean()
    return (order if lead[: len(order) // 2].sum() >= lead[-(len(order) // 2) :].sum() else order[::-1]).tolist()


def beyond(frame: pd.DataFrame, measure: str = "auc") -> pd.Series:
    """Say which cells are beyond luck; all where that was not worked out."""
    return frame[BEYOND[measure]].astype(bool) if BEYOND[measure] in frame else pd.Series(True, index=frame.index)


def table(picture: dict) -> list[list[str]]:
    """Write the matrix in rows of words: the AUC, in brackets within luck, and an arrow for how the group leans."""
    head = ["question", *(f"{group['name']} (n={group['n']:,})" for group in picture["groups"])]
    return [head, *([query, *map(_told, row)] for query, row in zip(picture["queries"], picture["cells"], strict=True))]


def _told(cell: dict | None) -> str:
    if cell is None or cell["auc"] is None:
        return ""
    text = f"{cell['auc']:.2f}"
    arrow = (" ↑" if cell["lean"] > 0.5 else " ↓") if cell.get("lean_beyond") and cell.get("lean") is not None else ""
    return (text if cell.get("beyond_chance", True) else f"({text})") + arrow


def heat(picture: dict) -> str:
    """Draw the matrix as an <img>: the AUC, coloured where it is beyond luck."""
    groups, queries = picture["groups"], picture["queries"]
    if not picture["measures"]:
        return ""
    width, height, parts = NAME + CELL * len(groups) + 16, 64 + PITCH * len(queries), []
    for j, group in enumerate(groups):
        x = NAME + CELL * (j + 0.5)
        parts.append(f'<text x="{x}" y="26" text-anchor="middle">{escape(_short(group["name"], 9))}</text>')
        parts.append(f'<text x="{x}" y="42" text-anchor="middle" fill="{STILL}">{group["n"]:,}</text>')
    for i, (query, row) in enumerate(zip(queries, picture["cells"], strict=True)):
        y = 52 + PITCH * i
        parts.append(f'<text x="8" y="{y + 18}">{escape(_short(query, 44))}</text>')
        for j, cell in enumerate(row):
            if cell is None or cell["auc"] is None:
                continue
            x, strong = NAME + CELL * j, min(max(cell["auc"] - 0.5, 0) * 2.5, 1) if cell.get("beyond_chance", True) else 0
            ink = "#fff" if strong > 0.6 else INK if strong else STILL
            box = (
                f'<rect x="{x + 1}" y="{y}" width="{CELL - 2}" height="{PITCH - 2}" fill="{MORE}" fill-opacity="{strong:.2f}"/>'
            )
            parts.append(
                f'{box}<text x="{x + CELL / 2}" y="{y + 18}" text-anchor="middle" fill="{ink}">{cell["auc"]:.2f}</text>'
            )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12" '
        f'fill="{INK}"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )
    return still_image(svg, "AUC by question and group", width, height)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
