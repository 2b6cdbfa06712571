"""Pack a ledger of attention for the browser, and draw it where no script may run."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from widgets.base import INK, STILL, still_image

NEEDED = ("query", "layer", "head_group", "modality", "weight")
BLANKS = {"kind": "modality", "slots": np.nan, "per_token": np.nan, "deletion_effect": np.nan, "gradient": np.nan}
BLANKS |= {"disagrees": False, "disagrees_per_token": False, "agreement": np.nan, "agreement_per_token": np.nan}
CUBES = ("weight", "per_token", "disagrees", "disagrees_per_token")  # one number a layer, head group and row
CELLS = ("agreement", "agreement_per_token")  # one a layer and head group
ROWS = ("slots", "deletion_effect", "gradient")  # one a row
ATTENTION, DELETION = "#0072B2", "#E69F00"  # Okabe and Ito's blue and orange
WHOLE = -1


def checked_ledger(frame: pd.DataFrame) -> pd.DataFrame:
    """Give a ledger with every column there is; a frame of one layer or head needs none of the means."""
    if missing := [c for c in NEEDED if c not in frame]:
        raise ValueError(
            f"the ledger has no column {missing[0]!r} (it has {', '.join(map(str, frame))}): keep all that ask gives"
        )
    if frame.empty:
        raise ValueError("the ledger has 0 rows, at least 1 is needed: look at some users first")
    queries = list(dict.fromkeys(frame["query"].astype(str)))
    if len(queries) > 2:
        raise ValueError(
            f"the ledger has {len(queries)} queries, 1 or 2 can be shown: choose with frame[frame['query'].isin(...)]"
        )
    cell = ["query", "layer", "head_group", "modality"]
    if (twice := frame.duplicated(cell)).any():
        raise ValueError(f"the ledger has {twice.sum():,} rows twice ({', '.join(cell)}): average over users first")
    return frame.assign(
        **{name: blank for name, blank in BLANKS.items() if name not in frame}, query=frame["query"].astype(str)
    )


def packed(frame: pd.DataFrame) -> dict:
    """Pack a ledger: names once, numbers as buffers in the order layer, head group, row; means first; NaN where nothing is."""
    queries, names = list(dict.fromkeys(frame["query"])), list(dict.fromkeys(frame["modality"].astype(str)))
    layers, groups = sorted(frame["layer"].unique()), sorted(frame["head_group"].unique())
    index = pd.MultiIndex.from_product([layers, groups, names])
    kinds = frame.drop_duplicates("modality").set_index("modality")["kind"]
    sides = []
    for query in queries:
        part = frame[frame["query"] == query].set_index(["layer", "head_group", "modality"]).reindex(index)
        side = {name: _floats(part[name]) for name in CUBES}
        cells = part.groupby(level=[0, 1], sort=False)[list(CELLS)].max()
        side |= {name: _floats(cells[name]) for name in CELLS}
        by_row = part.groupby(level=2, sort=False)[list(ROWS)].max().reindex(names)
        sides.append(side | {name: _floats(by_row[name]) for name in ROWS} | {"query": query})
    axes = {"layers": [int(n) for n in layers], "groups": [int(n) for n in groups]}
    return {"names": names, "kinds": [str(kinds[name]) for name in names], **axes, "sides": sides}


def _floats(values: pd.Series) -> bytes:
    return values.astype(float).to_numpy(dtype=np.float32).tobytes()


def whole(frame: pd.DataFrame, query: str) -> pd.DataFrame:
    """Give the rows of one query that are means of all layers and heads, modalities first, the most looked at first."""
    part = frame[frame["query"] == query]
    part = part[(part["layer"] == part["layer"].min()) & (part["head_group"] == part["head_group"].min())]
    part = part.sort_values("weight", ascending=False, kind="stable")
    part = part.assign(last=(part["kind"] != "modality") * 1 + (part["modality"] == "sink"))
    return part.sort_values("last", kind="stable", ignore_index=True)


def table(frame: pd.DataFrame) -> list[list[str]]:
    """Write the ledger as rows of words: one query with its measures, or two with their difference."""
    first, *second = (whole(frame, query).set_index("modality") for query in dict.fromkeys(frame["query"]))
    if second:
        other = second[0].reindex(first.index)
        rows = [["modality", "attention A", "B", "A minus B", "deletion A", "B", "A minus B"]]
        for name, a in first.iterrows():
            b, cells = other.loc[name], []
            for column, write in (("weight", percent), ("deletion_effect", number)):
                cells += [write(a[column]), write(b[column]), write(a[column] - b[column], "+")]
            rows.append([name, *cells])
        return rows
    sloped = first["gradient"].notna().any()
    rows = [["modality", "attention", "per slot", "deletion effect", *(["gradient"] if sloped else []), "ranks disagree"]]
    for name, a in first.iterrows():
        slope = [percent(a["gradient"])] if sloped else []
        numbers = [percent(a["weight"]), percent(a["per_token"]), number(a["deletion_effect"]), *slope]
        rows.append([name, *numbers, "yes" if a["disagrees"] == 1 else ""])
    return rows


def percent(share: float, sign: str = "") -> str:
    """Write a share: 0.213 is 21.3 %."""
    return "" if pd.isna(share) else f"{100 * share:{sign}.{1 if abs(share) >= 0.01 else 2}f} %".replace("-", "−")


def number(value: float, sign: str = "") -> str:
    """Write an effect with three digits that count."""
    return "" if pd.isna(value) else f"{value:{sign}.3f}".replace("-", "−")


def bars(frame: pd.DataFrame) -> str:
    """Draw attention and deletion effect of the first query's modalities side by side, an <img>."""
    shown = whole(frame, frame["query"].iloc[0])
    shown = shown[shown["kind"] == "modality"]
    if shown.empty:
        return ""
    parts, height = [], 40 + 24 * len(shown)
    for left, column, colour, write in ((150, "weight", ATTENTION, percent), (400, "deletion_effect", DELETION, number)):
        parts.append(
            f'<text x="{left}" y="18" fill="{STILL}">{"attention" if column == "weight" else "deletion effect"}</text>'
        )
        most = shown[column].fillna(0).max() or 1
        for place, value in enumerate(shown[column]):
            y, width = 30 + 24 * place, 0 if pd.isna(value) else 150 * value / most
            parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{left + width + 6:.1f}" y="{y + 10}">{write(value)}</text>')
    if (shown["disagrees"] == 1).any():
        parts.append(f'<text x="636" y="18" text-anchor="end" fill="{STILL}">ranks apart</text>')
    for place, row in enumerate(shown.itertuples()):
        parts.append(f'<text x="8" y="{40 + 24 * place}">{escape(str(row.modality)[:18])}</text>')
        if row.disagrees == 1:
            parts.append(f'<path d="M628 {30 + 24 * place}l6 6-6 6-6-6z" fill="#D55E00"/>')
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{height}" font-family="sans-serif" font-size="12" '
        f'fill="{INK}"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )
    return still_image(svg, "Attention and deletion effect by modality", 640, height)
