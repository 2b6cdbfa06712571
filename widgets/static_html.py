"""HTML that needs no script: pages of words and tables, and pictures as images."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import numpy as np

BLUE = "#0072B2"  # this and the next two are of the palette by Okabe and Ito
VERMILION = "#D55E00"
ORANGE = "#E69F00"
INK = "#2b3440"
GRAY = "#8a939e"
MAX_EXACT_POINTS = 5_000  # above, points move to a grid and those that coincide are drawn once
GRID = 4  # pixels
MAP_WIDTH = 640  # pixels
MAP_HEIGHT = 400
MAP_MARGIN = 16  # pixels on each side


def static_page(
    title: str, lines: Iterable[str], image: str = "", table: Iterable[Iterable] = ()
) -> str:
    """Return words, an image and a table as plain HTML, every text escaped.

    Args:
        title: The heading.
        lines: Paragraphs; empty ones are left out.
        image: HTML of an image, as `svg_image` returns it.
        table: Rows of cells, the first of them the head (default: no table).

    Returns:
        HTML.
    """
    paragraphs = ""
    for line in filter(None, lines):
        paragraphs += f"<p>{escape(line)}</p>"
    heading = f"<p><strong>{escape(title)}</strong></p>"
    return f"<div>{heading}{image}{paragraphs}{html_table(table)}</div>"


def html_table(rows: Iterable[Iterable]) -> str:
    """Return rows of cells as an HTML table, the first row its head; no rows give no table."""
    rows = list(rows)
    if not rows:
        return ""
    head = table_row(rows[0], "th")
    body = ""
    for row in rows[1:]:
        body += table_row(row, "td")
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def table_row(cells: Iterable, tag: str) -> str:
    """Return cells as a row of an HTML table; `tag` is "th" in its head, else "td"."""
    html = ""
    for cell in cells:
        html += f"<{tag}>{escape(str(cell))}</{tag}>"
    return f"<tr>{html}</tr>"


def svg_image(body: str, alt: str, width: int, height: int) -> str:
    """Return a drawing as an <img>, in which nothing can run or be fetched.

    Args:
        body: SVG elements, drawn on white.
        alt: The text for those who do not see it.
        width: In pixels.
        height: In pixels.

    Returns:
        HTML.
    """
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )
    code = base64.b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{code}"
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="{source}">'


def map_image(places: np.ndarray, marked: np.ndarray) -> str:
    """Draw a map of users as an image.

    Above 5,000 users, points move by at most two pixels so that those that coincide are drawn once.

    Args:
        places: Coordinates, (user, 2); NaN where they are unknown.
        marked: Which users are drawn as diamonds.

    Returns:
        HTML, empty if no place is known.
    """
    known = np.isfinite(places).all(axis=1)
    if not known.any():
        return ""
    low = places[known].min(axis=0)
    high = places[known].max(axis=0)
    size = np.array([MAP_WIDTH, MAP_HEIGHT])
    room = size - 2 * MAP_MARGIN
    scale = (room / np.maximum(high - low, 1e-9)).min()
    centered = places - (low + high) / 2
    pixels = size / 2 + scale * centered * [1, -1]
    circles = pixels[known & ~marked]
    diamonds = pixels[known & marked]
    if len(pixels) > MAX_EXACT_POINTS:
        circles = unique_on_grid(circles)
        diamonds = unique_on_grid(diamonds)
    circle_path = ""
    for x, y in circles:
        circle_path += f"M{x:.0f} {y:.0f}h0"
    diamond_path = ""
    for x, y in diamonds:
        diamond_path += f"M{x:.0f} {y - 4:.0f}l4 4l-4 4l-4-4z"
    body = (
        f'<path d="{circle_path}" stroke="{GRAY}" stroke-opacity=".6" stroke-width="6" '
        'stroke-linecap="round"/>'
        f'<path d="{diamond_path}" fill="{VERMILION}" fill-opacity=".85"/>'
    )
    return svg_image(body, "Map of the users", MAP_WIDTH, MAP_HEIGHT)


def unique_on_grid(pixels: np.ndarray) -> np.ndarray:
    """Round points to a grid and return each place once."""
    on_grid = GRID * np.round(pixels / GRID)
    return np.unique(on_grid, axis=0)


def truncate(text: str, max_length: int) -> str:
    """Cut a text that is longer than `max_length` characters and mark the cut."""
    if len(text) <= max_length:
        return text
    return text[: max_length - 1] + "…"
