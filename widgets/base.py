"""What every view shares: a repr of content, a still picture for notebooks without a kernel, one job at a time."""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from itertools import count
from pathlib import Path

import anywidget
import numpy as np
from IPython.display import HTML

HERE = Path(__file__).parent
INK, STILL, MOVED = "#2b3440", "#8a939e", "#D55E00"  # the last is Okabe and Ito's vermilion
PAUSE = 0.05  # seconds between two progress messages at least
log = logging.getLogger("widgets")


def script(*names: str) -> str:
    """Join script files into the one module a browser is given, which cannot import its neighbours; comments stay here."""
    parts = [(HERE / "static" / name).read_text(encoding="utf-8") for name in names]
    left_out = r'^import .*? from "\./.*?";\n|^ *//[^\n]*\n|^ */\*\*.*?\*/\n'
    return "\n".join(re.sub(left_out, "", part, flags=re.M | re.S) for part in parts)


class View(anywidget.AnyWidget):
    """Show something in a notebook, and still say it in words where no script may run.

    A view gives `_words()`, the text of its repr, and `_still()`, its HTML without scripts. One that tells how far it is has a
    trait `_status` and a lock `_guard`.
    """

    _told = 0.0  # when the status was last set

    def __repr__(self) -> str:
        return self._words()

    def still(self) -> HTML:
        """Give what is shown now as a picture and words that stay readable without a kernel."""
        return HTML(self._still())

    def _tell(self, at_once: bool = False, **status) -> None:
        """Set the status line; progress that comes too soon after the last is left out, unless it must be told `at_once`."""
        now = time.monotonic()
        between = status.get("busy") and 0 < status["done"] < status["total"]
        if between and not at_once and now - self._told < PAUSE:
            return
        with self._guard:
            self._told, self._status = now, status

    def _repr_mimebundle_(self, **kwargs):
        data, about = super()._repr_mimebundle_(**kwargs)
        data["text/plain"] = repr(self)
        try:
            data["text/html"] = self._still()
        except Exception:  # a notebook must open whatever the data holds
            log.exception("no still picture of %r", self)
        return data, about


@contextmanager
def closing(updates: Iterable[dict]) -> Iterator[Iterable[dict]]:
    """Close what gives updates in the end, come what may: that cancels its work. A list of them needs no closing."""
    try:
        yield updates
    finally:
        getattr(updates, "close", lambda: None)()


class Worker:
    """Run one job at a time beside the kernel's message loop; a newer job takes the place of the one before.

    A job is called with a `threading.Event` and stops when it is set. Workers made with the same `turn` never run together.
    """

    def __init__(self, turn: threading.RLock | None = None):
        self.turn = turn or threading.RLock()
        self._stop = threading.Event()

    def start(
        self,
        job: Callable[[threading.Event], None],
        waits: Callable[[], None] = lambda: None,
        given_up: Callable[[], None] = lambda: None,
    ) -> threading.Thread:
        """Run `job` in the background as soon as the one before has stopped.

        waits      called when something else has its turn just now; given_up, when it was cancelled before it began.
        """
        self.cancel()
        self._stop = stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(job, stop, waits, given_up), daemon=True)
        thread.start()
        return thread

    def run(self, job: Callable[[threading.Event], None]) -> None:
        """Run `job` here and now, after the one that is running has come to its end."""
        with self.turn:
            self._stop = stop = threading.Event()
            job(stop)

    def cancel(self) -> None:
        """Ask the running job, and any that waits, to stop."""
        self._stop.set()

    def _work(self, job, stop, waits, given_up) -> None:
        if not self.turn.acquire(blocking=False):
            waits()
            self.turn.acquire()
        try:
            given_up() if stop.is_set() else job(stop)
        finally:
            self.turn.release()


class Selection:
    """Hold the chosen users: `ids` can be read and set, here and by drawing in a view; any number of views may `observe`.

    Example:
        >>> chosen = Selection(("a", "b", "c"), lambda rows: None)
        >>> chosen.ids = ["c", "a"]
        >>> chosen, chosen.ids
        (Selection(2 of 3 users), ('a', 'c'))
    """

    def __init__(self, ids: tuple[str, ...], changed: Callable[[np.ndarray], None], turn: threading.RLock | None = None):
        self.everyone, self._listeners = ids, [changed]
        self.turn = turn or threading.RLock()  # the model serves one of the views at a time
        self._row = {user: row for row, user in enumerate(ids)}
        self.rows = np.empty(0, dtype=np.int32)

    def observe(self, changed: Callable[[np.ndarray], None]) -> None:
        """Have `changed(rows)` called, too, whenever others are chosen; once, however often it is asked for."""
        if changed not in self._listeners:
            self._listeners.append(changed)

    def unobserve(self, changed: Callable[[np.ndarray], None]) -> None:
        """Call `changed` no more."""
        self._listeners.remove(changed)

    @property
    def ids(self) -> tuple[str, ...]:
        """Name the chosen users, in the order of the frame."""
        return tuple(self.everyone[row] for row in self.rows)

    @ids.setter
    def ids(self, users: Iterable[str]) -> None:
        users = [users] if isinstance(users, str) else list(users)
        unknown = [user for user in users if user not in self._row]
        if unknown:
            raise KeyError(f"user {unknown[0]!r} is not among the {len(self.everyone):,} of this view")
        self.take([self._row[user] for user in users])

    def take(self, rows, mode: str = "replace") -> None:
        """Choose users by row number, or "add" or "subtract" them; numbers that are no row are left out."""
        join = {"add": np.union1d, "subtract": np.setdiff1d}.get(mode, lambda _, rows: np.unique(rows))
        rows = join(self.rows, np.asarray(rows, dtype=np.int32)).astype(np.int32)
        self.rows = rows[(rows >= 0) & (rows < len(self.everyone))]
        for changed in tuple(self._listeners):
            try:
                changed(self.rows)
            except Exception:  # one view that fails must not leave the others behind
                log.exception("a view did not follow the selection")

    def clear(self) -> None:
        """Choose nobody."""
        self.take([])

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, user: str) -> bool:
        return self._row.get(user, -1) in self.rows

    def __repr__(self) -> str:
        return f"Selection({len(self):,} of {len(self.everyone):,} users)"


def still_map(places: np.ndarray, moved: np.ndarray, width: int = 640, height: int = 400) -> str:
    """Draw points as an <img> that needs no script: `places` (user, 2), `moved` true for those drawn as diamonds.

    More than 5,000 are moved by at most two pixels, and of those that then lie on each other one is drawn.
    """
    there = np.isfinite(places).all(axis=1)
    if not there.any():
        return ""
    low, high = places[there].min(axis=0), places[there].max(axis=0)
    scale = min((width - 32) / max(high[0] - low[0], 1e-9), (height - 32) / max(high[1] - low[1], 1e-9))
    xy = (places - (low + high) / 2) * scale * [1, -1] + [width / 2, height / 2]
    dots, tips = xy[there & ~moved], xy[there & moved]
    if len(xy) > 5_000:
        dots, tips = (np.unique(np.round(some / 4) * 4, axis=0) for some in (dots, tips))
    still = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in dots)
    diamonds = "".join(f"M{x:.0f} {y - 4:.0f}l4 4l-4 4l-4-4z" for x, y in tips)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<path d="{still}" stroke="{STILL}" stroke-opacity=".6" stroke-width="6" stroke-linecap="round"/>'
        f'<path d="{diamonds}" fill="{MOVED}" fill-opacity=".85"/></svg>'
    )
    return still_image(svg, "Map of the users", width, height)


def still_image(svg: str, alt: str, width: int, height: int) -> str:
    """Wrap a drawing as an <img>, in which nothing can run or be fetched."""
    code = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/svg+xml;base64,{code}">'


def write_whole(path: Path, text: str) -> Path:
    """Write a file beside `path`, then rename it: whoever reads or kills finds the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        return aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def vacant(name: str, ending: str) -> Path:
    """Name a file in the notebook's folder after `name`, and never one that is there."""
    stem = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "kept"
    return next(path for k in count(1) if not (path := Path(f"{stem}{f'-{k}' * (k > 1)}.{ending}")).exists())


def plain(error: Exception) -> str:
    """Say an error in one line, without its traceback."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line[1:-1] if line[0] == line[-1] and line[0] in "'\"" else line  # a KeyError comes in quotes


def still_page(title: str, lines: Iterable[str], picture: str = "", table: Iterable[Iterable] = ()) -> str:
    """Lay out words, a picture and a table as plain HTML; every text is escaped."""
    rows = [[escape(str(cell)) for cell in row] for row in table]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows[1:])
    head = "".join(f"<th>{cell}</th>" for cell in rows[0]) if rows else ""
    words = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    listed = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div><p><strong>{escape(title)}</strong></p>{picture}{words}{listed}</div>"
